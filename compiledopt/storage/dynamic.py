"""States in 8 bits by the dynamic map: codes for every decade down to a millionth of the largest size of a block, twice as many
in each as in the one below. The map is a line within each decade, steeper from one to the next, so it is the largest of seven
lines, and its inverse the smallest of theirs: no table is looked up."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.rules.composed import largest, operation
from compiledopt.storage.codec import Codec
from compiledopt.storage.pieces import at_least, at_most, share_of, signed

BLOCK, DECADES = 256, 7
SOURCE = "Dettmers et al. 2022, arXiv:2110.02861, as in bitsandbytes and torchao; the largest are 1 and what is not finite"
FIRST, FIRST_UNSIGNED = 1, 2  # values of the lowest decade


def level(number: Any, first: int, decades: int) -> Any:
    """The value of a number k = first, first + 1, ...: 10^i · (0.9·m − 0.8), where k + ½ = first · 2^(decades − 1 + i) · m with
    1 ≤ m < 2 and i = 1 − decades, ..., 0: the middle of one of as many equal parts of 0.1·10^i to 10^i."""
    found = None
    for i in range(decades):
        unit = 10.0 ** (i + 1 - decades)
        line = (number + 0.5) * (0.9 * unit / (first * 2**i)) - 0.8 * unit
        found = line if found is None else torch.where(line > found, line, found)
    return found


def nearest_level(share: Any, first: int, decades: int) -> Any:
    """The number of the value nearest to a share, first − 1 where zero is."""
    place = None
    for i in range(decades):
        unit = 10.0 ** (i + 1 - decades)
        line = share * (first * 2**i / (0.9 * unit)) + 0.8 / 0.9 * (first * 2**i)
        place = line if place is None else torch.where(line < place, line, place)
    number = place.floor()  # type: ignore[union-attr]
    # The first of a decade, a power of two, is farther from the one below it than half a part of its own decade.
    is_first = (number.to(torch.float32).view(torch.int32) & 0x7FFFFF) == 0
    middle = torch.where(number > first, 0.2, 0.175 / 0.9)
    return number - torch.where(is_first & (place - number < middle), 1.0, 0.0)


@operation
def decode_dynamic8(codes: Any, scale: Any) -> Any:
    """x = ±a·level(|q|), and ±126 are ±a; ±127 are the infinities and −128 is NaN."""
    size = codes.abs()
    share = torch.where(size > 125, 1.0, torch.where(size < 1, 0.0, level(size, FIRST, DECADES)))
    special = torch.where(codes < -127, torch.nan, codes * torch.inf)
    return torch.where(size > 126, special, scale * torch.copysign(share, codes))


@operation
def encode_dynamic8(x: Any, scale: Any) -> Any:
    """q = ±(the number of the level nearest to |x| / a)."""
    size = x.abs()
    share = share_of(size, scale)
    number = torch.where(share > 0.982421875, 126.0, at_most(nearest_level(share, FIRST, DECADES), 125.0))
    special = torch.where(x == x, signed(127.0, x), -128.0)
    return torch.where(size < torch.inf, torch.copysign(number, x), special)


@operation
def decode_udynamic8(codes: Any, scale: Any) -> Any:
    """x = a·level(q + 1), and 253 is a; 254 is infinity and 255 is NaN."""
    share = torch.where(codes > 252, 1.0, torch.where(codes < 1, 0.0, level(codes + 1, FIRST_UNSIGNED, DECADES)))
    return torch.where(codes > 253, torch.where(codes > 254, torch.nan, torch.inf), scale * share)


@operation
def encode_udynamic8(x: Any, scale: Any) -> Any:
    """The code of the level nearest to x / a, at least 1 where x > 0: a step divides by the root of such a state."""
    share = share_of(x, scale)
    number = at_most(at_least(nearest_level(share, FIRST_UNSIGNED, DECADES), 2.0), 253.0)
    code = torch.where(x > 0, torch.where(share > 0.9912109375, 253.0, number - 1), 0.0)
    special = torch.where(x > 0, 254.0, 255.0)
    return torch.where((x >= 0) & (x < torch.inf), code, special)


class Dynamic8(Codec):
    """The dynamic map with 7 decades and a sign."""

    name, dtype, block, unsigned = "dynamic8", torch.int8, BLOCK, "udynamic8"
    source = SOURCE

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_dynamic8(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = largest(values, self.block)
        return encode_dynamic8(values, scale), scale


class UDynamic8(Codec):
    """The dynamic map without a sign, twice as fine, for states that are never negative."""

    name, dtype, block, signed = "udynamic8", torch.uint8, BLOCK, False
    source = SOURCE

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_udynamic8(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = largest(values, self.block)
        return encode_udynamic8(values, scale), scale
