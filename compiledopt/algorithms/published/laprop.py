"""LaProp."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "exp_avg_lr_1", "exp_avg_lr_2"))
@with_maximize
def laprop(param, grad, step, exp_avg, exp_avg_lr_1, exp_avg_lr_2, exp_avg_sq, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    exp_avg_lr_1 = beta1 * exp_avg_lr_1 + (1 - beta1) * lr
    exp_avg_lr_2 = beta2 * exp_avg_lr_2 + (1 - beta2)
    exp_avg = beta1 * exp_avg + lr * (1 - beta1) * grad / (exp_avg_sq.sqrt() / exp_avg_lr_2**0.5 + eps)
    size = torch.where(exp_avg_lr_1 > 0, lr / exp_avg_lr_1, 0.0)
    param = (param - size * exp_avg) * (1 - lr * weight_decay)
    return param, step + 1, exp_avg, exp_avg_lr_1, exp_avg_lr_2, exp_avg_sq


class LaProp(Optimizer):
    """LaProp: momentum of scaled gradients, where Adam scales the momentum of gradients.

        v ← β₂·v + (1 − β₂)·g²;  c₁ ← β₁·c₁ + (1 − β₁)·γ;  c₂ ← β₂·c₂ + 1 − β₂
        m ← β₁·m + (1 − β₁)·γ·g / (√(v / c₂) + ε);  θ ← (1 − γ·λ)·(θ − γ·m / c₁)

    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter, `exp_avg_lr_1` (c₁) and `exp_avg_lr_2` (c₂), 0-dim.
    Good for: noisy gradients and small β₂, where Adam diverges: β₁ and β₂ may be chosen freely.
    Start: lr 4e-4, other options as AdamW's.
    Names: timm's, which are the authors' (Z-T-WANG/LaProp-Optimizer) without `amsgrad` and `centered`.
    Source: Ziyin et al. 2020, arXiv:2002.04839.
    """

    rule = laprop

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 4e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
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
