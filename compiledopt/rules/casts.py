"""Operations that Inductor would not compute as torch does, by others: rounding to the half types by arithmetic on bits, and
division to whole numbers.

Inductor leaves out a cast to a half type and back, where it computes in float32 (so do C++ and Triton kernels), unless
`emulate_precision_casts` is on, which would change every kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bfloat16(x: Tensor) -> Tensor:
    """The nearest bfloat16, ties to even, in the dtype of x."""
    single = x.to(torch.float32)
    rounded = _nearest(single, 16)
    return torch.where(torch.isnan(single), single, rounded).to(x.dtype)


def float16(x: Tensor) -> Tensor:
    """The nearest float16, ties to even, in the dtype of x."""
    single = x.to(torch.float32)
    size = torch.abs(single)
    # Below 2^-14 float16 has multiples of 2^-24, and so has float32 between 0.5 and 1.
    small = torch.copysign((size + 0.75) - 0.75, single)
    rounded = torch.where(size < 2.0**-14, small, _nearest(single, 13))
    rounded = torch.where(torch.abs(rounded) > 65504.0, torch.copysign(torch.full_like(size, float("inf")), single), rounded)
    return torch.where(torch.isnan(single), single, rounded).to(x.dtype)


def floor_divide(a: Tensor, b: Tensor) -> Tensor:
    """The whole part of a / b, by the remainder: floor(a / b), as Inductor has it, is 10 for 1 / 0.1, where 9 are whole."""
    rest = torch.fmod(a, b)
    found = (a - rest) / b - torch.where((rest != 0) & ((b < 0) != (rest < 0)), 1.0, 0.0)
    below = torch.floor(found)
    whole = below + torch.where(found - below > 0.5, 1.0, 0.0)
    return torch.where(b == 0, a / b, torch.where(found == 0, torch.copysign(torch.zeros_like(found), a / b), whole))


def cube_root(x: Tensor) -> Tensor:
    """x^(1/3), NaN below zero, by Halley's iteration from a guess on the bits: pow, one call for each element, took MADGRAD ten
    times as long as all else. Of float64 it is that."""
    if x.dtype is torch.float64:
        return torch.pow(x, 1 / 3)
    small = x < 2.0**-126  # float32 has them with fewer bits
    scaled = torch.where(small, x * 2.0**24, x)
    guess = scaled.to(torch.float32).view(torch.int32).to(torch.float32) * (1 / 3) + 709921077.0
    root = guess.to(torch.int32).view(torch.float32).to(x.dtype)
    for _ in range(2):
        ratio = scaled / (root * root) / root
        root = root * ((1 + 2 * ratio) / (2 + ratio))
    root = torch.where(small, root * 2.0**-8, root)
    special = torch.where(torch.abs(x) == float("inf"), float("inf"), torch.where(x == 0, 0.0, float("nan")))
    return torch.where((x > 0) & (x < float("inf")), root, special.to(x.dtype))


def _nearest(x: Tensor, places: int) -> Tensor:
    """float32 without its last binary places."""
    bits = x.view(torch.int32)
    half = (1 << (places - 1)) - 1 + ((bits >> places) & 1)
    return ((bits + half) & -(1 << places)).view(torch.float32)
