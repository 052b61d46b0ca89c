"""D-Adapt-SGD."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate, grown, guessed
from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(
    shared=("d", "numerator_weighted", "g0_norm"),
    initial={"d": "d0", "x0": lambda param: param.clone()},
    branches=("weight_decay", "momentum"),
)
@with_maximize
def dadapt_sgd(param, grad, s, x0, d, numerator_weighted, g0_norm, *, lr, momentum, weight_decay, d0, growth_rate):
    first = total(torch.where(lr > 0, grad * grad, 0.0)) ** 0.5
    g0_norm = torch.where(g0_norm > 0, g0_norm, first)
    share = torch.where(g0_norm > 0, d / g0_norm, 0.0)
    along = lr * with_decay(param, grad, weight_decay)
    # Σ s'² by what is known before the share is, so that all sums are one pass.
    turn, squares = total(along * s), total(s * s) + share**2 * total(along * along)
    numerator_weighted = numerator_weighted + share * turn
    length = torch.maximum(squares + 2 * share * turn, 0.0 * d) ** 0.5
    s = s + share * along
    d = grown(d, guessed(2 * numerator_weighted, length, d), growth_rate)
    param = momentum * param + (1 - momentum) * (x0 - s) if momentum != 0 else x0 - s
    return param, s, x0, d, numerator_weighted, g0_norm


class DAdaptSGD(OneRate):
    """D-Adapt-SGD: SGD by dual averaging that finds its own rate, from a lower bound of the distance to the solution.

        η = d·γ / ‖g₀‖;  r ← r + η·Σ g·s;  s ← s + η·g;  d̂ = 2·r / ‖s‖,  sums and norms over all parameters
        d ← max(d, min(d̂, d·growth_rate));  θ ← μ·θ + (1 − μ)·(x₀ − s)

    ‖g₀‖ is the norm of the first gradients, without decay. d0: float, the first guess of d. growth_rate: float, how much d may
    grow in a step.
    State: `s`, `x0` (the parameter at first), like the parameter; in the groups, and the same in all: `d`,
        `numerator_weighted` (r), `g0_norm`.
    Good for: vision models that SGD with momentum trains well, without a search for the rate.
    Start: lr 1, momentum 0.9.
    Names: those of the authors' package (dadaptation).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Defazio and Mishchenko 2023, arXiv:2301.07733.
    Deviations from dadaptation: nothing is logged; `z` is not kept, which is x₀ − s; d stays where all gradients were zero so
    far, and the first that are not give ‖g₀‖.
    """

    rule = dadapt_sgd
    bounds = (*BOUNDS, D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0,
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
