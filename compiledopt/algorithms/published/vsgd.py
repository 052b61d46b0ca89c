"""VSGD."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), never_negative=("bg", "bhg"))
@with_maximize
def vsgd(param, grad, step, mug, bg, bhg, *, ghattg, ps, tau1, tau2, lr, weight_decay, eps):
    step = step + 1
    shape, prior = 2 * ps + 1 + 1e-4, 2 * ps
    of_drift = torch.where(step > 1, bg / shape, prior / (shape - 1))
    of_noise = torch.where(step > 1, bhg / shape, ghattg * prior / (shape - 1))
    share = of_drift / (of_drift + of_noise)  # a product of the two is too large long before they are
    mean, variance = mug + share * (grad - mug), share * of_noise
    bg = bg.lerp(prior + variance + (mean - mug) * (mean - mug), step**-tau1)
    bhg = bhg.lerp(ghattg * prior + variance + (grad - mean) * (grad - mean), step**-tau2)
    size = lr / ((mean * mean + variance).sqrt() + eps)
    return param * (1 - lr * weight_decay) - size * mean, step, mean, bg, bhg


class VSGD(Optimizer):
    """VSGD: a gradient that drifts and is seen through noise, whose mean and variance are inferred at every step.

        a = 2·p + 1.0001;  s = b / a,  ŝ = b̂ / a,  at first 2·p / (a − 1) and K times that
        μ' = (s·g + ŝ·μ) / (s + ŝ);  σ = s·ŝ / (s + ŝ)
        b ← b + t^(−τ₁)·(2·p + σ + (μ' − μ)² − b);  b̂ ← b̂ + t^(−τ₂)·(2·K·p + σ + (g − μ')² − b̂);  μ ← μ'
        θ ← (1 − γ·λ)·θ − γ·μ / (√(μ² + σ) + ε)

    ghattg (K): float > 0, the variance of the noise over that of the drift before anything is seen. ps (p): float > 0, how much
    that counts. tau1 (τ₁), tau2 (τ₂): floats ≥ 0, how fast the past is forgotten.
    State: `mug` (μ), `bg` (b) and `bhg` (b̂), like the parameter.
    Good for: convolutional nets, where Adam generalizes worse than SGD does, without a search for betas.
    Start: lr 0.1 to 0.02 with a schedule, weight_decay as AdamW's, all else as it is.
    Names: those of the authors' package (generativeai-tue/vsgd).
    Source: Chen et al. 2024, arXiv:2404.06549.
    """

    rule = vsgd
    bounds = (
        *BOUNDS,
        Bound("ghattg", "Invalid ghattg value", least=None, above=0.0),
        Bound("ps", "Invalid ps value", least=None, above=0.0),
        Bound("tau1", "Invalid tau1 value"),
        Bound("tau2", "Invalid tau2 value"),
    )

    def __init__(
        self,
        params: ParamsT,
        ghattg: float = 30.0,
        ps: float = 1e-8,
        tau1: float = 0.81,
        tau2: float = 0.9,
        lr: LearningRate = 0.1,
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
