"""Projections of a gradient to a low rank and back, from the left, from the right, or both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.matrices import as_dtype
from compiledopt.algorithms.spectra import finite_or_zero
from compiledopt.rules.products import add_product, product
from compiledopt.rules.random import Key, normal


def is_tall(param: Tensor) -> bool:
    return param.shape[0] >= param.shape[1]


def projected(grad: Tensor, from_left: Tensor | None, from_right: Tensor | None) -> Tensor:
    """Lᵀ·G·Rᵀ."""
    low = grad if from_left is None else product(as_dtype(from_left.mT, grad.dtype), grad)
    return low if from_right is None else product(low, as_dtype(from_right.mT, grad.dtype))


def spread(low: Tensor, from_left: Tensor | None, from_right: Tensor | None) -> Tensor:
    """L·x·R."""
    whole = low if from_left is None else product(as_dtype(from_left, low.dtype), low)
    return whole if from_right is None else product(whole, as_dtype(from_right, low.dtype))


def moved_by(param: Tensor, low: Tensor, from_left: Tensor | None, from_right: Tensor | None, kept: Any, size: Any) -> Tensor:
    """κ·θ − γ·L·x·R."""
    if from_right is None:
        assert from_left is not None
        return add_product(param, as_dtype(from_left, low.dtype), low, kept, -size)
    return add_product(param, spread(low, from_left, None), as_dtype(from_right, low.dtype), kept, -size)


def singular_vectors(grad: Tensor, from_left: Tensor | None, from_right: Tensor | None) -> tuple[Any, Any]:
    """The first of them, in the places of the old projections; NaN where the gradient is not finite."""
    usable, finite = finite_or_zero(grad)
    u, _, vh = torch.linalg.svd(usable, full_matrices=False)
    return (
        None if from_left is None else torch.where(finite, u[:, : from_left.shape[1]], torch.nan),
        None if from_right is None else torch.where(finite, vh[: from_right.shape[0]], torch.nan),
    )


def bias_corrected(lr: Any, step: Any, betas: Any, correct_bias: bool) -> Any:
    """γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)."""
    return lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step) if correct_bias else lr


def random(words: Key, old: Tensor | None) -> Tensor | None:
    """A random projection N(0, 1 / rank) in the place of the old one."""
    return None if old is None else normal(words, old.shape).to(old) / min(old.shape) ** 0.5


def length(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    return tensor.square().sum(dims, keepdim=True).sqrt()
