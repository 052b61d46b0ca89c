"""The second moment of a gradient from the means of its rows and columns, as Adafactor's, and an update bounded by its size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compiledopt.algorithms.low_rank import moment
from compiledopt.algorithms.reduced import factor, root_mean_square, unfactored


def rows(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    """One number for each row of what a parameter's gradient is projected to."""
    return factor(-1)(moment(param, options))


def columns(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    return factor(-2)(moment(param, options))


def of_vectors(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    return unfactored(param)


def inverse_root(row: Any, col: Any) -> Any:
    """1 / √(r·c / mean r)."""
    return (row / row.mean(-2, keepdim=True)).rsqrt() * col.rsqrt()


def scaled(grad: Any, row: Any, col: Any, whole: Any, *, new: Any, tiny: Any, most: Any) -> tuple[Any, Any, Any, Any]:
    """(u / max(1, rms u / most), r, c, v):  r ← r + w·(mean of g² + ε over columns − r);  c likewise;  u = g / √(r·c / mean r),
    or with v of a vector  u = g / √v."""
    square = grad * grad + tiny
    if whole is None:
        row, col = row.lerp(square.mean(-1, keepdim=True), new), col.lerp(square.mean(-2, keepdim=True), new)
        update = inverse_root(row, col) * grad
    else:
        whole = whole.lerp(square, new)
        update = whole.rsqrt() * grad
    return update / (root_mean_square(update) / most).clamp_min(1.0), row, col, whole
