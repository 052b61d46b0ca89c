"""Triangular factors, learned so that a gradient times them is white."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.across import divided, gram
from compiledopt.algorithms.matrices import along, wide
from compiledopt.algorithms.spectra import largest_eigenvalue

TINY = torch.finfo(torch.bfloat16).tiny


def factor(param: Tensor, index: int, options: dict[str, Any]) -> Tensor:
    """A triangular factor for a dimension, or the diagonal of one."""
    dims, mode, sizes = max(param.ndim, 1), options["memory_save_mode"], list(param.shape)
    size = sizes[index] if sizes else 1
    longest = size not in sizes[index + 1 :] and size == max(sizes, default=0)
    smart = mode == "smart_one_diag" and dims > 1 and sizes.count(size) == 1
    saved = mode == "all_diag" or (longest and (mode == "one_diag" or smart))
    diagonal = saved or size == 1 or size > options["max_size_triangular"] or param.ndim < options["min_ndim_triangular"]
    scale: float = options["precond_init_scale"] ** (1 / dims)
    if diagonal:
        return torch.full((size,) if param.ndim else (), scale, dtype=wide(param), device=param.device)
    return scale * torch.eye(size, dtype=wide(param), device=param.device)


def learned(factors: list[Tensor], grad: Tensor, noise: Tensor, rate: Any) -> list[Tensor]:
    """The factors, balanced and one step further to where Q·g is as white as the noise."""
    sizes = [factor.abs().amax() for factor in factors]
    mean = math.prod(sizes[1:], start=sizes[0]) ** (1 / len(sizes))
    factors = [factor * (mean / size) for factor, size in zip(factors, sizes, strict=True)]
    ahead, behind, new = along(grad, factors, back=True), divided(noise, factors), []
    for index, factor in enumerate(factors):
        if factor.ndim == 1:
            others = [dim for dim in range(grad.ndim) if dim != index]
            one, two = ((x * x).sum(others) if others else x * x for x in (ahead, behind))
            new.append(factor - rate * (one - two) * factor / ((one + two).abs().amax() + TINY))
        else:
            one, two = gram(ahead, index), gram(behind, index)
            new.append(factor - rate * torch.triu(one - two) / (largest_eigenvalue(one + two) + TINY) @ factor)
    return new
