"""EXAdam."""

from __future__ import annotations

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def exadam(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, weight_decay, eps):
    beta1, beta2 = betas
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    square = exp_avg * exp_avg
    steadiness = 1 + exp_avg_sq / (exp_avg_sq + eps) * beta2**step
    spread = exp_avg_sq / (1 - beta2**step) * (1 + square / (square + eps) * beta1**step)
    update = (exp_avg + grad) / (1 - beta1**step) * steadiness / (spread.sqrt() + eps)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg, exp_avg_sq


class EXAdam(Optimizer):
    """EXAdam: Adam whose corrections know of each other, with the gradient beside the momentum.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  a = 1 + v / (v + ε)·β₂ᵗ;  b = 1 + m² / (m² + ε)·β₁ᵗ
        θ ← (1 − γ·λ)·θ − γ·(m + g) / (1 − β₁ᵗ)·a / (√(v / (1 − β₂ᵗ)·b) + ε)

    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what Adam trains, where the first epochs matter.
    Start: lr half of Adam's: the gradient counts beside the momentum.
    Names: pytorch_optimizer's without `weight_decouple`; the paper's rate that grows with log t is left out there and here.
    Source: Adly 2024, arXiv:2412.20302.
    """

    rule = exadam

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
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
