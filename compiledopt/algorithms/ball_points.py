"""Points of the balls of norms to begin at, and what a norm asks of its parameters and keywords."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.ball_directions import KWARGS, NORMS

Pairs = tuple[tuple[str, Any], ...]


def check_norm(norm: str, kwargs: Pairs, params: Iterable[Tensor]) -> None:
    """Refuse a norm that is none, what it does not take, and parameters that have other dimensions. Raises: ValueError."""
    if norm not in NORMS:
        raise ValueError(f"Invalid norm value: {norm!r}; it is one of {', '.join(NORMS)}")
    if unknown := {name for name, _ in kwargs} - {*KWARGS.get(norm, ())}:
        known = ", ".join(KWARGS.get(norm, ())) or "nothing"
        raise ValueError(f"norm {norm!r} takes {known} in norm_kwargs, and not {min(unknown)!r}")
    least, most = NORMS[norm][1]
    for param in params:
        if not least <= param.ndim <= most:
            dims = f"{least}" if least == most else f"at least {least}"
            raise ValueError(f"norm {norm!r} is for parameters of {dims} dimensions, got one of shape {tuple(param.shape)}")


def pairs(kwargs: Any) -> Pairs:
    """Keywords as what a program can be known by."""
    return tuple(sorted(dict(kwargs or ()).items()))


def start(param: Tensor, norm: str, kwargs: dict[str, Any]) -> None:
    """Orthogonal matrices, signs, or normal numbers, each as long as a step; zeros for biases. Mutates: param."""
    if norm == "Auto":
        norm = "BiasRMS" if param.ndim < 2 else "Spectral" if param.ndim == 2 else "SpectralConv"
    if norm == "BiasRMS" or kwargs.pop("zero_init", False):
        param.zero_()
    elif norm in ("Spectral", "SpectralConv"):
        rows, columns, *kernel = param.shape
        size = math.sqrt(rows / columns if kwargs.get("normalized", True) else rows)
        blank = param.new_empty(rows, columns, dtype=torch.float64)
        made = torch.stack([torch.nn.init.orthogonal_(blank.clone()) for _ in range(math.prod(kernel))], -1)
        param.copy_((max(1.0, size) if kwargs.get("max", False) else size) / math.prod(kernel) * made.reshape(param.shape))
    else:
        update, size = NORMS[norm][0](torch.randn_like(param), **kwargs)
        param.copy_(size * update)
