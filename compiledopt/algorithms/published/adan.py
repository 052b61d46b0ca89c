"""Adan."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BETA, BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def adan(param, grad, step, exp_avg, exp_avg_sq, exp_avg_diff, neg_pre_grad, *, first, lr, betas, eps, weight_decay, no_prox):
    beta1, beta2, beta3 = betas
    step = step + 1
    change = torch.where(first > 0, 0.0, grad + neg_pre_grad)
    exp_avg, exp_avg_diff = exp_avg.lerp(grad, 1 - beta1), exp_avg_diff.lerp(change, 1 - beta2)
    ahead = grad + beta2 * change
    exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * ahead * ahead
    update = lr / (1 - beta1**step) * exp_avg + lr * beta2 / (1 - beta2**step) * exp_avg_diff
    update = update / (exp_avg_sq.sqrt() / (1 - beta3**step) ** 0.5 + eps)
    decay = 1 + lr * weight_decay
    param = param * (2 - decay) - update if no_prox else (param - update) / decay
    return param, step, exp_avg, exp_avg_sq, exp_avg_diff, -grad


class Adan(Optimizer):
    """Adan: Adam with Nesterov's momentum, by averages of gradients and of their changes.

        d = g − g_previous (0 at first);  m ← β₁·m + (1 − β₁)·g;  e ← β₂·e + (1 − β₂)·d
        n ← β₃·n + (1 − β₃)·(g + β₂·d)²;  m̂ = m / (1 − β₁ᵗ),  ê = e / (1 − β₂ᵗ),  n̂ = n / (1 − β₃ᵗ)
        θ ← (θ − γ·(m̂ + β₂·ê) / (√n̂ + ε)) / (1 + γ·λ),  or with no_prox  (1 − γ·λ)·θ − γ·(m̂ + β₂·ê) / (√n̂ + ε)

    betas (β₁, β₂, β₃): three floats, 1 minus those of the paper. no_prox: decay as AdamW does.
    State: `exp_avg` (m), `exp_avg_diff` (e), `exp_avg_sq` (n) and `neg_pre_grad` (−g_previous), like the parameter.
    Good for: vision transformers, GANs and diffusion models, in fewer epochs; it bears large steps.
    Start: lr two to ten times AdamW's, weight_decay 0.02.
    Names: those of the authors' package (sail-sg/Adan) and timm's; clip with `max_grad_norm=1.0`.
    Source: Xie et al. 2022, arXiv:2208.06677.
    """

    rule = adan
    bounds = (*BOUNDS, BETA.element(2))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
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
