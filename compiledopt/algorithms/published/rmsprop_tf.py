"""RMSpropTF."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    optional={"momentum_buffer": "momentum", "grad_avg": "centered"},
    initial={"square_avg": 1.0},
    branches=("momentum", "weight_decay"),
)
@with_maximize
def rmsprop_tf(
    param,
    grad,
    step,
    square_avg,
    momentum_buffer,
    grad_avg,
    *,
    lr,
    alpha,
    eps,
    weight_decay,
    momentum,
    centered,
    decoupled_decay,
    lr_in_momentum,
):
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_decay)
    square_avg = variance = square_avg.lerp(grad * grad, 1 - alpha)
    if centered:
        grad_avg = grad_avg.lerp(grad, 1 - alpha)
        variance = square_avg - grad_avg * grad_avg
    update = grad / (variance + eps).sqrt()
    if momentum != 0 and lr_in_momentum:
        update = momentum_buffer = momentum * momentum_buffer + lr * update
    elif momentum != 0:
        momentum_buffer = momentum * momentum_buffer + update
        update = lr * momentum_buffer
    else:
        update = lr * update
    return param - update, step + 1, square_avg, momentum_buffer, grad_avg


class RMSpropTF(Optimizer):
    """RMSpropTF: RMSprop as TensorFlow has it.

        g ← ∇f(θ) + λ·θ;  v ← α·v + (1 − α)·g², from 1;  with centered  a ← α·a + (1 − α)·g,  v − a² in v's place below
        b ← μ·b + γ·g / √(v + ε);  θ ← θ − b

    alpha (α): float. decoupled_decay: θ ← (1 − γ·λ)·θ instead of adding λ·θ to the gradient. lr_in_momentum: False applies γ
        to b, not in it.
    State: `square_avg` (v), `momentum_buffer` (b) where momentum is not 0, `grad_avg` (a) with centered, like the parameter.
    Good for: MobileNet, EfficientNet and others whose recipes are TensorFlow's.
    Start: lr 0.016 per 256 images, alpha 0.9, momentum 0.9, eps 1e-3.
    Names: timm's.
    Source: Tieleman and Hinton 2012, and tensorflow/python/training/rmsprop.py; timm.
    """

    rule = rmsprop_tf
    bounds = (*BOUNDS, Bound("alpha", "Invalid alpha value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0,
        momentum: float = 0.0,
        centered: bool = False,
        decoupled_decay: bool = False,
        lr_in_momentum: bool = True,
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
