"""DualAdam."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def dual_adam(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, switch_rate, weight_decay):
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    left = 1 - step * switch_rate
    inverse = torch.where(left >= switch_rate, left.clamp_min(0.0), 0.0)
    root = (exp_avg_sq / (1 - betas[1] ** step)).sqrt() + eps
    update = exp_avg / (1 - betas[0] ** step) * ((1 - inverse) / root + inverse * root)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg, exp_avg_sq


class DualAdam(Optimizer):
    """DualAdam: Adam that at first multiplies by the root it divides by later, so that it leaves sharp minima.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  r = √v̂ + ε;  α = max(0, 1 − ξ·t), and 0 where that is less than ξ
        θ ← (1 − γ·λ)·θ − γ·m̂·((1 − α) / r + α·r)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    switch_rate (ξ): float ≥ 0, one over the steps until it is AdamW.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: images and fine-tuning, where Adam's minima are sharp.
    Start: all as AdamW's; switch_rate one over a tenth of the steps.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Shi et al. 2026, arXiv:2603.07122.
    """

    rule = dual_adam
    bounds = (*BOUNDS, Bound("switch_rate", "Invalid switch_rate value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        switch_rate: float = 0.01,
        weight_decay: float = 0.0,
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
