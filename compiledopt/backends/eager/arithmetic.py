"""Operations of torch's that round otherwise than kernels do, as those do: so that codes are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


def multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a·b + c with one rounding, in float64, where products of float32 are exact; what is then rounded twice is another number
    than the instruction's once in 2^29."""
    return (a.double() * b.double() + c.double()).to(a.dtype)


def lerp(start: torch.Tensor, end: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As Inductor writes it for the CPU; torch's operator has one rounding less there."""
    from_end = weight.abs() >= 0.5
    return torch.where(from_end, weight - 1, weight) * (end - start) + torch.where(from_end, end, start)


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """As IEEE 754 has it: torch's operator is MKL's on the CPU, off by a unit in the last place at times."""
    return x.double().sqrt().to(x.dtype)


AS_KERNELS: Mapping[str, Callable[..., torch.Tensor]] = {"fma": multiply_add, "lerp": lerp, "sqrt": sqrt}
