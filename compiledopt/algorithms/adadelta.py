"""Adadelta."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import EPS, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def adadelta(param, grad, step, square_avg, acc_delta, *, lr, rho, eps, weight_decay):
    grad = with_decay(param, grad, weight_decay)
    square_avg = rho * square_avg + (1 - rho) * grad * grad
    delta = (acc_delta + eps).sqrt() / (square_avg + eps).sqrt() * grad
    acc_delta = rho * acc_delta + (1 - rho) * delta * delta
    return param - lr * delta, step + 1, square_avg, acc_delta


class Adadelta(Optimizer):
    """Adadelta: steps in the units of the parameter, from running averages of squares.

        g ← ∇f(θ) + λ·θ;  v ← ρ·v + (1 − ρ)·g²;  Δ ← √(u + ε) / √(v + ε) · g;  u ← ρ·u + (1 − ρ)·Δ²;  θ ← θ − γ·Δ

    rho (ρ): float, the weight of the averages so far.
    State: `square_avg` (v) and `acc_delta` (u), like the parameter.
    Source: Zeiler 2012, arXiv:1212.5701.
    """

    rule = adadelta
    bounds = (LR, Bound("rho", "Invalid rho value", most=1.0), EPS, WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
