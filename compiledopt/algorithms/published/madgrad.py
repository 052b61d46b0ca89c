"""MADGRAD."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    optional={"x0": "momentum"},
    initial={"x0": lambda param: param.detach().clone()},
    branches=("momentum", "weight_decay"),
)
@with_maximize
def madgrad(param, grad, step, grad_sum_sq, s, x0, *, lr, momentum, weight_decay, eps, decoupled_decay):
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_decay)
    start = x0 if momentum != 0 else param + s / (grad_sum_sq ** (1 / 3) + eps)
    rate = (lr + eps) * step**0.5
    grad_sum_sq = grad_sum_sq + rate * grad * grad
    s = s + rate * grad
    target = start - s / (grad_sum_sq ** (1 / 3) + eps)
    return param.lerp(target, 1 - momentum) if momentum != 0 else target, step, grad_sum_sq, s, x0


class MADGRAD(Optimizer):
    """MADGRAD: dual averaging with cube roots, and momentum as an average of iterates.

        g ← ∇f(θ) + λ·θ;  v ← v + (γ + ε)·√t·g²;  s ← s + (γ + ε)·√t·g;  z = θ₀ − s / (∛v + ε);  θ ← μ·θ + (1 − μ)·z

    momentum (μ): float; 0 needs no θ₀. decoupled_decay: θ ← (1 − γ·λ)·θ instead of adding λ·θ to the gradient.
    State: `grad_sum_sq` (v), `s`, and `x0` (θ₀) where momentum is not 0, like the parameter.
    Good for: what needs Adam's speed and SGD's generalization; sparse problems; little or no decay.
    Start: lr swept anew on a grid of powers of ten (1e-4 to 1e-1), weight_decay 0 or a tenth of the usual.
    Names: timm's, which are the authors' (facebookresearch/madgrad), where `decoupled_decay` is `decouple_decay`.
    Source: Defazio and Jelassi 2022, arXiv:2101.11075.
    """

    rule = madgrad
    bounds = (*BOUNDS, Bound("momentum", "Invalid momentum value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0,
        eps: float = 1e-6,
        decoupled_decay: bool = False,
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
