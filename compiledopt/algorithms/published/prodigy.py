"""Prodigy."""

from __future__ import annotations

import torch

from compiledopt.algorithms.d_adaptation import D0, OneRate
from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(
    shared=("d", "d_max", "d_numerator", "k"),
    initial={"d": "d0", "d_max": "d0", "p0": lambda param: param.clone()},
    branches=("weight_decay",),
)
@with_maximize
def prodigy(
    param, grad, s, p0, exp_avg, exp_avg_sq, d, d_max, d_numerator, k,
    *, lr, betas, beta3, eps, weight_decay, decouple, use_bias_correction, safeguard_warmup, d0, d_coef, growth_rate,
):  # fmt: skip
    decay = betas[1] ** 0.5 if beta3 is None else beta3
    k = k + 1
    correction = (1 - betas[1] ** k) ** 0.5 / (1 - betas[0] ** k) if use_bias_correction else 1.0
    step = d * lr * correction
    start = param
    param, grad = with_either_decay(param, grad, step, weight_decay, decouple)
    d_numerator = decay * d_numerator + total((d / d0) * step * grad * (p0 - start))
    s = decay * s + (d / d0) * (d if safeguard_warmup else step) * grad
    exp_avg = betas[0] * exp_avg + d * (1 - betas[0]) * grad
    exp_avg_sq = betas[1] * exp_avg_sq + d * d * (1 - betas[1]) * grad * grad
    length = total(torch.abs(s))
    guess = torch.where(length > 0, d_coef * d_numerator / length, d)
    d_max = torch.maximum(d_max, guess)
    d = torch.minimum(d_max, torch.where(d == d0, torch.maximum(d, guess), d) * growth_rate)
    return param - step * exp_avg / (torch.sqrt(exp_avg_sq) + d * eps), s, p0, exp_avg, exp_avg_sq, d, d_max, d_numerator, k


class Prodigy(OneRate):
    """Prodigy: Adam that finds its own rate, from how far the parameters have come along the gradients.

        η = d·γ;  r ← β₃·r + Σ (d/d₀)·η·g·(p₀ − θ);  s ← β₃·s + (d/d₀)·η·g,  sums over all parameters
        m ← β₁·m + (1 − β₁)·d·g;  v ← β₂·v + (1 − β₂)·d²·g²;  d̂ = c·r / Σ|s|
        d_max ← max(d_max, d̂);  d ← min(d_max, d·growth_rate), while d = d₀ at least d̂
        θ ← (1 − η·λ)·θ − η·m / (√v + d·ε)

    beta3: (β₃) float, None for √β₂. decouple: False adds λ·θ to the gradient instead. use_bias_correction: η as Adam's.
    safeguard_warmup: s without γ, for a schedule that begins near 0. d0: (d₀) float, the first guess of d. d_coef: (c) float,
    which makes every rate larger or smaller. growth_rate: float, how much d may grow in a step.
    State: `exp_avg` (m), `exp_avg_sq` (v), `s`, `p0` (the parameter at first), like the parameter; in the groups, and the same
        in all: `d`, `d_max`, `d_numerator` (r), `k`, how many steps were taken.
    Good for: a first run without a search for the rate.
    Start: lr 1, a schedule that falls to 0, no warm-up.
    Names: those of the authors' package (prodigyopt).
    Raises: ValueError for groups with different lr; 0 freezes one.
    Source: Mishchenko and Defazio 2023, arXiv:2306.06101.
    Deviations from prodigyopt: `d` and the rest follow the first group; where the gradients are zero from the start, `k` counts
    all the same; no `slice_p`.
    """

    rule = prodigy
    bounds = (*BOUNDS, D0)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
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
