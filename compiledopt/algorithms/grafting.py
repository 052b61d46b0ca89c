"""Methods whose steps another takes the length of: what they keep, and how they would step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.rules.pieces import piece

GRAFTS = ("sgd", "adagrad", "rmsprop", "adam")


def kept_for(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The squares of a method that divides by their root."""
    divides = options["graft_type"] not in (None, "sgd")
    return torch.zeros_like(param, memory_format=torch.preserve_format) if divides else None


@piece("mean", "filtered_grad")
def averaged(grad: Any, filtered_grad: Any, *, beta: Any, now: Any, size: Any) -> tuple[Any, Any]:
    """(the average with a weight for the new gradient alone, corrected; the average)."""
    return filtered_grad.lerp(grad, 1 - now) / size, filtered_grad.lerp(grad, 1 - beta)


@piece("direction", "grafting")
def _divided(mean: Any, grad: Any, grafting: Any, *, beta: Any, share: Any, size: Any, eps: Any) -> tuple[Any, Any]:
    grafting = beta * grafting + share * grad * grad
    return mean / ((grafting / size).sqrt() + eps), grafting


def grafted(mean: Any, grad: Any, grafting: Any, kind: str | None, beta2: Any, eps: Any, step: Any) -> tuple[Any, Any]:
    """(the step of the method, what it keeps)."""
    if grafting is None:
        return mean, None
    if kind == "adagrad":
        return _divided(mean, grad, grafting, beta=1.0, share=1.0, size=1.0, eps=eps)
    size = 1 - beta2**step if kind == "adam" else 1.0
    return _divided(mean, grad, grafting, beta=beta2, share=1 - beta2, size=size, eps=eps)
