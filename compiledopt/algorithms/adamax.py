"""Adamax."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def adamax(param, grad, step, exp_avg, exp_inf, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    grad = with_decay(param, grad, weight_decay)
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    exp_inf = torch.maximum(beta2 * exp_inf, grad.abs() + eps)
    return param - lr / (1 - beta1**step) * exp_avg / exp_inf, step, exp_avg, exp_inf


class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm.

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  u ← max(β₂·u, |g| + ε);  θ ← θ − γ / (1 − β₁ᵗ) · m / u

    State: `exp_avg` (m) and `exp_inf` (u), like the parameter.
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    rule = adamax

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
