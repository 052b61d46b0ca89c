"""What the algorithms share that find their own rate by D-Adaptation: the guess of the distance, and how it grows."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.arguments import Bound, at_start
from compiledopt.optimizer import Optimizer
from compiledopt.rules.totals import total

D0 = Bound("d0", "Invalid d0 value", above=0.0, least=None)


def grown(d: Any, guess: Any, growth_rate: Any) -> Any:
    """d ← max(d, min(d̂, d·growth_rate))."""
    return torch.maximum(d, torch.minimum(guess, d * growth_rate))


def guessed(distance: Any, length: Any, d: Any) -> Any:
    """d̂, which is d while all gradients were zero."""
    return torch.where(length > 0, distance / length, d)


def averaged_distance(
    grad: Any, s: Any, denominator: Any, gsq_weighted: Any, d: Any, *, step: Any, beta: Any, growth_rate: Any
) -> tuple[Any, Any, Any]:
    """(s, r, d) where gradients are averaged:

    s ← β·s + (1 − β)·η·g;  r ← β·r + (1 − β)·Σ η²·g²/w;  d̂ = (Σ s²/w / (1 − β) − r) / Σ|s|.
    """
    s = beta * s + step * (1 - beta) * grad
    gsq_weighted = beta * gsq_weighted + total(step**2 * grad * grad / denominator) * (1 - beta)
    distance = total(s * s / denominator) / (1 - beta) - gsq_weighted
    return s, gsq_weighted, grown(d, guessed(distance, total(torch.abs(s)), d), growth_rate)


class OneRate(Optimizer):
    """One distance for the whole model, so that its groups have one rate, or 0."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises: ValueError in the authors' words."""
        super()._check_group(group)
        first, lr = (float(at_start(one["lr"])) for one in (self.param_groups[0], group))
        if lr not in (first, 0.0):
            words = "Setting different lr values in different parameter groups is only supported for values of 0"
            raise ValueError(f"{words}, got {lr} beside {first}")
