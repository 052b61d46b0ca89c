"""RAdam."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, rectification, with_either_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def radam(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay, decoupled_weight_decay):
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_weight_decay)
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    rectifier, known = rectification(step, beta2)
    size = lr / (1 - beta1**step)
    rectified = size * rectifier * exp_avg / (exp_avg_sq.sqrt() + eps)
    return param - torch.where(known, rectified, size * exp_avg), step, exp_avg, exp_avg_sq


class RAdam(Optimizer):
    """RAdam: Adam whose adaptive step waits until its variance is known.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  ρ∞ = 2 / (1 − β₂) − 1;  ρ = ρ∞ − 2·t·β₂ᵗ / (1 − β₂ᵗ)
        θ ← θ − γ·m̂·r·√(1 − β₂ᵗ) / (√v + ε)  if ρ > 5, else  θ ← θ − γ·m̂
        with  m̂ = m / (1 − β₁ᵗ),  r² = (ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ)

    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Source: Liu et al. 2020, arXiv:1908.03265.
    """

    rule = radam

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
