"""Adagrad."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from compiledopt.algorithms.parts import with_decay
from compiledopt.arguments import Extras, LearningRate, check_number, check_tensor_number
from compiledopt.compiler.rule import rule
from compiledopt.optimizer import Optimizer


@rule(scalars=("step",), initial={"sum": "initial_accumulator_value"}, branches=("weight_decay",), sparse="rows")
def adagrad(
    param: Any,
    grad: Any,
    step: Any,
    sum: Any,
    *,
    lr: Any,
    lr_decay: Any,
    weight_decay: Any,
    initial_accumulator_value: Any,
    eps: Any,
    maximize: bool,
) -> Any:
    grad = with_decay(param, grad, weight_decay, maximize)
    sum = sum + grad * grad
    param = param - lr / (1 + step * lr_decay) * grad / (sum.sqrt() + eps)
    return param, step + 1, sum


class Adagrad(Optimizer):
    """Adagrad: steps scaled by the sum of all squared gradients so far.

        g ← ∇f(θ) + λ·θ;  s ← s + g²;  θ ← θ − γ / (1 + (t − 1)·η) · g / (√s + ε)

    params: parameters, named parameters, or dicts of groups. lr (γ): float, 1-element tensor or schedule, default 1e-2.
    lr_decay (η), weight_decay (λ), initial_accumulator_value (s at first): floats, default 0. eps (ε): float, default 1e-10.
    maximize: flag, default False. foreach, fused, compiled, capturable, differentiable, extras: see docs/executors.md.
    State, made with the optimizer: `step` (0-dim) and `sum` (s), like the parameter.
    Mutates: the parameters and the state. Raises: ValueError for a number out of its range.
    Source: Duchi, Hazan and Singer 2011.
    Sparse gradients are taken where weight_decay is 0: the rows they name are updated. Deviations from torch: none.
    """

    rule = adagrad
    missing = {"foreach": None, "maximize": False, "differentiable": False, "fused": None, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        check_tensor_number(lr, "lr")
        check_number(lr, "Invalid learning rate")
        check_number(lr_decay, "Invalid lr_decay value")
        check_number(weight_decay, "Invalid weight_decay value")
        check_number(initial_accumulator_value, "Invalid initial_accumulator_value value")
        check_number(eps, "Invalid epsilon value")
        defaults: dict[str, Any] = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize}
        defaults |= {"differentiable": differentiable, "fused": fused, "capturable": capturable, "compiled": compiled}
        super().__init__(params, defaults, extras)
        self.make_states()
