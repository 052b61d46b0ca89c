"""Pieces that codecs are made of, each one or two instructions of a vector."""

from __future__ import annotations

from typing import Any

import torch


def at_most(x: Any, bound: Any) -> Any:
    """The smaller one. torch.clamp hands on NaN, which takes three instructions for one."""
    return torch.where(x < bound, x, bound)


def at_least(x: Any, bound: float) -> Any:
    """The larger one."""
    return torch.where(x > bound, x, bound)


def signed(number: float, x: Any) -> Any:
    """±number, with the sign of x."""
    return torch.copysign(torch.full_like(x, number), x)


def share_of(size: Any, scale: Any) -> Any:
    """size / scale, 0 where that is. Divided for each element: the inverse of a tiny scale is infinite."""
    return size / torch.where(scale > 0, scale, 1.0)
