"""Adai."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BETA, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(scalars=("step",), initial={"beta1_prod": 1.0}, branches=("weight_decay",))
@with_maximize
def adai(param, grad, step, exp_avg, exp_avg_sq, beta1_prod, *, lr, betas, eps, weight_decay, decoupled):
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled)
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    square = exp_avg_sq / (1 - betas[1] ** step)
    mean = total(square) / total(torch.ones_like(param))
    beta1 = (1 - torch.where(mean > 0, betas[0] / mean, 0.0) * square).clamp_min(0.0).clamp_max(1 - eps)
    beta1_prod = beta1_prod * beta1
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    return param - lr * exp_avg / (1 - beta1_prod), step, exp_avg, exp_avg_sq, beta1_prod


class Adai(Optimizer):
    """Adai: momentum whose inertia is each parameter's own, the less the larger its gradients are.

        v ← β₂·v + (1 − β₂)·g²;  v̂ = v / (1 − β₂ᵗ);  β₁ = clamp(1 − β₀·v̂ / mean(v̂), 0, 1 − ε),  the mean over all parameters
        p ← p·β₁;  m ← β₁·m + (1 − β₁)·g;  θ ← θ − γ·m / (1 − p)

    betas (β₀, β₂): how much inertia depends on the gradient, and the decay of v. eps (ε): what inertia lacks of 1 at least.
    decoupled: False adds λ·θ to the gradient; True is AdaiW,  θ ← (1 − γ·λ)·θ.
    State: `exp_avg` (m), `exp_avg_sq` (v) and `beta1_prod` (p), like the parameter.
    Good for: convolutional nets, where SGD finds flatter minima than Adam does and wants its momentum tuned.
    Start: lr as SGD's without momentum, ten times that with one of 0.9; weight_decay as SGD's.
    Names: those of the authors' package (zeke-xie/adaptive-inertia-adai), in which lr has no default.
    Source: Xie et al. 2022, arXiv:2006.15815.
    Deviations from adaptive-inertia-adai: where all gradients were zero so far nothing moves; eps is not 0.
    """

    rule = adai
    bounds = (
        LR,
        Bound("eps", "Invalid epsilon value", least=None, above=0.0, below=1.0),
        Bound("betas", "Invalid beta parameter").element(0),
        BETA.element(1),
        WEIGHT_DECAY,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.1, 0.99),
        eps: float = 1e-3,
        weight_decay: float = 0,
        decoupled: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
