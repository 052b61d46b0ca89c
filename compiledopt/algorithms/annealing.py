"""At which steps work is due: that is wanted ever less, or from some step on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

LOWEST, SETTLED = 0.03, 5000  # the least probability, and steps after which it is that


@lru_cache(maxsize=1)
def _annealed() -> tuple[tuple[bool, ...], int]:
    """At which of the first steps the factors are due, with probability 1 for 500 steps, then falling to 0.03 by 4000; and the
    last of those."""
    due, waited = [], 0
    for step in range(SETTLED):
        waited += 1
        due.append(waited >= 1 / min(1.0, max(LOWEST, math.exp(-0.001 * (step - 500)))))
        waited = 0 if due[-1] else waited
    return tuple(due), SETTLED - waited


def is_due(step: int, group: Mapping[str, Any]) -> bool:
    """Whether the factors are due at a step of a group, counted from 1."""
    probability = group["preconditioner_update_probability"]
    if probability is not None:
        return bool(step % math.ceil(1 / probability) == 0)
    due, last = _annealed()
    return due[step - 1] if step <= SETTLED else (step - last) % math.ceil(1 / LOWEST) == 0


def _start(group: Mapping[str, Any]) -> int:
    start = int(group["start_preconditioning_step"])
    return int(group["precondition_frequency"]) if start == -1 else start


def is_early(step: int, group: Mapping[str, Any]) -> bool:
    """Whether a step of a group, counted from 1, is before its first with roots."""
    return step < _start(group)


def is_due_from_start(step: int, group: Mapping[str, Any]) -> bool:
    """Whether roots are due at a step of a group, counted from 1."""
    start = _start(group)
    return step == start or (step > start and step % int(group["precondition_frequency"]) == 0)
