"""Signum."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(optional={"momentum_buffer": "momentum"}, branches=("momentum",))
@with_maximize
def signum(param, grad, momentum_buffer, *, lr, momentum, weight_decay):
    if momentum != 0:
        grad = momentum_buffer = momentum_buffer.lerp(grad, 1 - momentum)
    return param * (1 - lr * weight_decay) - lr * torch.sign(grad), momentum_buffer


class Signum(Optimizer):
    """Signum: the sign of a momentum; with momentum=0 signSGD, the sign of the gradient.

        m ← μ·m + (1 − μ)·g;  θ ← (1 − γ·λ)·θ − γ·sign(m)

    State: `momentum_buffer` (m), like the parameter, where momentum is not 0.
    Good for: little state, and updates of one bit an element.
    Start: lr a tenth of Adam's, momentum 0.9.
    Names: pytorch_optimizer's SignSGD.
    Source: Bernstein et al. 2018, arXiv:1802.04434.
    """

    rule = signum
    bounds = (*BOUNDS, Bound("momentum", "Invalid momentum value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
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
