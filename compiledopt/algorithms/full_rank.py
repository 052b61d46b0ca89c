"""What Conda has of its own: projections to the rank of a matrix, and Adam's moments, of which one is seen in them alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from compiledopt.rules.pieces import piece


def of_full_rank(make: Callable[..., Any]) -> Callable[[Tensor, dict[str, Any]], Any]:
    """A state of a projection to the rank of the matrix; as without one where proj_type is None."""
    return lambda param, options: make(param, {**options, "rank": None if options["proj_type"] is None else sys.maxsize})


@piece("direction", "exp_avg_sq")
def scaled(exp_avg: Any, grad: Any, exp_avg_sq: Any, *, beta: Any, eps: Any) -> tuple[Any, Any]:
    """(m / (√v + ε), v)."""
    exp_avg_sq = beta * exp_avg_sq + (1 - beta) * grad * grad
    return exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg_sq
