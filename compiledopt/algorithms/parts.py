"""What several rules share: pieces of update, as pure as the rules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def with_maximize(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the option `maximize`, unless it has one: g ← ±∇f(θ) before all else."""
    signature = inspect.signature(function)
    variable = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values())
    if "maximize" in signature.parameters or variable:  # the latter is refused by `rule`
        return function

    @functools.wraps(function)
    def turned(param: Any, grad: Any, *states: Any, maximize: bool, **options: Any) -> Any:
        return function(param, -grad if maximize else grad, *states, **options)

    option = inspect.Parameter("maximize", inspect.Parameter.KEYWORD_ONLY)
    turned.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return turned


def with_decay(param: Any, grad: Any, weight_decay: Any) -> Any:
    """g ← g + λ·θ."""
    return grad + weight_decay * param if weight_decay != 0 else grad


def with_either_decay(param: Any, grad: Any, lr: Any, weight_decay: Any, decoupled: bool) -> tuple[Any, Any]:
    """(θ, g) with λ·θ in g, or decoupled  θ ← (1 − γ·λ)·θ."""
    if decoupled and weight_decay != 0:
        return param * (1 - lr * weight_decay), grad
    return param, with_decay(param, grad, weight_decay)


def moments(grad: Any, exp_avg: Any, exp_avg_sq: Any, betas: Any) -> tuple[Any, Any]:
    """m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²."""
    beta1, beta2 = betas
    return exp_avg.lerp(grad, 1 - beta1), beta2 * exp_avg_sq + (1 - beta2) * grad * grad


def rectification(step: Any, beta2: Any) -> tuple[Any, Any]:
    """RAdam's r·√(1 − β₂ᵗ), and whether the variance of 1/√v is known: where not, r is 1 and is not to be used."""
    correction = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    rectifier = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    # Negative at first, and its square root not a number: the branch is not taken then, but gradients pass through it.
    return (torch.where(length > 5, rectifier, 1.0) * correction) ** 0.5, length > 5
