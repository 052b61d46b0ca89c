"""Values of one parameter from one way of keeping them to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compiledopt.storage.codec import SCALE, Codec, row_of
from compiledopt.storage.derived import Kept


def _in_blocks(tensor: torch.Tensor, param: torch.Tensor, block: int) -> torch.Tensor:
    """(rows, blocks, elements of a block), each row filled up with zeros."""
    rows, row = param.shape[0], row_of(param)
    return torch.nn.functional.pad(tensor.reshape(rows, row), (0, -row % block)).reshape(rows, -1, block)


def _in_rows(blocks: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    rows = blocks.reshape(param.shape[0], -1)
    return rows[:, : row_of(param)].reshape(param.shape)


def decoded(codec: Codec, codes: torch.Tensor, scale: torch.Tensor | None, param: torch.Tensor) -> torch.Tensor:
    """The values of a state, in float32 at least."""
    wide = torch.promote_types(torch.float32, codes.dtype) if codes.is_floating_point() else torch.float32
    if scale is None or not codec.block:
        return codes.to(wide)
    found = codec.decode(_in_blocks(codes.to(wide), param, codec.block), scale.reshape(*scale.shape, 1))
    return _in_rows(found, param)


def encoded(codec: Codec, values: torch.Tensor, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(codes, scale or None), rounded to nearest."""
    if not codec.block:
        return values.to(codec.dtype), None
    codes, scale = codec.encode(_in_blocks(values, param, codec.block), None)
    return _in_rows(codes, param).to(codec.dtype), scale.squeeze(-1).to(torch.float32)


def converted(values: Mapping[str, Any], before: Kept | None, after: Kept | None, param: torch.Tensor) -> dict[str, Any]:
    """The states of a parameter as `after` has them. What belongs to the rounding of the parameter itself stays where that
    is the same, and is left out where it is not."""
    found = dict(values)
    with torch.no_grad():
        for name, codec, _ in () if before is None else before.states:
            if name in found:
                found[name] = decoded(codec, found[name], found.pop(f"{name}_{SCALE}", None), param)
        for name, codec, _ in () if after is None else after.states:
            if isinstance(found.get(name), torch.Tensor):
                found[name], scale = encoded(codec, found[name], param)
                found |= {} if scale is None else {f"{name}_{SCALE}": scale}
    old, new = (None if kept is None else kept.rounding for kept in (before, after))
    for name in () if old is None or old is new else old.states:
        found.pop(name, None)
    return found
