"""What several rules share: pieces of update, as pure as the rules."""

from __future__ import annotations

from typing import Any


def with_decay(param: Any, grad: Any, weight_decay: Any, maximize: bool) -> Any:
    """g ← ±∇f(θ) + λ·θ."""
    if maximize:
        grad = -grad
    return grad + weight_decay * param if weight_decay != 0 else grad


def with_either_decay(param: Any, grad: Any, lr: Any, weight_decay: Any, decoupled: bool, maximize: bool) -> tuple[Any, Any]:
    """(θ, g) with λ·θ in g, or decoupled  θ ← (1 − γ·λ)·θ."""
    if decoupled and weight_decay != 0:
        return param * (1 - lr * weight_decay), with_decay(param, grad, 0, maximize)
    return param, with_decay(param, grad, weight_decay, maximize)


def moments(grad: Any, exp_avg: Any, exp_avg_sq: Any, betas: Any) -> tuple[Any, Any]:
    """m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²."""
    beta1, beta2 = betas
    return exp_avg.lerp(grad, 1 - beta1), beta2 * exp_avg_sq + (1 - beta2) * grad * grad
