"""D-Adapt-Adam."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate, averaged_distance
from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule


@rule(shared=("d", "gsq_weighted"), initial={"d": "d0"}, branches=("weight_decay",))
@with_maximize
def dadapt_adam(
    param, grad, s, exp_avg, exp_avg_sq, d, gsq_weighted, *, lr, betas, eps, weight_decay, decouple, d0, growth_rate
):
    step = d * lr
    param, grad = with_either_decay(param, grad, step, weight_decay, decouple)
    exp_avg = betas[0] * exp_avg + step * (1 - betas[0]) * grad
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    denominator = torch.sqrt(exp_avg_sq) + eps
    s, gsq_weighted, d = averaged_distance(
        grad, s, denominator, gsq_weighted, d, step=step, beta=betas[1], growth_rate=growth_rate
    )
    return param - exp_avg / denominator, s, exp_avg, exp_avg_sq, d, gsq_weighted


class DAdaptAdam(OneRate):
    """D-Adapt-Adam: Adam that finds its own rate, from a lower bound of the distance to the solution.

        η = d·γ;  m ← β₁·m + (1 − β₁)·η·g;  v ← β₂·v + (1 − β₂)·g²;  s ← β₂·s + (1 − β₂)·η·g;  w = √v + ε
        r ← β₂·r + (1 − β₂)·η²·Σ g²/w;  d̂ = (Σ s²/w / (1 − β₂) − r) / Σ|s|,  sums over all parameters
        d ← max(d, min(d̂, d·growth_rate));  θ ← θ − m / w

    decouple: True multiplies θ by 1 − η·λ instead of adding λ·θ to the gradient. d0: float, the first guess of d.
    growth_rate: float, how much d may grow in a step.
    State: `exp_avg` (m), `exp_avg_sq` (v), `s`, like the parameter; in the groups, and the same in all: `d`,
        `gsq_weighted` (r).
    Good for: a first run without a search for the rate; Prodigy grows its guess faster.
    Start: lr 1.
    Names: those of the authors' package (dadaptation).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Defazio and Mishchenko 2023, arXiv:2301.07733.
    Deviations from dadaptation: nothing is logged; d stays where all gradients were zero so far, as NaN there.
    """

    rule = dadapt_adam
    bounds = (*BOUNDS, D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = False,
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
