"""Aida."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    branches=("weight_decay",),
    static=("K",),
    never_negative=("exp_avg_var",),
    elementwise=False,
)
@with_maximize
def aida(param, grad, step, exp_avg, exp_avg_var, *, lr, betas, eps, weight_decay, K, xi):
    beta1, beta2 = betas
    step = step + 1
    grad = with_decay(param, grad, weight_decay)
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    # Each projection scales one of the two: what is left of both are two numbers.
    of_both, of_grad, of_avg = (grad * exp_avg).sum(), (grad * grad).sum(), (exp_avg * exp_avg).sum()
    share, kept = 1.0, 1.0
    for _ in range(K):
        inner = share * kept * of_both
        share, kept = share * inner / (share**2 * of_grad + xi), kept * inner / (kept**2 * of_avg + xi)
    apart = kept * exp_avg - share * grad
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * apart * apart + eps
    size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return param - size * exp_avg / exp_avg_var.sqrt(), step, exp_avg, exp_avg_var


class Aida(Optimizer):
    """Aida: AdaBelief whose gradient and momentum are projected onto each other first, so that step sizes of a layer are alike.

        m ← β₁·m + (1 − β₁)·g;  from g and m on, K times:  g', m' ← g' projected onto m', m' onto g'
        v ← β₂·v + (1 − β₂)·(m' − g')² + ε;  θ ← θ − γ·m̂ / √v̂   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ);  λ·θ is in g

    K: int ≥ 0, how often; 0 is AdaBelief. xi (ξ): float > 0, in the denominators of the projections.
    State: `exp_avg` (m) and `exp_avg_var` (v), like the parameter.
    Good for: images and translation, where AdaBelief is used.
    Start: all as AdaBelief's: eps 1e-8 for convolutional nets, 1e-16 for transformers.
    Names: those of the authors' package (guoqiang-zhang-x/Aida-Optimizer).
    Source: Zhang et al. 2022, arXiv:2203.13273.
    """

    rule = aida
    bounds = (*BOUNDS, Bound("K", "Invalid K value"), Bound("xi", "Invalid xi value", least=None, above=0.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        K: int = 2,
        xi: float = 1e-20,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
