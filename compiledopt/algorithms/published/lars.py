"""LARS."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.reduced import trust_ratio
from compiledopt.algorithms.sgd import sgd
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(optional={"momentum_buffer": "momentum"}, branches=("momentum", "weight_decay"), elementwise=False)
@with_maximize
def lars(
    param,
    grad,
    momentum_buffer,
    *,
    first,
    lr,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    trust_coeff,
    eps,
    trust_clip,
    always_adapt,
):
    if weight_decay != 0 or always_adapt:
        size, length = param.norm(), grad.norm()
        ratio = trust_ratio(trust_coeff * size, length, weight_decay * size + eps)
        grad = ((ratio / lr).clamp_max(1.0) if trust_clip else ratio) * with_decay(param, grad, weight_decay)
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    return sgd(param, grad, momentum_buffer, first=first, lr=lr, weight_decay=0.0, maximize=False, **options)


class LARS(Optimizer):
    """LARS: SGD with momentum, each gradient as long as its parameter, times a coefficient.

        r = τ·‖θ‖ / (‖g‖ + λ·‖θ‖ + ε) (1 where either norm is 0);  g ← r·(g + λ·θ);  b ← μ·b + g;  θ ← θ − γ·b

    dampening: float, as SGD's. nesterov: look ahead by the momentum. trust_coeff (τ): float.
    trust_clip: min(r / γ, 1) in place of r (LARC). always_adapt: r also where λ is 0, where it is else 1.
    State: `momentum_buffer` (b), like the parameter, where momentum is not 0.
    Good for: convolutional nets in very large batches (ImageNet at 8,000 and more), self-supervised learning.
    Start: lr 1 to 10 with a warm-up, momentum 0.9, weight_decay 1e-4; biases and norms with λ 0.
    Names: timm's.
    Source: You et al. 2017, arXiv:1708.03888.
    """

    rule = lars

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
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
