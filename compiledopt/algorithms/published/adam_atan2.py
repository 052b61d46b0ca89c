"""AdamAtan2."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("steps",))
@with_maximize
def adam_atan2(param, grad, steps, exp_avg, exp_avg_sq, *, lr, betas, weight_decay, a, b):
    beta1, beta2 = betas
    steps = steps + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    update = torch.atan2(exp_avg / (1 - beta1**steps), b * (exp_avg_sq / (1 - beta2**steps)).sqrt())
    return param * (1 - lr * weight_decay) - lr * a * update, steps, exp_avg, exp_avg_sq


class AdamAtan2(Optimizer):
    """AdamAtan2: Adam with an arctangent in place of the division, and so without ε.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        θ ← (1 − γ·λ)·θ − γ·a·atan2(m̂, b·√v̂)

    a, b: floats; 1.27 and 1 make steps of about Adam's size.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; `steps` (t), a 0-dim float.
    Good for: what Adam trains, at any scale of the gradients: there is no ε to tune.
    Start: lr and weight_decay as AdamW's.
    Names: adam-atan2-pytorch's, whose decay is γ / γ₀·λ of the first γ₀.
    Source: Everett et al. 2024, arXiv:2407.05872.
    """

    rule = adam_atan2
    bounds = (*BOUNDS, Bound("a", "Invalid a value"), Bound("b", "Invalid b value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        a: float = 1.27,
        b: float = 1.0,
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
