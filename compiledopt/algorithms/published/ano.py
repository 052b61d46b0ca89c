"""Ano."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def ano(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, weight_decay, logarithmic_schedule, eps):
    beta1, beta2 = betas
    step, square = step + 1, grad * grad
    if logarithmic_schedule:
        beta1 = 1 - 1 / torch.log(step.clamp_min(2.0))
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * torch.sign(square - exp_avg_sq) * square
    update = abs(grad) * torch.sign(exp_avg) / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg, exp_avg_sq


class Ano(Optimizer):
    """Ano: as far as the gradient says, in the direction of a momentum.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·sign(g² − v)·g²;  θ ← (1 − γ·λ)·θ − γ·|g|·sign(m) / (√(v / (1 − β₂ᵗ)) + ε)

    betas (β₁, β₂): two floats, the second ≥ 1/2, or v may fall below 0. logarithmic_schedule: β₁ = 1 − 1 / ln(max(2, t)).
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: noisy and moving targets, as in reinforcement learning.
    Start: lr a tenth to a third of Adam's, betas (0.92, 0.99).
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Kegreisz 2025, arXiv:2508.18258.
    """

    rule = ano
    bounds = (*BOUNDS, Bound("betas", "Invalid beta parameter at index 1", least=0.5, index=1))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.92, 0.99),
        weight_decay: float = 0.0,
        logarithmic_schedule: bool = False,
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
