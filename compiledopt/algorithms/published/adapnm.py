"""AdaPNM."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), optional={"max_exp_avg_sq": "ams_bound"})
@with_maximize
def adapnm(param, grad, step, exp_avg, neg_exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr, betas, weight_decay, ams_bound, eps):
    beta1, beta2, beta0 = betas
    step = step + 1
    momentum = exp_avg.lerp(grad, 1 - beta1**2)
    exp_avg_sq = largest = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    if ams_bound:
        largest = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    denominator = (largest.sqrt() + eps) / (1 - beta2**step) ** 0.5
    size = lr / (1 - beta1**step) / ((1 + beta0) ** 2 + beta0**2) ** 0.5
    update = size * ((1 + beta0) * momentum - beta0 * neg_exp_avg) / denominator
    return param * (1 - lr * weight_decay) - update, step, neg_exp_avg, momentum, exp_avg_sq, max_exp_avg_sq


class AdaPNM(Optimizer):
    """AdaPNM: Adam with the difference of two momentums, each of every other gradient.

        m₊ ← β₁²·m₊ + (1 − β₁²)·g;  v ← β₂·v + (1 − β₂)·g²;  u = ((1 + β₀)·m₊ − β₀·m₋) / √((1 + β₀)² + β₀²)
        θ ← (1 − γ·λ)·θ − γ / (1 − β₁ᵗ)·√(1 − β₂ᵗ)·u / (√v + ε);  m₊, m₋ ← m₋, m₊

    betas (β₁, β₂, β₀): three floats, the third ≥ 0. ams_bound: the largest v so far.
    State: `exp_avg` (m₊, the one that the next gradient goes to), `neg_exp_avg` (m₋), `exp_avg_sq` (v) and with ams_bound
        `max_exp_avg_sq`, like the parameter.
    Good for: what Adam trains and SGD generalizes on: images, noisy labels.
    Start: lr and weight_decay as AdamW's.
    Names: pytorch_optimizer's without `weight_decouple`, which do not exchange the momentums but take turns.
    Source: Xie et al. 2021, arXiv:2103.17182.
    """

    rule = adapnm
    bounds = (*BOUNDS, Bound("betas", "Invalid beta parameter at index 2", index=2))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 1.0),
        weight_decay: float = 0.0,
        ams_bound: bool = True,
        eps: float = 1e-8,
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
