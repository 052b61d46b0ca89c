"""SGDW."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.sgd import sgd
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(optional={"momentum_buffer": "momentum"}, branches=("momentum",))
@with_maximize
def sgdw(param, grad, momentum_buffer, *, first, lr, momentum, dampening, weight_decay, nesterov):
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    decayed = param * (1 - lr * weight_decay)
    return sgd(decayed, grad, momentum_buffer, first=first, lr=lr, weight_decay=0.0, maximize=False, **options)


class SGDW(Optimizer):
    """SGDW: SGD with weight decay apart from the gradient.

        b ← μ·b + (1 − τ)·g (b ← g at first);  θ ← (1 − γ·λ)·θ − γ·b,  or with nesterov  (1 − γ·λ)·θ − γ·(g + μ·b)

    dampening (τ): float. nesterov: look ahead by the momentum.
    State: `momentum_buffer` (b), like the parameter, where momentum is not 0.
    Good for: what SGD with momentum trains, where decay is to be tuned apart from lr.
    Start: lr 0.1, momentum 0.9, weight_decay 5e-4 / lr.
    Names: timm's.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    rule = sgdw

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
