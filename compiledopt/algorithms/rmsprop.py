"""RMSprop."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    optional={"momentum_buffer": "momentum", "grad_avg": "centered"},
    branches=("weight_decay", "momentum"),
)
@with_maximize
def rmsprop(param, grad, step, square_avg, momentum_buffer, grad_avg, *, lr, alpha, eps, weight_decay, momentum, centered):
    grad = with_decay(param, grad, weight_decay)
    square_avg = variance = alpha * square_avg + (1 - alpha) * grad * grad
    if centered:
        grad_avg = grad_avg.lerp(grad, 1 - alpha)
        variance = square_avg - grad_avg * grad_avg
    deviation = variance.sqrt() + eps
    if momentum != 0:
        momentum_buffer = momentum * momentum_buffer + grad / deviation
        param = param - lr * momentum_buffer
    else:
        param = param - lr * grad / deviation
    return param, step + 1, square_avg, momentum_buffer, grad_avg


class RMSprop(Optimizer):
    """RMSprop: steps scaled by a running average of squared gradients.

        g ← ∇f(θ) + λ·θ;  v ← α·v + (1 − α)·g²;  σ = √v + ε,  or centered  √(v − a²) + ε  with  a ← α·a + (1 − α)·g
        θ ← θ − γ·g / σ,  or with momentum  b ← μ·b + g / σ;  θ ← θ − γ·b

    alpha (α): float, the weight of the averages so far. centered: divide by the deviation instead of the square.
    State: `square_avg` (v), `momentum_buffer` (b) and `grad_avg` (a) where used, like the parameter.
    Source: Hinton 2012, lecture 6; centered: Graves 2013, arXiv:1308.0850.
    """

    rule = rmsprop
    bounds = (*BOUNDS, Bound("alpha", "Invalid alpha value"))
    missing = {"momentum": 0}

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
