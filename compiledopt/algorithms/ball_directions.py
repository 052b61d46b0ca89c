"""Where the balls of norms lie furthest along a gradient: the linear minimization oracles of Scion, one for each norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from compiledopt.algorithms.muon import COEFFICIENTS, orthogonalize
from compiledopt.rules.spellings import op

EPS = 1e-8  # of the authors' quotients
Direction = tuple[Any, Any]  # a tensor, and a number that it is to be multiplied by


def _of_lines(grad: Any, dim: int) -> Any:
    """√Σ g² of each line along a dimension."""
    return (grad * grad).sum(dim=dim, keepdim=True).sqrt()


def _columns(grad: Any, normalized: bool = False, transpose: bool = False) -> Direction:
    dim, rows, columns = (-1, *reversed(grad.shape)) if transpose else (-2, *grad.shape)
    size = _of_lines(grad, dim) / op("sqrt", rows)
    return grad / ((size * columns if normalized else size) + EPS), 1.0


def _rows(grad: Any, normalized: bool = True, transpose: bool = False) -> Direction:
    dim, columns = (-2, grad.shape[0]) if transpose else (-1, grad.shape[1])
    size = _of_lines(grad, dim)
    return grad / ((size * op("sqrt", columns) if normalized else size) + EPS), 1.0


def _bias(grad: Any) -> Direction:
    if grad.ndim == 0:
        return grad / (abs(grad) + EPS), 1.0
    return grad / ((grad * grad).mean(dim=0, keepdim=True).sqrt() + EPS), 1.0


def _sign(grad: Any, zero_init: bool = False, normalized: bool = True) -> Direction:
    return grad.sign(), 1 / grad.shape[1] if normalized else 1.0


def _spectral(grad: Any, max: bool = False, normalized: bool = True, steps: int = 5) -> Direction:
    rows, columns = grad.shape
    size = op("sqrt", rows / columns if normalized else rows)
    return orthogonalize(grad, COEFFICIENTS, steps, 1e-7), op("maximum", 1.0, size) if max else size


def _spectral_of_kernels(grad: Any, steps: int = 5) -> Direction:
    rows, columns, *kernel = grad.shape
    update = orthogonalize(grad.reshape(rows, -1), COEFFICIENTS, steps, 1e-7).reshape(grad.shape)
    return update, op("sqrt", rows / columns) / math.prod(kernel)


def _auto(grad: Any) -> Direction:
    return _bias(grad) if grad.ndim < 2 else _spectral(grad) if grad.ndim == 2 else _spectral_of_kernels(grad)


# {norm: its direction, and of how many dimensions a parameter must be}
NORMS: dict[str, tuple[Callable[..., Direction], tuple[int, float]]] = {
    "Auto": (_auto, (0, math.inf)),
    "SpectralConv": (_spectral_of_kernels, (3, math.inf)),
    "ColNorm": (_columns, (2, 2)),
    "RowNorm": (_rows, (2, 2)),
    "BiasRMS": (_bias, (0, math.inf)),
    "Spectral": (_spectral, (2, 2)),
    "Sign": (_sign, (2, 2)),
}
KWARGS = {
    "ColNorm": ("normalized", "transpose"),
    "RowNorm": ("normalized", "transpose"),
    "Sign": ("normalized", "zero_init"),
    "Spectral": ("max", "normalized", "steps"),
    "SpectralConv": ("steps",),
}
