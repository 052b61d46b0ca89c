"""What several rules take of a whole parameter or of its rows, and what such states start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def trust_ratio(wanted: Any, found: Any, more: Any = 0.0) -> Any:
    """wanted / (found + more) of two norms, and 1 where either is 0."""
    return torch.where((wanted > 0) & (found > 0), wanted / (found + more), 1.0)


def mean_square(tensor: Any) -> Any:
    return (tensor * tensor).mean()


def root_mean_square(tensor: Any) -> Any:
    return mean_square(tensor).sqrt()


def over_rest(tensor: Any, reduction: str) -> Any:
    """A reduction over all dimensions but the first, which are kept with size 1; over all of a vector."""
    return getattr(tensor, reduction)(dim=tuple(range(min(1, max(tensor.ndim - 1, 0)), tensor.ndim)), keepdim=True)


def balanced(param: Any) -> Any:
    """Each row with a mean of 0 and a length of 1, but for one whose elements are all alike."""
    apart = param - over_rest(param, "mean")
    length = over_rest(apart * apart, "sum").sqrt()
    return torch.where(length > 0, apart / torch.where(length > 0, length, 1.0), param)


def over_all(tensor: Any, reduction: str) -> Any:
    """A reduction over all dimensions, which are kept with size 1."""
    return getattr(tensor, reduction)(dim=tuple(range(tensor.ndim)), keepdim=True)


def factor(other: int) -> Callable[[Tensor], Tensor | None]:
    """A state like a matrix, but for one element along dimension `other` (-1 or -2)."""

    def make(param: Tensor) -> Tensor | None:
        shape = [1 if i == param.dim() + other else n for i, n in enumerate(param.shape)]
        return None if param.dim() < 2 else param.new_zeros(shape)

    return make


def unfactored(param: Tensor) -> Tensor | None:
    """A state like the parameter where it has no rows and columns."""
    return torch.zeros_like(param, memory_format=torch.preserve_format) if param.dim() < 2 else None


def one_number(param: Tensor) -> Tensor:
    """A state of one number, with the parameter's dimensions."""
    return param.new_zeros((1,) * param.dim())
