"""What rules with a matrix for each dimension share: the matrices, and products along a dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from compiledopt.algorithms.parts import moved
from compiledopt.backends.layout import HALF
from compiledopt.rules.products import add_product


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
        elif tensor.ndim == 2:
            tensor = tensor.mT @ _turned(matrix, back, tensor.dtype)
        else:
            tensor = torch.tensordot(tensor, matrix.to(tensor.dtype), dims=([0], [1 if back else 0]))
    return tensor


def _turned(matrix: Tensor, back: bool, dtype: torch.dtype) -> Tensor:
    return (matrix.mT if back else matrix).to(dtype)


def moved_along(
    param: Tensor, update: Tensor, matrices: Sequence[Tensor | None], kept: Any, size: Any, back: bool = False
) -> Tensor:
    """κ·θ − γ·u, of u as `along` matrices: the last product of a matrix is added to where the parameter stands."""
    last = matrices[-1]
    if param.ndim == 2 and last is not None and last.ndim == 2:
        return add_product(param, along(update, matrices[:1], back).mT, _turned(last, back, update.dtype), kept, -size)
    return moved(param, along(update, matrices, back), kept=kept, size=size)[0]  # type: ignore[no-any-return]


def gram(tensor: Tensor, dim: int) -> Tensor:
    """The products of what lies across a dimension: G·Gᵀ for the first of a matrix, Gᵀ·G for the second."""
    rows = _rows(tensor, dim)
    return rows @ rows.mT


def add_gram(total: Tensor, tensor: Tensor, dim: int, beta: Any, alpha: Any) -> Tensor:
    """β·total + α·the products of what lies across a dimension."""
    rows = _rows(tensor, dim)
    return add_product(total, rows, rows.mT, beta, alpha)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    if tensor.ndim == 2:
        return tensor.mT if dim else tensor
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], math.prod((*tensor.shape[:dim], *tensor.shape[dim + 1 :])))


def divided(tensor: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Q⁻ᵀ·x of each line x, along each dimension, of triangular matrices and diagonals."""
    for factor in factors:
        rows = tensor.movedim(0, -1)
        flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
        tensor = (flat / factor if factor.ndim == 1 else solve_triangular(factor, flat, upper=True, left=False)).reshape(
            rows.shape
        )
    return tensor
