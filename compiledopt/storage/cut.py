"""A codec on whole tensors, in the blocks of their parameter."""

from __future__ import annotations

import torch

from compiledopt.backends.blocks import Blocks, packed_shape, scales_of
from compiledopt.backends.distributed import is_distributed, local, placed_like
from compiledopt.backends.layout import as_operand, as_stored
from compiledopt.rules.program import BLOCKS, ELEMENTS, PACKED
from compiledopt.storage.codec import Codec


def decoded(codec: Codec, codes: torch.Tensor, scale: torch.Tensor | None, param: torch.Tensor) -> torch.Tensor:
    """The values of a state, in float32 at least."""
    if scale is None or not codec.block:
        wide = torch.promote_types(torch.float32, codes.dtype) if codes.is_floating_point() else torch.float32
        return codec.decode(codes.to(wide), None)  # type: ignore[no-any-return]
    cut, axes = Blocks(local(param).shape, {"": codec.block}), PACKED if codec.packed else ELEMENTS
    numbers = cut.into(as_operand(local(codes)), axes).to(torch.promote_types(torch.float32, param.dtype))
    found = cut.back(codec.decode(numbers, cut.into(local(scale), BLOCKS)), ELEMENTS)
    return placed_like(param, found, param.shape) if is_distributed(param) else found


def encoded(codec: Codec, values: torch.Tensor, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(codes, scale or None), rounded to nearest."""
    if not codec.block:
        return codec.converted(values), None
    cut, axes = Blocks(local(param).shape, {"": codec.block}), PACKED if codec.packed else ELEMENTS
    found, scale = codec.encode(cut.into(local(values), ELEMENTS), None)
    codes, scales = as_stored(cut.back(found, axes), codec.dtype), cut.back(scale, BLOCKS).to(torch.float32)
    return placed(codec, codes, scales, param)


def placed(codec: Codec, codes: torch.Tensor, scales: torch.Tensor, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and scales of what this process has of a parameter, as those of all of it."""
    if not is_distributed(param):
        return codes, scales
    shape = torch.Size(packed_shape(param.shape)) if codec.packed else param.shape
    return placed_like(param, codes, shape), placed_like(param, scales, torch.Size(scales_of(param.shape, codec.block)))
