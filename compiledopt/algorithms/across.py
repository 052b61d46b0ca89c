"""Products of what lies across a dimension, and divisions along all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.linalg import solve_triangular

from compiledopt.rules.products import product


def gram(tensor: Tensor, dim: int) -> Tensor:
    """The products of what lies across a dimension: G·Gᵀ for the first of a matrix, Gᵀ·G for the second."""
    rows = rows_across(tensor, dim)
    return product(rows, rows.mT)


def rows_across(tensor: Tensor, dim: int) -> Tensor:
    """A matrix with a row for each place along a dimension."""
    if tensor.ndim <= 2:
        return tensor.mT if dim else tensor if tensor.ndim == 2 else tensor.unsqueeze(-1)
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
