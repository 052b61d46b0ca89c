"""Adamax."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from compiledopt.algorithms.parts import with_decay
from compiledopt.arguments import Extras, LearningRate, check_adam_numbers
from compiledopt.compiler.rule import rule
from compiledopt.optimizer import Optimizer


@rule(scalars=("step",), branches=("weight_decay",))
def adamax(
    param: Any,
    grad: Any,
    step: Any,
    exp_avg: Any,
    exp_inf: Any,
    *,
    lr: Any,
    betas: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
) -> Any:
    beta1, beta2 = betas
    step = step + 1
    grad = with_decay(param, grad, weight_decay, maximize)
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    exp_inf = torch.maximum(beta2 * exp_inf, grad.abs() + eps)
    return param - lr / (1 - beta1**step) * exp_avg / exp_inf, step, exp_avg, exp_inf


class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm.

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  u ← max(β₂·u, |g| + ε);  θ ← θ − γ / (1 − β₁ᵗ) · m / u

    params: parameters, named parameters, or dicts of groups. lr (γ): float, 1-element tensor or schedule, default 2e-3.
    betas (β₁, β₂): floats in [0, 1), default (0.9, 0.999). eps (ε): float, default 1e-8. weight_decay (λ): float, default 0.
    maximize: flag, default False. foreach, compiled, capturable, differentiable, extras: see docs/executors.md.
    State: `step` (0-dim), `exp_avg` (m) and `exp_inf` (u), like the parameter.
    Mutates: the parameters and the state. Raises: ValueError for a number out of its range.
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    rule = adamax
    missing = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        check_adam_numbers(lr, betas, eps, weight_decay)
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "foreach": foreach}
        defaults |= {"maximize": maximize, "differentiable": differentiable, "capturable": capturable, "compiled": compiled}
        super().__init__(params, defaults, extras)
