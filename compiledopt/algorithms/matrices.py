"""What rules with a matrix for each dimension share: the matrices, and products along dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiledopt.backends.layout import HALF
from compiledopt.rules.products import product


def dimensions(param: Any) -> int:
    return int(param.ndim)


def wide(param: Tensor) -> torch.dtype:
    """What a matrix is kept in: eigenvectors and triangular factors say nothing in a half type."""
    return torch.float32 if param.dtype in HALF else param.dtype


def square(option: str, start: float = 0.0) -> Callable[..., Tensor | None]:
    """Matrices of n × n, `start` on their diagonal, for dimensions of n; None where n is more than an option says."""

    def make(param: Tensor, index: int, options: dict[str, Any]) -> Tensor | None:
        size = param.shape[index]
        if size > options[option]:
            return None
        return start * torch.eye(size, dtype=wide(param), device=param.device)

    return make


def along(tensor: Tensor, matrices: Sequence[Tensor | None], back: bool = False) -> Tensor:
    """The tensor times a matrix along each dimension, Qᵀ·x of each line x; `back`: Q·x. A vector is the diagonal of one, None
    leaves a dimension as it is.

    Each product puts its dimension last, so that after all of them the order is the old one.
    """
    for matrix in matrices:
        if matrix is None or matrix.ndim == 1:
            tensor = tensor.movedim(0, -1) if matrix is None else tensor.movedim(0, -1) * matrix.to(tensor.dtype)
        elif tensor.ndim == 1:
            tensor = product(tensor.unsqueeze(0), turned_by(matrix, back, tensor.dtype)).squeeze(0)
        elif tensor.ndim == 2:
            tensor = product(tensor.mT, turned_by(matrix, back, tensor.dtype))
        else:
            tensor = torch.tensordot(tensor, matrix.to(tensor.dtype), dims=([0], [1 if back else 0]))
    return tensor


def turned_by(matrix: Tensor, back: bool, dtype: torch.dtype) -> Tensor:
    """What a line is multiplied by, from the right."""
    return as_dtype(matrix.mT if back else matrix, dtype)


def as_dtype(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Itself where it has that dtype: then who runs a rule knows it again."""
    return matrix if matrix.dtype == dtype else matrix.to(dtype)
