"""States in 8 bits by the dynamic map: codes for every decade down to a millionth of the largest size of a block, twice as many
in each as in the one below. The map and its inverse are a line within each decade."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from compiledopt.rules.composed import largest, operation
from compiledopt.storage.codec import Codec
from compiledopt.storage.pieces import share_of

BLOCK, DECADES = 256, 7
SOURCE = "Dettmers et al. 2022, arXiv:2110.02861, as in bitsandbytes and torchao; the largest are 1 and what is not finite"
FIRST, MOST = 1, 126  # the lowest decade has one value; what 1 is
FIRST_UNSIGNED, MOST_UNSIGNED = 2, 254


def level(number: Any, first: int, most: int, decades: int) -> Any:
    """The value of a number: 0 below `first`, 1 from `most` on, and of k = first, first + 1, ...: 10^i · (0.9·m − 0.8), where
    k + ½ = first · 2^(decades − 1 + i) · m with 1 ≤ m < 2 and i = 1 − decades, ..., 0: the middle of one of as many equal
    parts of 0.1·10^i to 10^i."""
    units = [10.0 ** (i + 1 - decades) for i in range(decades)]
    slopes = (0.0, *(0.9 * unit / (first * 2**i) for i, unit in enumerate(units)))
    slope, shift = _chosen(number, [first * 2**i for i in range(decades)], slopes, (0.0, *(0.8 * unit for unit in units)))
    return torch.where(number < most, (number + 0.5) * slope - shift, 1.0)


def nearest_level(share: Any, first: int, most: int, decades: int, has_zero: bool) -> Any:
    """The number of the value nearest to a share: first − 1 where zero is, if that is one; most + 1 of infinity."""
    slope, offset, last = _chosen(share, *_lines(first, most, decades, has_zero))
    place = (share * slope + offset).floor()
    return torch.where(place < last, place, last)


def _chosen(x: Any, edges: Sequence[float], *rows: Sequence[float]) -> list[Any]:
    """Of each row its number i where x is at or above i of the edges."""
    found = [torch.full_like(x, row[0]) for row in rows]
    for i, edge in enumerate(edges):
        above = x >= edge
        found = [torch.where(above, row[i + 1], one) for row, one in zip(rows, found, strict=True)]
    return found


@lru_cache
def _lines(first: int, most: int, decades: int, has_zero: bool) -> tuple[tuple[float, ...], ...]:
    """(shares where a decade's first number begins, where `most` does, and what is infinite; slopes, offsets and last numbers
    between them). Below is zero alone; where that is no value, the lowest one, up to the next."""
    units, firsts = [10.0 ** (i + 1 - decades) for i in range(decades)], [first * 2**i for i in range(decades)]
    slopes = [number / (0.9 * unit) for unit, number in zip(units, firsts, strict=True)]
    offsets = [0.8 / 0.9 * number for number in firsts]
    # Half of what is between a decade's first and the one below: those are farther apart than two of a decade.
    beyond = [0.175 / 0.9 if has_zero else 1.0, *[0.2] * (decades - 1)]
    edges = [_reaching(*line) for line in zip(firsts, slopes, offsets, beyond, strict=True)]
    below, lowest = 0.9 * (most - 0.5) / firsts[-1] - 0.8, float(first - has_zero)
    edges += [_moved(_float32((below + 1) / 2), 1), 2.0]
    lasts = [lowest, *(number - 1.0 for number in firsts[1:]), most - 1.0, float(most), most + 1.0]
    return tuple(edges), (0.0, *slopes, *slopes[-1:] * 2), (lowest, *offsets, *offsets[-1:] * 2), tuple(lasts)


def _reaching(number: int, slope: float, offset: float, beyond: float) -> float:
    """The smallest share that is so far beyond a number's place on a line, as float32 computes it."""
    slope, share = _float32(slope), _moved(_float32((number + beyond - offset) / slope), -8)
    while _float32(_float32(share * slope) + _float32(offset)) - number < _float32(beyond):
        share = _moved(share, 1)
    return share


def _float32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _moved(x: float, places: int) -> float:
    """The float32 so many places after one."""
    return float(struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", x))[0] + places))[0])


@operation
def decode_dynamic8(codes: Any, scale: Any) -> Any:
    """x = ±a·level(|q|), and ±126 are ±a; ±127 are the infinities and −128 is NaN."""
    size = codes.abs()
    share = level(size, FIRST, MOST, DECADES)
    special = torch.where(codes < -127, torch.nan, codes * torch.inf)
    return torch.where(size > 126, special, scale * torch.copysign(share, codes))


@operation
def encode_dynamic8(x: Any, scale: Any) -> Any:
    """q = ±(the number of the level nearest to |x| / a)."""
    share = share_of(x.abs(), scale)
    number = nearest_level(share, FIRST, MOST, DECADES, has_zero=True)
    return torch.where(x == x, torch.copysign(number, x), -128.0)


@operation
def decode_udynamic8(codes: Any, scale: Any) -> Any:
    """x = a·level(q + 1), and 253 is a; 254 is infinity and 255 is NaN."""
    share = level(codes + 1, FIRST_UNSIGNED, MOST_UNSIGNED, DECADES)
    return torch.where(codes > 253, torch.where(codes > 254, torch.nan, torch.inf), scale * share)


@operation
def encode_udynamic8(x: Any, scale: Any) -> Any:
    """The code of the level nearest to x / a, at least 1 where x > 0: a step divides by the root of such a state."""
    share = share_of(x, scale)
    number = nearest_level(share, FIRST_UNSIGNED, MOST_UNSIGNED, DECADES, has_zero=False)
    return torch.where(x >= 0, torch.where(x > 0, number - 1, 0.0), 255.0)


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
