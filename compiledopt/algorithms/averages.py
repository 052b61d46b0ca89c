"""How long averages become."""

from __future__ import annotations

import math
from typing import Any

import torch


def _half_life(beta: Any) -> Any:
    """Of an average, less one, in steps."""
    return math.log(0.5) / torch.log(beta + 1e-8) - 1


def warmed(step: Any, warmup: Any, first: Any, last: Any) -> Any:
    """A β that grows from `first` to `last` in so many steps, linearly in its half-life."""
    part = (step / warmup).clamp_max(1.0)
    steps = (1 - part) * _half_life(first) + part * _half_life(last)
    return torch.where(step < warmup, 0.5 ** (1 / (steps + 1)), last)
