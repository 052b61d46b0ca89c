"""D-Adapt-AdaGrad."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate, grown, guessed
from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(
    shared=("d", "gsq_weighted", "sksq_weighted", "skl1"),
    initial={"d": "d0", "alphak": 1e-6, "x0": lambda param: param.clone()},
    branches=("weight_decay", "momentum"),
)
@with_maximize
def dadapt_adagrad(
    param, grad, alphak, sk, x0, d, gsq_weighted, sksq_weighted, skl1,
    *, lr, momentum, weight_decay, eps, d0, growth_rate,
):  # fmt: skip
    step = d * lr
    grad = with_decay(param, grad, weight_decay)
    before, old = torch.sqrt(alphak) + eps, sk
    alphak, sk = alphak + grad * grad, sk + step * grad
    denominator = torch.sqrt(alphak) + eps
    # As changes, so that parameters without a gradient keep their share.
    sksq_weighted = sksq_weighted + total(sk * sk / denominator - old * old / before)
    skl1 = skl1 + total(torch.abs(sk) - torch.abs(old))
    gsq_weighted = gsq_weighted + total(step**2 * grad * grad / denominator)
    d = grown(d, guessed(sksq_weighted - gsq_weighted, skl1, d), growth_rate)
    point = x0 - sk / denominator
    param = momentum * param + (1 - momentum) * point if momentum != 0 else point
    return param, alphak, sk, x0, d, gsq_weighted, sksq_weighted, skl1


class DAdaptAdaGrad(OneRate):
    """D-Adapt-AdaGrad: AdaGrad by dual averaging that finds its own rate, from a lower bound of the distance to the solution.

        η = d·γ;  a ← a + g²;  s ← s + η·g;  w = √a + ε;  r ← r + Σ η²·g²/w
        d̂ = (Σ s²/w − r) / Σ|s|,  sums over all parameters;  d ← max(d, min(d̂, d·growth_rate))
        θ ← μ·θ + (1 − μ)·(x₀ − s / w)

    d0: float, the first guess of d. growth_rate: float, how much d may grow in a step.
    State: `alphak` (a, from 1e-6), `sk` (s), `x0` (the parameter at first), like the parameter; in the groups, and the same in
        all: `d`, `gsq_weighted` (r), `sksq_weighted` (Σ s²/w), `skl1` (Σ|s|).
    Good for: convex problems and sparse features, as AdaGrad; its rate adapts more slowly than D-Adapt-Adam's.
    Start: lr 1.
    Names: those of the authors' package (dadaptation).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Defazio and Mishchenko 2023, arXiv:2301.07733.
    Deviations from dadaptation: nothing is logged; d stays where all gradients were zero so far; sparse gradients are refused.
    """

    rule = dadapt_adagrad
    bounds = (*BOUNDS, D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        momentum: float = 0,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        d0: float = 1e-6,
        growth_rate: float = float("inf"),
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
