"""DiffGrad."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def diffgrad(param, grad, step, exp_avg, exp_avg_sq, previous_grad, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    grad = with_decay(param, grad, weight_decay)
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    friction = 1 / (1 + torch.exp(-abs(previous_grad - grad)))
    denominator = exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
    return param - lr / (1 - beta1**step) * friction * exp_avg / denominator, step, exp_avg, exp_avg_sq, grad


class DiffGrad(Optimizer):
    """DiffGrad: Adam that slows down where gradients hardly change.

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  ξ = 1 / (1 + exp(−|g − g_previous|))
        θ ← θ − γ·ξ·m̂ / (√v̂ + ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    State: `exp_avg` (m), `exp_avg_sq` (v) and `previous_grad` (g_previous), like the parameter.
    Good for: convolutional nets, where Adam overshoots near a minimum.
    Start: all as Adam's.
    Names: those of the authors' package (shivram1987/diffGrad).
    Source: Dubey et al. 2020, arXiv:1909.11015.
    """

    rule = diffgrad

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
