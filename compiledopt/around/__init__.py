"""What stands around a rule, one file each: a schedule of the rate, an average, clipping, and the loss scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from compiledopt.around.average import Averaged, averages, swapped
from compiledopt.around.clip import Clipped, Clipping
from compiledopt.around.every import Due, count, due
from compiledopt.around.loss_scale import LossScaled, Scaling
from compiledopt.around.schedule import (
    Ended,
    ScheduledRate,
    adopt_groups,
    schedule_groups,
    schedule_of,
    tell_ended,
    without_schedule,
)
from compiledopt.around.transformation import Transformation
from compiledopt.rules.rule import Rule

__all__ = [
    "Clipping",
    "Ended",
    "Scaling",
    "adopt_groups",
    "averages",
    "check",
    "count",
    "derived",
    "due",
    "schedule_groups",
    "schedule_of",
]
__all__ += ["options", "swapped", "tell_ended", "wanted", "without_schedule"]

# In the order in which they are put around, the first next to the rule.
TRANSFORMATIONS: list[Transformation] = [Due(), ScheduledRate(), Averaged(), Clipped()]
SCALED = LossScaled()  # around all of them, where a GradScaler set its numbers on the optimizer

Wanted = tuple[Hashable | None, ...]
_derived: dict[tuple[Rule, Wanted, bool], Rule] = {}


def options() -> list[str]:
    """What a group may ask for by name, beside the options of its rule."""
    return [one.option for one in TRANSFORMATIONS if one.option is not None]


def wanted(rule: Rule, group: Mapping[str, Any]) -> Wanted:
    """What a group asks for around its rule."""
    return tuple(one.wanted(rule, group) for one in TRANSFORMATIONS)


def derived(rule: Rule, group: Mapping[str, Any], scaled: bool = False) -> Rule:
    """The rule with what the group asks for around it; one object for one choice."""
    key = (rule, wanted(rule, group), scaled)
    if key not in _derived:
        made = rule
        for transformation, answer in zip(TRANSFORMATIONS, key[1], strict=True):
            made = made if answer is None else transformation.derive(made, answer)
        _derived[key] = SCALED.derive(made, True) if scaled else made
    return _derived[key]


def check(rule: Rule | None, group: Mapping[str, Any]) -> None:
    """Refuse what cannot stand around a rule. Raises: ValueError in torch's words where torch has them."""
    for transformation in TRANSFORMATIONS:
        transformation.check(rule, group)
