"""What rules for matrices share: a direction, and the step that way; sums of products, added where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compiledopt.algorithms.across import rows_across
from compiledopt.algorithms.matrices import along, turned_by
from compiledopt.algorithms.parts import moments
from compiledopt.rules.pieces import piece
from compiledopt.rules.products import add_product


@piece("direction", "exp_avg", "exp_avg_sq")
def adam_direction(grad: Any, exp_avg: Any, exp_avg_sq: Any, *, betas: Any, eps: Any) -> tuple[Any, Any, Any]:
    """(m / (√v + ε), m, v)."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    return exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq


@piece("param")
def moved(param: Any, update: Any, *, kept: Any, size: Any) -> Any:
    """(κ·θ − γ·u,)."""
    return kept * param - size * update.to(param.dtype)


def of_size_one(update: Any) -> Any:
    """u / rms u."""
    return update / (1e-30 + (update * update).mean().sqrt())


def moved_along(
    param: Tensor, update: Tensor, matrices: Sequence[Tensor | None], kept: Any, size: Any, back: bool = False
) -> Tensor:
    """κ·θ − γ·u, of u as `along` matrices: the last product of a matrix is added to where the parameter stands."""
    last = matrices[-1]
    if param.ndim == 2 and last is not None and last.ndim == 2:
        return add_product(param, along(update, matrices[:1], back).mT, turned_by(last, back, update.dtype), kept, -size)
    return moved(param, along(update, matrices, back), kept=kept, size=size)[0]  # type: ignore[no-any-return]


def add_gram(total: Tensor, tensor: Tensor, dim: int, beta: Any, alpha: Any) -> Tensor:
    """β·total + α·the products of what lies across a dimension."""
    rows = rows_across(tensor, dim)
    return add_product(total, rows, rows.mT, beta, alpha)
