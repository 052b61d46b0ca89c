"""AdaBound."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import moments, with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack, at_start
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), optional={"max_exp_avg_sq": "amsbound"}, branches=("weight_decay",))
@with_maximize
def adabound(
    param, grad, step, exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr, betas, final_lr, gamma, eps, weight_decay, amsbound, base_lr
):
    step = step + 1
    exp_avg, exp_avg_sq = moments(with_decay(param, grad, weight_decay), exp_avg, exp_avg_sq, betas)
    largest = exp_avg_sq
    if amsbound:
        largest = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    size = lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step) / (largest.sqrt() + eps)
    final = final_lr * torch.where(base_lr > 0, lr / base_lr, 1.0)
    lower, upper = final * (1 - 1 / (gamma * step + 1)), final * (1 + 1 / (gamma * step))
    size = torch.minimum(torch.maximum(size, lower), upper)
    return param - size * exp_avg, step, exp_avg, exp_avg_sq, max_exp_avg_sq


class AdaBound(Optimizer):
    """AdaBound: Adam at first, SGD in the end: each step size is clipped to bounds that close.

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²
        η = clip(γ·√(1 − β₂ᵗ) / ((1 − β₁ᵗ)·(√v + ε)), Γ·(1 − 1 / (ρ·t + 1)), Γ·(1 + 1 / (ρ·t)));  θ ← θ − η·m

    final_lr (Γ): float, SGD's, at the first lr: it follows as lr changes, unless that was 0.
    gamma (ρ): float, how fast the bounds close.
    amsbound: AMSBound, which has the largest v so far.
    State: `exp_avg` (m), `exp_avg_sq` (v), and `max_exp_avg_sq` with amsbound, like the parameter.
    Good for: what SGD generalizes better on than Adam, without Adam's tuning at the start.
    Start: lr as Adam's, final_lr as SGD's (0.1).
    Names: those of the authors' package (Luolc/AdaBound); `base_lr`, a group's first lr, is kept in the group.
    Source: Luo et al. 2019, arXiv:1902.09843.
    """

    rule = adabound
    bounds = (
        *BOUNDS,
        Bound("final_lr", "Invalid final learning rate"),
        Bound("gamma", "Invalid gamma parameter", below=1.0),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsbound: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group keeps its first `lr` as `base_lr`. Mutates: `param_groups`."""
        param_group.setdefault("base_lr", float(at_start(param_group.get("lr", self.defaults["lr"]))))
        super().add_param_group(param_group)
