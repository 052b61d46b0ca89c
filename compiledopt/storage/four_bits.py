"""States in 4 bits, two to a byte. All codes are values: where an element is not finite, its block's scale has a minus, and
there the largest codes mean what is not finite."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.rules.composed import marked_largest, operation
from compiledopt.storage.codec import Codec
from compiledopt.storage.dynamic import level, nearest_level
from compiledopt.storage.pieces import at_least, at_most, share_of

BLOCK, FIRST, MOST, DECADES = 128, 1, 7, 3


def is_marked(scale: Any) -> Any:
    return scale.to(torch.float32).view(torch.int32) < 0


@operation
def decode_int4(codes: Any, scale: Any) -> Any:
    """x = ±a·level(q mod 8), 7 is a, with a minus from 8 on. In a marked block 7 and 15 are the infinities, and 8 is NaN."""
    negative = codes > 7
    size = torch.where(negative, codes - 8, codes)
    share = level(size, FIRST, MOST, DECADES)
    finite = scale.abs() * torch.copysign(share, 7.5 - codes)
    infinite = torch.where(negative, -torch.inf, torch.inf)
    special = torch.where(codes == 8, torch.nan, torch.where(size > 6, infinite, finite))
    return torch.where(is_marked(scale), special, finite)


@operation
def encode_int4(x: Any, scale: Any) -> Any:
    """The code of the level nearest to x / a, the largest size exactly."""
    size, most = x.abs(), torch.where(is_marked(scale), 6.0, 7.0)
    share = share_of(size, scale.abs())
    number = at_most(nearest_level(share, FIRST, MOST, DECADES, has_zero=True), most)
    code = number + torch.where((x < 0) & (number > 0), 8.0, 0.0)
    special = torch.where(x == x, torch.where(x > 0, 7.0, 15.0), 8.0)
    return torch.where(size < torch.inf, code, special)


@operation
def decode_uint4(codes: Any, scale: Any) -> Any:
    """x = a·((q + 1) / 16)². In a marked block 14 is infinity and 15 is NaN."""
    root = (codes + 1) * 0.0625
    finite = scale.abs() * (root * root)
    special = torch.where(codes > 14, torch.nan, torch.where(codes > 13, torch.inf, finite))
    return torch.where(is_marked(scale), special, finite)


@operation
def encode_uint4(x: Any, scale: Any) -> Any:
    """q = round(16·√(x / a)) − 1, and 0 for what is smaller: a step divides by the root of such a state."""
    most = torch.where(is_marked(scale), 13.0, 15.0)
    square = at_least(share_of(x, scale.abs()), 0.0) * 256
    number = square.sqrt().round()  # and, since torch's roots are not rounded as a processor's are, whether that is the nearest
    below, above = number - 0.5, number + 0.5
    number = torch.where(square < below * below, number - 1, torch.where(square < above * above, number, number + 1)) - 1
    code = torch.where(number < most, torch.where(number > 0, number, 0.0), most)
    return torch.where(x.abs() < torch.inf, code, torch.where(x > 0, 14.0, 15.0))


class Int4(Codec):
    """The dynamic map with 3 decades and a sign: 0 and ±(0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 1)·a."""

    name, dtype, block, packed, unsigned = "int4", torch.uint8, BLOCK, True, "uint4"
    source = "Li et al. 2023, arXiv:2309.01507, as in torchao; 1 for both signs instead of ±0.8875 and 1, which shrank"

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_int4(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = marked_largest(values, self.block)
        return encode_int4(values, scale), scale


class UInt4(Codec):
    """(1, 2, ..., 16)² / 256·a, for states that are never negative: steps divide by their roots."""

    name, dtype, block, packed, signed = "uint4", torch.uint8, BLOCK, True, False
    source = "the roots are the linear map without 0 of Li et al. 2023, arXiv:2309.01507, which has the values themselves so"

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_uint4(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = marked_largest(values, self.block)
        return encode_uint4(values, scale), scale
