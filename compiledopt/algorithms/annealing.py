"""At which steps work is due that is wanted ever less."""

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
