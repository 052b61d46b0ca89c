"""PAdam."""

from __future__ import annotations

from compiledopt.algorithms.parts import moments, with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def padam(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, partial, weight_decay, eps):
    beta1, beta2 = betas
    step = step + 1
    exp_avg, exp_avg_sq = moments(with_decay(param, grad, weight_decay), exp_avg, exp_avg_sq, betas)
    size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return param - size * exp_avg / (exp_avg_sq.sqrt() + eps) ** (2 * partial), step, exp_avg, exp_avg_sq


class PAdam(Optimizer):
    """PAdam: between SGD with momentum (partial 0) and Adam (partial 1/2).

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  θ ← θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·m / (√v + ε)^(2p)

    partial (p): float from 0 to 1/2.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: convolutional nets, where SGD generalizes better than Adam.
    Start: lr as SGD's (0.1), partial 1/8 to 1/4, weight_decay 5e-4.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Chen et al. 2018, arXiv:1806.06763.
    """

    rule = padam
    bounds = (*BOUNDS, Bound("partial", "Invalid partial value", most=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        partial: float = 0.25,
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
