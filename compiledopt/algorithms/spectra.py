"""What rules take of symmetric matrices: roots, the largest eigenvalue. For what is not finite they give NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def finite_or_zero(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(the matrix, or zeros where it is not finite; whether it is): LAPACK raises for NaN, and in the middle of a step nothing
    may."""
    finite = torch.isfinite(matrix).all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(finite, matrix, 0.0), finite


def inverse_root(matrix: Tensor, root: int, eps: Any, more: Any = 0.0) -> Tensor:
    """(matrix + more)^(−1/root) of a positive matrix, whose eigenvalues are eps at least; NaN where it is not finite."""
    usable, finite = finite_or_zero(matrix)
    values, vectors = torch.linalg.eigh(usable)
    scaled = vectors * (values + more).clamp_min(eps).pow(-1.0 / root).unsqueeze(-2)
    return torch.where(finite, scaled @ vectors.mT, torch.nan)


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """That of a symmetric matrix from below: one step of power iteration from its longest column."""
    size = matrix.abs().amax()
    scaled = matrix / torch.where(size > 0, size, 1.0)
    longest = (scaled * scaled).sum(0).argmax().reshape(1)
    along_it = scaled.index_select(1, longest).mT @ scaled
    found = (along_it / along_it.square().sum().sqrt()) @ scaled
    return torch.where(size > 0, size * found.square().sum().sqrt(), size)
