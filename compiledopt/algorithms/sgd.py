"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from compiledopt.algorithms.parts import with_decay
from compiledopt.arguments import Extras, LearningRate, check_number, check_tensor_number
from compiledopt.compiler.rule import rule
from compiledopt.optimizer import Optimizer


@rule(optional={"momentum_buffer": "momentum"}, branches=("momentum", "weight_decay"), sparse="linear")
def sgd(
    param: Any,
    grad: Any,
    momentum_buffer: Any = None,
    *,
    first: Any,
    lr: Any,
    momentum: Any,
    dampening: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
) -> Any:
    grad = with_decay(param, grad, weight_decay, maximize)
    if momentum != 0:
        later = 1 - first
        momentum_buffer = momentum * later * momentum_buffer + (1 - dampening * later) * grad
        grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * grad, momentum_buffer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

        g ← ∇f(θ) + λ·θ;  b ← μ·b + (1 − τ)·g (b ← g at first);  θ ← θ − γ·b,  or with nesterov  θ − γ·(g + μ·b)

    params: parameters, named parameters, or dicts of groups. lr (γ): float, 1-element tensor or schedule, default 1e-3.
    momentum (μ), dampening (τ), weight_decay (λ): floats, or a 1-element tensor for λ, default 0. nesterov, maximize:
    flags, default False. foreach, fused, compiled, capturable, differentiable, extras: see docs/executors.md.
    State: `momentum_buffer`, like the parameter, where momentum is not 0.
    Mutates: the parameters and the state. Raises: ValueError for a number out of its range, RuntimeError for flags that
    contradict each other. Source: Sutskever et al. 2013, "On the importance of initialization and momentum".
    Sparse gradients are taken where weight_decay is 0, as in torch; `momentum_buffer` is then sparse too.
    Deviations from torch: none in the results.
    """

    rule = sgd
    missing = {"nesterov": False, "maximize": False, "foreach": None, "differentiable": False, "fused": False}
    missing |= {"capturable": False}

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
        check_tensor_number(lr, "lr")
        check_number(lr, "Invalid learning rate")
        check_number(momentum, "Invalid momentum value")
        check_number(weight_decay, "Invalid weight_decay value")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        defaults |= {"nesterov": nesterov, "maximize": maximize, "foreach": foreach, "differentiable": differentiable}
        super().__init__(params, defaults | {"fused": fused, "capturable": capturable, "compiled": compiled}, extras)
