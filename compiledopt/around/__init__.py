"""What stands around a rule, one file each: an option of a group asks for it, and a rule is made of the rule."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from compiledopt.around.average import Averaged, averages, swapped
from compiledopt.around.cautious import Cautious
from compiledopt.around.centralize import Centralized
from compiledopt.around.clip import Clipped, Clipping
from compiledopt.around.corrected_decay import CorrectedDecay
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
from compiledopt.around.skip_nonfinite import Skipping, skipped
from compiledopt.around.transformation import Transformation
from compiledopt.around.update_clipping import UpdateClipped
from compiledopt.rules.rule import Rule

__all__ = ["Clipping", "Ended", "Scaling", "adopt_groups", "averages", "check", "complete", "derived", "described", "letters"]
__all__ += ["options", "schedule_groups", "schedule_of", "skipped", "swapped", "tell_ended", "wanted", "without_schedule"]

# In the order in which they are put around, the first next to the rule: what is last sees the gradient first, and has the last
# word on what is written. docs/training-loop.md says what follows from that.
TRANSFORMATIONS: list[Transformation] = [Cautious(), UpdateClipped(), CorrectedDecay(), ScheduledRate(), Averaged()]
TRANSFORMATIONS += [Centralized(), Clipped(), Skipping()]
SCALED = LossScaled()  # around all of them, where a GradScaler set its numbers on the optimizer

Wanted = tuple[Hashable | None, ...]
_derived: dict[tuple[Rule, Wanted, bool], Rule] = {}


def options() -> list[str]:
    """What a group may ask for by name, beside the options of its rule."""
    return [one.option for one in TRANSFORMATIONS if one.option is not None]


def described() -> dict[str, str]:
    """{such an option: what help() says of it}."""
    return {one.option: one.described for one in TRANSFORMATIONS if one.option is not None}


def letters() -> dict[str, str]:
    """{a name in a derived rule: its letter in formulas}."""
    return {name: letter for one in TRANSFORMATIONS for name, letter in one.letters.items()}


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


def complete(rule: Rule, group: dict[str, Any]) -> None:
    """Fill in what a group that was added leaves open. Mutates: `group`."""
    for transformation in TRANSFORMATIONS:
        group.update(transformation.completed(rule, group))
