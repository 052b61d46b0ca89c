"""AccSGD."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(initial={"momentum_buffer": lambda param: param.clone()}, branches=("weight_decay",))
@with_maximize
def accsgd(param, grad, momentum_buffer, *, lr, kappa, xi, smallConst, weight_decay):
    grad = with_decay(param, grad, weight_decay)
    share = smallConst**2 * xi / kappa
    momentum_buffer = momentum_buffer.lerp(param - lr * kappa / smallConst * grad, share)
    return (param - lr * grad).lerp(momentum_buffer, share / (smallConst + share)), momentum_buffer


class AccSGD(Optimizer):
    """AccSGD: short steps, drawn to an average of long ones; accelerated for noisy gradients, as Nesterov's are for exact ones.

        g ← ∇f(θ) + λ·θ;  a = c²·ξ / κ;  w ← (1 − a)·w + a·(θ − γ·κ / c·g)
        θ ← z·(θ − γ·g) + (1 − z)·w   with  z = c / (c + a)

    kappa (κ): float > 0, a long step over a short one. xi (ξ): float ≥ 0, by how much noise is less than the worst, at most √κ.
    smallConst (c): float of (0, 1].
    State: `momentum_buffer` (w), like the parameter; it starts from it.
    Good for: small batches, where momentum gains nothing on plain gradient descent; least squares above all.
    Start: lr as SGD's without momentum, kappa 1000, xi 10; then kappa ten times as large or as small.
    Names: those of the authors' package (rahulkidambi/AccSGD), in which lr has no default.
    Source: Kidambi et al. 2018, arXiv:1803.05591.
    """

    rule = accsgd
    bounds = (
        LR,
        Bound("kappa", "Invalid kappa value", least=None, above=0.0),
        Bound("xi", "Invalid xi value"),
        Bound("smallConst", "Invalid smallConst value", least=None, above=0.0, most=1.0),
        WEIGHT_DECAY,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        kappa: float = 1000.0,
        xi: float = 10.0,
        smallConst: float = 0.7,
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
