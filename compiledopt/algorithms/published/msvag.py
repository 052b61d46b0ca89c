"""MSVAG."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def msvag(param, grad, step, exp_avg, exp_avg_sq, *, lr, beta):
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, (beta, beta))
    mean = exp_avg / (1 - beta**step)
    square = mean * mean
    variance = (exp_avg_sq / (1 - beta**step) - square).clamp_min(0.0)
    gap = 2 * (beta - beta**step)  # of one gradient there is no variance
    share = torch.where(gap > 0, (1 - beta) * (1 + beta**step) / torch.where(gap > 0, gap, 1.0), 0.0)
    whole = square + share * variance
    return param - lr * torch.where(whole > 0, square / whole, 0.0) * mean, step, exp_avg, exp_avg_sq


class MSVAG(Optimizer):
    """MSVAG: a momentum whose elements are the shorter the more their gradients vary.

        m ← β·m + (1 − β)·g;  v ← β·v + (1 − β)·g²;  m̂ = m / (1 − βᵗ),  v̂ = v / (1 − βᵗ)
        ρ = (1 − β)·(1 + βᵗ) / ((1 + β)·(1 − βᵗ));  s = (v̂ − m̂²) / (1 − ρ);  θ ← θ − γ·m̂³ / (m̂² + ρ·s)

    beta (β): float. s: the variance of a gradient; ρ·s: that of m̂.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what SGD with momentum trains and Adam generalizes worse on: sizes stay the gradients'.
    Start: lr as SGD's with momentum, over 1 − 0.9.
    Names: pytorch_optimizer's.
    Source: Balles and Hennig 2018, arXiv:1705.07774.
    Deviations from lballes/msvag: where rounding makes a variance negative it is 0.
    """

    rule = msvag
    bounds = (LR, Bound("beta", "Invalid beta value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        beta: float = 0.9,
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
