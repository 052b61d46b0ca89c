"""AdaMod."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BETA, BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def adamod(param, grad, step, exp_avg, exp_avg_sq, exp_avg_lr, *, lr, betas, weight_decay, eps):
    beta1, beta2, beta3 = betas
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, (beta1, beta2))
    size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step) / (exp_avg_sq.sqrt() + eps)
    exp_avg_lr = beta3 * exp_avg_lr + (1 - beta3) * size
    return param * (1 - lr * weight_decay) - torch.minimum(size, exp_avg_lr) * exp_avg, step, exp_avg, exp_avg_sq, exp_avg_lr


class AdaMod(Optimizer):
    """AdaMod: Adam whose step sizes are bounded by their own long average.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  η = γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ) / (√v + ε)
        s ← β₃·s + (1 − β₃)·η;  θ ← (1 − γ·λ)·θ − min(η, s)·m

    betas (β₁, β₂, β₃): three floats.
    State: `exp_avg` (m), `exp_avg_sq` (v) and `exp_avg_lr` (s), like the parameter.
    Good for: transformers without a warm-up: the average is one.
    Start: lr as Adam's, β₃ 0.999 to 0.9999.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Ding et al. 2019, arXiv:1910.12249.
    """

    rule = adamod
    bounds = (*BOUNDS, BETA.element(2))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.99, 0.9999),
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
