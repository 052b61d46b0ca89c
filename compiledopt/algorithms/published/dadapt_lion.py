"""D-Adapt-Lion."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate, guessed
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(shared=("d", "numerator_weighted"), initial={"d": "d0"})
@with_maximize
def dadapt_lion(param, grad, exp_avg, s, d, numerator_weighted, *, lr, betas, weight_decay, d0):
    step, decay = d * lr, betas[1] ** 0.5
    update = torch.sign(betas[0] * exp_avg + (1 - betas[0]) * grad)
    param = param * (1 - step * weight_decay) - step * update
    exp_avg = betas[1] * exp_avg + step * (1 - betas[1]) * grad
    numerator_weighted = decay * numerator_weighted + (1 - decay) * total(step * update * s)
    s = decay * s + step * (1 - decay) * update
    d = torch.maximum(d, guessed(numerator_weighted, (1 - decay) * total(torch.abs(s)), d))
    return param, exp_avg, s, d, numerator_weighted


class DAdaptLion(OneRate):
    """D-Adapt-Lion: Lion that finds its own rate, from a lower bound of the distance to the solution.

        η = d·γ;  u = sign(β₁·m + (1 − β₁)·g);  m ← β₂·m + (1 − β₂)·η·g;  β = √β₂
        r ← β·r + (1 − β)·η·Σ u·s;  s ← β·s + (1 − β)·η·u;  d̂ = r / ((1 − β)·Σ|s|),  sums over all parameters
        d ← max(d, d̂);  θ ← (1 − η·λ)·θ − η·u

    d0: float, the first guess of d.
    State: `exp_avg` (m), `s`, like the parameter; in the groups, and the same in all: `d`, `numerator_weighted` (r).
    Good for: a first run with Lion without a search for the rate; the authors call it experimental.
    Start: lr 1.
    Names: those of the authors' package (dadaptation).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Chen et al. 2023, arXiv:2302.06675.
    Deviations from dadaptation: nothing is logged; a group with lr 0 stays still, where it moves there; d stays where all
    gradients were zero so far.
    """

    rule = dadapt_lion
    bounds = (*BOUNDS, D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
