"""TAM."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import one_number, over_all
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(initial={"s": one_number}, elementwise=False)
@with_maximize
def tam(param, grad, s, momentum_buffer, *, lr, momentum, decay_rate, weight_decay, eps):
    length = over_all(grad * grad, "sum").sqrt() * over_all(momentum_buffer * momentum_buffer, "sum").sqrt()
    cosine = torch.where(length > 0, over_all(grad * momentum_buffer, "sum") / torch.where(length > 0, length, 1.0), 0.0)
    s = decay_rate * s + (1 - decay_rate) * cosine
    momentum_buffer = momentum * momentum_buffer + ((1 + s) / 2 + eps) * grad
    return param * (1 - lr * weight_decay) - lr * momentum_buffer, s, momentum_buffer


class TAM(Optimizer):
    """TAM: SGD with momentum, into which a gradient goes the less the more it turns away from where that goes.

        s ← ρ·s + (1 − ρ)·cos(m, g);  m ← μ·m + ((1 + s) / 2 + ε)·g;  θ ← (1 − γ·λ)·θ − γ·m

    decay_rate (ρ): float.
    State: `momentum_buffer` (m), like the parameter; `s`, one number with the parameter's dimensions.
    Good for: what SGD with momentum trains, where data change in the course of a run.
    Start: lr twice SGD's with momentum, momentum 0.9, decay_rate 0.9.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Malviya et al. 2024, arXiv:2412.18790.
    Deviations from pytorch_optimizer: the cosine is one number for a parameter, as in the paper, not one of each element;
        momentum starts from 0.
    """

    rule = tam
    bounds = (*BOUNDS, Bound("decay_rate", "Invalid decay_rate value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        decay_rate: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
