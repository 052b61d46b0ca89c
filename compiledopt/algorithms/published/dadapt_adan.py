"""D-Adapt-Adan."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate, averaged_distance
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BETA, BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule


@rule(shared=("d", "gsq_weighted"), initial={"d": "d0"})
@with_maximize
def dadapt_adan(
    param, grad, s, exp_avg, exp_avg_diff, exp_avg_sq, pre_grad, d, gsq_weighted,
    *, lr, betas, eps, weight_decay, no_prox, d0, growth_rate, first,
):  # fmt: skip
    step, (beta1, beta2, beta3) = d * lr, betas
    change = torch.where(first > 0, 0.0, grad - pre_grad)
    ahead = grad + beta2 * change
    exp_avg = beta1 * exp_avg + step * (1 - beta1) * grad
    exp_avg_diff = beta2 * exp_avg_diff + step * (1 - beta2) * change
    exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * ahead * ahead
    denominator = torch.sqrt(exp_avg_sq) + eps
    s, gsq_weighted, d = averaged_distance(
        grad, s, denominator, gsq_weighted, d, step=step, beta=beta3, growth_rate=growth_rate
    )
    update = (exp_avg + beta2 * exp_avg_diff) / denominator
    param = param * (1 - step * weight_decay) - update if no_prox else (param - update) / (1 + step * weight_decay)
    return param, s, exp_avg, exp_avg_diff, exp_avg_sq, grad, d, gsq_weighted


class DAdaptAdan(OneRate):
    """D-Adapt-Adan: Adan that finds its own rate, from a lower bound of the distance to the solution.

        η = d·γ;  Δ = g − the last g;  m ← β₁·m + (1 − β₁)·η·g;  n ← β₂·n + (1 − β₂)·η·Δ;  v ← β₃·v + (1 − β₃)·(g + β₂·Δ)²
        w = √v + ε;  s ← β₃·s + (1 − β₃)·η·g;  r ← β₃·r + (1 − β₃)·Σ η²·g²/w;  d̂ = (Σ s²/w / (1 − β₃) − r) / Σ|s|
        d ← max(d, min(d̂, d·growth_rate));  θ ← (θ − (m + β₂·n) / w) / (1 + η·λ);  sums over all parameters

    betas: (β₁, β₂, β₃) three floats. no_prox: True multiplies θ by 1 − η·λ before the step instead of dividing after it.
    d0: float, the first guess of d. growth_rate: float, how much d may grow in a step; 1.02 is a warm-up.
    State: `exp_avg` (m), `exp_avg_diff` (n), `exp_avg_sq` (v), `pre_grad` (the last g), `s`, like the parameter; in the
        groups, and the same in all: `d`, `gsq_weighted` (r).
    Good for: a first run with Adan without a search for the rate; the authors call it experimental.
    Start: lr 1.
    Names: those of the authors' package (dadaptation).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Xie et al. 2022, arXiv:2208.06677.
    Deviations from dadaptation: nothing is logged, and there is no restart; d stays where all gradients were zero so far.
    """

    rule = dadapt_adan
    bounds = (*BOUNDS, BETA.element(2), D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.02,
        no_prox: bool = False,
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
