"""Bases of eigenvectors: the first, and how they follow their matrices. Of what is not finite they are NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.matrices import along
from compiledopt.algorithms.spectra import finite_or_zero


def eigenbasis(matrix: Tensor) -> Tensor:
    """Eigenvectors as columns, the largest first; NaN where the matrix is not finite."""
    usable, finite = finite_or_zero(matrix)
    return torch.where(finite, torch.linalg.eigh(usable).eigenvectors.flip(-1), torch.nan)


def renewed_basis(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One round of power iteration from a basis: (the new one, in the order of the eigenvalues, and that order)."""
    usable, finite = finite_or_zero(matrix)
    product = usable @ basis
    order = (basis * product).sum(-2).argsort(descending=True)
    return torch.where(finite, torch.linalg.qr(product.index_select(-1, order)).Q, torch.nan), order


def turned(matrices: list[Any], bases: list[Any], exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[list[Any], Tensor, Tensor]:
    """(new bases, the first moment turned to them, the second in their order)."""
    turns: list[Any] = [None] * len(bases)
    new = list(bases)
    for index, matrix in enumerate(matrices):
        if matrix is not None:
            new[index], order = renewed_basis(matrix, bases[index])
            turns[index], exp_avg_sq = bases[index].mT @ new[index], exp_avg_sq.index_select(index, order)
    return new, along(exp_avg, turns), exp_avg_sq
