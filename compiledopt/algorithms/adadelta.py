"""Adadelta."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from compiledopt.algorithms.parts import with_decay
from compiledopt.arguments import Extras, LearningRate, check_number, check_tensor_number
from compiledopt.compiler.rule import rule
from compiledopt.optimizer import Optimizer


@rule(scalars=("step",), branches=("weight_decay",))
def adadelta(
    param: Any,
    grad: Any,
    step: Any,
    square_avg: Any,
    acc_delta: Any,
    *,
    lr: Any,
    rho: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> Any:
    grad = with_decay(param, grad, weight_decay, maximize)
    square_avg = rho * square_avg + (1 - rho) * grad * grad
    delta = (acc_delta + eps).sqrt() / (square_avg + eps).sqrt() * grad
    acc_delta = rho * acc_delta + (1 - rho) * delta * delta
    return param - lr * delta, step + 1, square_avg, acc_delta


class Adadelta(Optimizer):
    """Adadelta: steps in the units of the parameter, from running averages of squares.

        g ← ∇f(θ) + λ·θ;  v ← ρ·v + (1 − ρ)·g²;  Δ ← √(u + ε) / √(v + ε) · g;  u ← ρ·u + (1 − ρ)·Δ²;  θ ← θ − γ·Δ

    params: parameters, named parameters, or dicts of groups. lr (γ): float, 1-element tensor or schedule, default 1.0.
    rho (ρ): float in [0, 1], default 0.9. eps (ε): float, default 1e-6. weight_decay (λ): float, default 0. maximize: flag,
    default False. foreach, compiled, capturable, differentiable, extras: see docs/executors.md.
    State: `step` (0-dim), `square_avg` (v) and `acc_delta` (u), like the parameter.
    Mutates: the parameters and the state. Raises: ValueError for a number out of its range.
    Source: Zeiler 2012, arXiv:1212.5701.
    """

    rule = adadelta
    missing = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

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
        check_tensor_number(lr, "lr")
        check_number(lr, "Invalid learning rate")
        check_number(rho, "Invalid rho value", most=1.0)
        check_number(eps, "Invalid epsilon value")
        check_number(weight_decay, "Invalid weight_decay value")
        defaults: dict[str, Any] = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"capturable": capturable, "foreach": foreach, "differentiable": differentiable, "compiled": compiled}
        super().__init__(params, defaults, extras)
