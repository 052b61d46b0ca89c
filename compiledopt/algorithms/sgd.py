"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(optional={"momentum_buffer": "momentum"}, branches=("momentum", "weight_decay"), sparse="linear")
@with_maximize
def sgd(param, grad, momentum_buffer, *, first, lr, momentum, dampening, weight_decay, nesterov):
    grad = with_decay(param, grad, weight_decay)
    if momentum != 0:
        later = 1 - first
        momentum_buffer = momentum * later * momentum_buffer + (1 - dampening * later) * grad
        grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * grad, momentum_buffer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

        g ← ∇f(θ) + λ·θ;  b ← μ·b + (1 − τ)·g (b ← g at first);  θ ← θ − γ·b,  or with nesterov  θ − γ·(g + μ·b)

    weight_decay (λ): float or 1-element tensor. dampening (τ): float. nesterov: look ahead by the momentum.
    State: `momentum_buffer` (b), like the parameter, where momentum is not 0.
    Source: Sutskever et al. 2013, "On the importance of initialization and momentum".
    Sparse gradients are taken where weight_decay is 0, as in torch; `momentum_buffer` is then sparse too.
    Deviations from torch: none in the results.
    """

    rule = sgd
    missing = {"fused": False}  # torch's __setstate__ does not take its constructor's None

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
