"""QHM."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import LR, MOMENTUM, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(branches=("weight_decay",))
@with_maximize
def qhm(param, grad, momentum_buffer, *, lr, momentum, nu, weight_decay):
    grad = with_decay(param, grad, weight_decay)
    momentum_buffer = momentum_buffer.lerp(grad, 1 - momentum)
    return param - lr * ((1 - nu) * grad + nu * momentum_buffer), momentum_buffer


class QHM(Optimizer):
    """QHM: a mean of the gradient and of its average.

        g ← ∇f(θ) + λ·θ;  b ← μ·b + (1 − μ)·g;  θ ← θ − γ·((1 − ν)·g + ν·b)

    momentum (μ), nu (ν): floats.
    State: `momentum_buffer` (b), like the parameter.
    Good for: what SGD with momentum trains, with a longer average and no loss of stability.
    Start: lr as SGD's / (1 − its momentum), momentum 0.999, nu 0.7; nu = momentum is Nesterov's.
    Names: those of the authors' package (facebookresearch/qhoptim), but for its decay of the gradient, here `weight_decay` too.
    Source: Ma and Yarats 2019, arXiv:1810.06801.
    """

    rule = qhm
    bounds = (LR, MOMENTUM, Bound("nu", "Invalid nu value"), WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.999,
        nu: float = 0.7,
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
