"""States in a half type or in float32: as a store rounds them, or with random bits.

An average that moves by less than half a unit in the last place of its old value stands still when it is rounded to nearest:
v ← β₂·v + (1 − β₂)·g² with β₂ = 0.999 in bfloat16, whose unit is 2^-8. Rounded with random bits it is right in the mean.
"""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.rules.composed import operation
from compiledopt.rules.random import mixed
from compiledopt.storage.codec import Codec

SMALLEST_NORMAL, LARGEST = 2.0**-14, 65504.0  # of float16
SMALLEST_ROOT = 2.0**-24


def _bits(x: Any) -> Any:
    return x.to(torch.float32).view(torch.int32)


def _number(bits: Any, like: Any) -> Any:
    return bits.view(torch.float32).to(like.dtype)


@operation
def stochastic_bfloat16(x: Any, bits: Any) -> Any:
    """x cut to the 16 upper bits of its float32, after 16 random ones were added to the lower."""
    cut = _number((_bits(x) + (bits & 0xFFFF)) & -0x10000, x)
    return torch.where(x == x, cut, x)


@operation
def nearest_bfloat16(x: Any) -> Any:
    """x to the nearest bfloat16, to an even one of two."""
    old = _bits(x)
    return torch.where(x == x, _number((old + 0x7FFF + ((old >> 16) & 1)) & -0x10000, x), x)


@operation
def stochastic_float16(x: Any, bits: Any) -> Any:
    """The same for float16, whose subnormal numbers are multiples of 2^-24. What is above the largest is left to the store."""
    size, share = x.abs(), (bits & 0xFFFF).to(x.dtype) * 2.0**-16
    normal = _number((_bits(size) + (bits & 0x1FFF)) & -0x2000, x)
    subnormal = (size * 2.0**24 + share).floor() * 2.0**-24
    rounded = torch.where(size < SMALLEST_NORMAL, subnormal, normal)
    return torch.where(size < LARGEST, torch.where(x < 0, -rounded, rounded), x)


@operation
def nearest_float16(x: Any) -> Any:
    """x to the nearest float16, to an even one of two; what is above the largest is left to the store."""
    size = x.abs()
    old = _bits(size)
    normal = _number((old + 0xFFF + ((old >> 13) & 1)) & -0x2000, x)
    rounded = torch.where(size < SMALLEST_NORMAL, (size * 2.0**24).round() * 2.0**-24, normal)
    return torch.where(size < LARGEST, torch.where(x < 0, -rounded, rounded), x)


@operation
def root_float16(x: Any) -> Any:
    """√x, at least the smallest that float16 has where x > 0: a step divides by the root of such a state."""
    return torch.where(x > 0, x.sqrt().clamp(min=SMALLEST_ROOT), x.sqrt())


@operation
def more_bits(bits: Any) -> Any:
    """32 random bits of 32 others."""
    return mixed(bits ^ 0x5BE0CD19)


@operation
def upper_half(bits: Any) -> Any:
    """The 16 upper ones of 32 random bits."""
    return bits >> 16


STOCHASTIC = {torch.bfloat16: stochastic_bfloat16, torch.float16: stochastic_float16}
NEAREST = {torch.bfloat16: nearest_bfloat16, torch.float16: nearest_float16}


class Stored(Codec):
    """The values in another dtype, as a store rounds them: to nearest."""

    plain = True

    def __init__(self, name: str, dtype: torch.dtype, unsigned: str | None = None) -> None:
        self.name, self.dtype, self.unsigned, self.source = name, dtype, unsigned, "IEEE 754"

    def decode(self, codes: Any, scale: Any) -> Any:
        return codes

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        return values, None


class StochasticallyRounded(Codec):
    """The values in a half type, up or down with the probabilities that make the mean right."""

    random = True

    def __init__(self, name: str, dtype: torch.dtype, unsigned: str | None = None) -> None:
        self.name, self.dtype, self.unsigned = name, dtype, unsigned
        self.source = "Gupta et al. 2015, arXiv:1502.02551"

    def decode(self, codes: Any, scale: Any) -> Any:
        return codes

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        return STOCHASTIC[self.dtype](values, bits), None


class Root(Codec):
    """√x in float16 to nearest, for states that are never negative: float16 has nothing below 6e-8, the square of 2e-4, so that
    averages of squares would be zeros, and steps divide by their root."""

    dtype, signed, source = torch.float16, False, "the root of FlashOptim 2025's 8 bits, for float16"
    name = "float16_root_nearest"

    def decode(self, codes: Any, scale: Any) -> Any:
        return codes * codes

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        return root_float16(values), None

    def converted(self, values: torch.Tensor) -> torch.Tensor:
        rooted: torch.Tensor = root_float16(values)
        return rooted.to(self.dtype)


class StochasticRoot(Root):
    """The same with random bits."""

    name, random = "float16_root", True

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        return stochastic_float16(root_float16(values), bits), None
