"""Grams."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def grams(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    size = abs(exp_avg) / (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    param = param * (1 - lr * weight_decay) - lr / (1 - beta1**step) * size * torch.sign(grad)
    return param, step, exp_avg, exp_avg_sq


class Grams(Optimizer):
    """Grams: as far as Adam, in the direction of the gradient.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        θ ← (1 − γ·λ)·θ − γ·sign(g)·|m̂| / (√v̂ + ε)

    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what AdamW trains, where its momentum points away from the gradient.
    Start: all as AdamW's.
    Names: pytorch_optimizer's, which are the authors' (Gunale0926/Grams).
    Source: Cao et al. 2024, arXiv:2412.17107.
    """

    rule = grams

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
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
