"""Values of one parameter from one way of keeping them to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compiledopt.backends.blocks import packed_shape, scales_of
from compiledopt.storage.codec import SCALE
from compiledopt.storage.cut import decoded, encoded
from compiledopt.storage.derived import Kept


def fits(values: Mapping[str, Any], before: Kept | None, after: Kept | None, param: torch.Tensor) -> bool:
    """Whether what was kept so is of a parameter of this shape, as far as shapes tell: codes are read in the blocks of its."""
    coded = {name: codec for name, codec, _ in (() if before is None else before.states)}
    for name in {*coded, *(name for name, _, _ in (() if after is None else after.states))}:
        codec, value, scale = coded.get(name), values.get(name), values.get(f"{name}_{SCALE}")
        if not isinstance(value, torch.Tensor):
            continue
        wanted = packed_shape(param.shape) if codec and codec.packed else tuple(param.shape)
        if tuple(value.shape) != wanted or (codec is None and not (value.is_floating_point() or value.is_complex())):
            return False
        blocks = scales_of(param.shape, codec.block) if codec and codec.block else None
        if isinstance(scale, torch.Tensor) and blocks and tuple(scale.shape) != blocks:
            return False
    return True


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
