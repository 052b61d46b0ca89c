"""AdamG."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BETA, BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def adamg(param, grad, step, m, v, r, *, lr, betas, p, q, weight_decay, eps):
    beta1, beta2, beta3 = betas
    step, grad = step + 1, with_decay(param, grad, weight_decay)
    v = beta2 * v + (1 - beta2) * grad * grad
    r = beta3 * r + (1 - beta3) * p * v**q
    m = beta1 * m + (1 - beta1) * r * grad
    size = torch.minimum(lr, step**-0.5) / (1 - beta1**step)
    return param - size * m / ((v / (1 - beta2**step)).sqrt() + eps), step, m, v, r


class AdamG(Optimizer):
    """AdamG: Adam without a rate to tune: how far it may go follows from the golden step size p·vᑫ.

        g ← ∇f(θ) + λ·θ;  v ← β₂·v + (1 − β₂)·g²;  r ← β₃·r + (1 − β₃)·p·vᑫ;  m ← β₁·m + (1 − β₁)·r·g
        θ ← θ − min(γ, 1/√t)·m̂ / (√v̂ + ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    betas (β₁, β₂, β₃): three floats. p, q: floats, of the golden step size.
    State: `m`, `v` and `r`, like the parameter.
    Good for: a first run without a search for the rate; nothing is summed over the model.
    Start: lr 1.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Pan and Chen 2024, arXiv:2405.04376.
    """

    rule = adamg
    bounds = (*BOUNDS, BETA.element(2))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        betas: tuple[float, float, float] = (0.95, 0.999, 0.95),
        p: float = 0.2,
        q: float = 0.24,
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
