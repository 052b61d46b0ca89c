"""Shampoo's matrices for the blocks of a parameter: what they start from, how they follow gradients, what they make of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.in_blocks import cut, joined, sizes
from compiledopt.algorithms.matrices import wide
from compiledopt.algorithms.merging import merged
from compiledopt.algorithms.projections import length
from compiledopt.algorithms.spectra import inverse_root


def seen(param: Any, options: dict[str, Any]) -> tuple[int, ...]:
    """A parameter's shape, with neighbouring dimensions as one where that is wanted, for as long as a block is not longer; one
    without elements is seen as if it had some."""
    shape = tuple(max(size, 1) for size in param.shape)
    return merged(shape, options["max_preconditioner_dim"]) if options["use_merge_dims"] or not shape else shape


def matrices(start: float) -> Callable[[Tensor, int, dict[str, Any]], Tensor]:
    """For a dimension a matrix for each block, `start` on their diagonals."""

    def make(param: Tensor, index: int, options: dict[str, Any]) -> Tensor:
        counts, lengths = sizes(seen(param, options), options["max_preconditioner_dim"])
        return start * torch.eye(lengths[index], dtype=wide(param), device=param.device).repeat(math.prod(counts), 1, 1)

    return make


def followed(factors: Sequence[Tensor], tensor: Tensor, most: int, beta: Any) -> list[Tensor]:
    """β·F + w·the products of what lies across each dimension of each block, w = 1 for β = 1."""
    blocks = cut(tensor.to(factors[0].dtype), most)
    rows = [blocks.movedim(1 + dim, 1).flatten(2) if blocks.ndim > 2 else blocks.unsqueeze(2) for dim in range(len(factors))]
    return [
        beta * old + torch.where(beta < 1, 1 - beta, 1.0) * (each @ each.mT) for old, each in zip(factors, rows, strict=True)
    ]


def roots(factors: Sequence[Tensor], size: Any, epsilon: Any) -> list[Tensor]:
    """(F / size + ε·1)^(−1/(2·dimensions))."""
    return [inverse_root(each / size, 2 * len(factors), epsilon, epsilon) for each in factors]


def preconditioned(tensor: Tensor, factors: Sequence[Tensor], most: int, graft: Tensor | None) -> Tensor:
    """A tensor times a symmetric matrix along each dimension of each block. graft: what each block is made as long as."""
    blocks = cut(tensor.to(factors[0].dtype), most)
    for factor in factors:
        turned = blocks.movedim(1, -1)
        blocks = (turned.reshape(blocks.shape[0], -1, factor.shape[-1]) @ factor).reshape(turned.shape)
    dims = tuple(range(1, blocks.ndim))
    if graft is not None:
        blocks = blocks * (length(cut(graft, most), dims) / (length(blocks, dims) + 1e-16))
    return joined(blocks, tensor.shape, most)
