"""What the Schedule-Free algorithms share: the weights of the average, the two points, and how one becomes the other."""

from __future__ import annotations

from typing import Any

import torch

SHARED = {"k": "group", "lr_max": "group", "weight_sum": "group"}
INITIAL: dict[str, Any] = {"z": lambda param: param.clone(), "lr_max": -1.0}


def weighted(lr: Any, k: Any, lr_max: Any, weight_sum: Any, r: Any, weight_lr_power: Any) -> tuple[Any, Any, Any, Any]:
    """(share of the new point in the average, k, lr_max, weight_sum)."""
    lr_max = torch.maximum(lr_max, lr)
    weight = (k + 1) ** r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    return torch.where(weight_sum > 0, weight / weight_sum, 0.0), k + 1, lr_max, weight_sum


def warmed_up(lr: Any, k: Any, warmup_steps: Any) -> Any:
    return lr * torch.where(k < warmup_steps, (k + 1) / warmup_steps, 1.0)


def moved(y: Any, z: Any, update: Any, lr: Any, share: Any, beta: Any) -> tuple[Any, Any]:
    """(y, z) after a step of z along an update; the average x stands for itself, since y = β·x + (1 − β)·z."""
    return y + share * (z - y) - (lr * (1 - beta * (1 - share))) * update, z - lr * update


def to_average(y: Any, z: Any, beta: Any) -> Any:
    return y + (1 - 1 / beta) * (z - y)


def to_training(x: Any, z: Any, beta: Any) -> Any:
    return x + (1 - beta) * (z - x)


def _x_by_betas(param: Any, z: Any, *, betas: Any) -> Any:
    return to_average(param, z, betas[0])


def _y_by_betas(param: Any, z: Any, *, betas: Any) -> Any:
    return to_training(param, z, betas[0])


BY_BETAS = (_x_by_betas, _y_by_betas)
