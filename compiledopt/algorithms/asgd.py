"""Averaged stochastic gradient descent."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "eta", "mu"), initial={"eta": "lr", "mu": 1.0}, branches=("weight_decay",))
@with_maximize
def asgd(param, grad, step, eta, mu, ax, *, lr, lambd, alpha, t0, weight_decay):
    step = step + 1
    grad = with_decay(param, grad, weight_decay)
    param = param * (1 - lambd * eta) - eta * grad
    ax = ax.lerp(param, mu)
    return param, step, lr / (1 + lambd * lr * step) ** alpha, 1 / (step - t0).clamp_min(1.0), ax


class ASGD(Optimizer):
    """Averaged stochastic gradient descent.

        g ← ∇f(θ) + λ·θ;  θ ← (1 − Λ·η)·θ − η·g;  a ← a + μ·(θ − a);  η ← γ / (1 + Λ·γ·t)^α;  μ ← 1 / max(1, t − t₀)

    lambd (Λ): float, the decay of parameters and rate. alpha (α): float, the power by which the rate falls.
    t0 (t₀): float, steps before averaging.
    State: `eta` (η), `mu` (μ), 0-dim, and `ax` (a), the average, like the parameter.
    Source: Polyak and Juditsky 1992.
    """

    rule = asgd
    bounds = (LR, Bound("lambd", "Invalid lambd value"), Bound("alpha", "Invalid alpha value"), WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
