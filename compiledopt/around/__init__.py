"""What stands around a rule, one file each: an option of a group asks for it, and a rule is made of the rule."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch

from compiledopt import storage
from compiledopt.around.average import Averaged, averages, swapped
from compiledopt.around.cautious import Cautious
from compiledopt.around.centralize import Centralized
from compiledopt.around.clip import Clipped, Clipping
from compiledopt.around.corrected_decay import CorrectedDecay
from compiledopt.around.every import Due, count, due
from compiledopt.around.grokfast import Grokfast
from compiledopt.around.lists import Listed
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
from compiledopt.rules.options import NORM, check_numbers
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule
from compiledopt.rules.traced import Traced, traced

__all__ = ["Clipping", "Ended", "Programs", "Scaling", "adopt_groups", "asks_for_norm", "averages", "check", "complete"]
__all__ += [
    "count",
    "derived",
    "described",
    "due",
    "letters",
    "options",
    "reading",
    "schedule_groups",
    "schedule_of",
    "swapped",
    "tell_ended",
]
__all__ += ["skipped", "take_over", "wanted", "without_schedule"]

# In the order in which they are put around, the first next to the rule: what is last sees the gradient first, and has the last
# word on what is written. docs/training-loop.md says what follows from that.
TRANSFORMATIONS: list[Transformation] = [Listed(), Due(), Cautious(), UpdateClipped(), CorrectedDecay(), ScheduledRate()]
TRANSFORMATIONS += [Averaged(), Grokfast(), Centralized(), Clipped(), Skipping()]
SCALED = LossScaled()  # around all of them, where a GradScaler set its numbers on the optimizer

Wanted = tuple[Hashable | None, ...]  # of each transformation, and of storage


def options() -> list[str]:
    """What a group may ask for by name, beside the options of its rule."""
    return [*(one.option for one in TRANSFORMATIONS if one.option is not None), *storage.OPTIONS]


def described() -> dict[str, str]:
    """{such an option: what help() says of it}."""
    return {one.option: one.described for one in TRANSFORMATIONS if one.option is not None}


def letters() -> dict[str, str]:
    """{a name in a derived rule: its letter in formulas}."""
    return {name: letter for one in TRANSFORMATIONS for name, letter in one.letters.items()}


def wanted(rule: Rule, group: Mapping[str, Any]) -> Wanted:
    """What a group asks for around its rule, and of how its values are kept."""
    return (*(one.wanted(rule, group) for one in TRANSFORMATIONS), storage.wanted(group))


def derived(rule: Rule, group: Mapping[str, Any], scaled: bool = False, param: torch.Tensor | None = None) -> Rule:
    """The rule with what the group asks for around it; one object for one choice. param: one whose values are kept as the
    group asks; without it, what is said of the rule is what holds for all of the group's."""
    made = _around(rule, tuple(one.wanted(rule, group) for one in TRANSFORMATIONS))
    kept = None if param is None else storage.kept(made, group, param)
    known, key = made.derived.setdefault(made, {}), (kept, scaled)
    if key not in known:
        in_blocks = kept is not None and kept.has_blocks
        made = SCALED.derive(made, True) if scaled and in_blocks else made
        made = made if kept is None else storage.keep_apart(made, kept)
        if scaled:
            made = SCALED.hold_codes(made) if in_blocks else SCALED.derive(made, True)
        known[key] = made
    return known[key]


def asks_for_norm(rule: Rule, group: Mapping[str, Any]) -> bool:
    """Whether what stands around the rule asks for the norm over all gradients."""
    return NORM in derived(rule, group).options


def _around(rule: Rule, asked: Wanted) -> Rule:
    schedule = next((answer for answer in asked if isinstance(answer, Schedule)), None)
    known = rule.derived.setdefault(rule if schedule is None else schedule, {})
    key = tuple(answer for answer in asked if answer is not schedule) if schedule is not None else asked
    if key not in known:
        made = rule
        for transformation, answer in zip(TRANSFORMATIONS, asked, strict=True):
            made = made if answer is None else transformation.derive(made, answer)
        known[key] = made
    return known[key]


class Programs:
    """What updates the parameters of one group: a program for each kind of them that keeps its values in its own way."""

    def __init__(self, rule: Rule, group: Mapping[str, Any], scaled: bool = False) -> None:
        check_numbers(rule.of_numbers, group)
        self.rule, self.group, self.scaled = rule, group, scaled
        self.is_one = not storage.is_asked(group)
        self.known: dict[Hashable, Traced] = {}

    @cached_property
    def bare(self) -> Traced:
        """That of parameters whose values are kept as the rule makes them."""
        return traced(derived(self.rule, self.group, self.scaled), self.group)

    def of(self, param: torch.Tensor) -> Traced:
        if self.is_one:
            return self.bare
        kind = storage.kind_of(self.rule, self.group, param)
        if kind not in self.known:
            self.known[kind] = traced(derived(self.rule, self.group, self.scaled, param), self.group)
        return self.known[kind]


def reading(rule: Rule, group: Mapping[str, Any], scaled: bool = False) -> Rule:
    """The rule as what reads every number of a group that any of its parameters needs."""
    return storage.reading(derived(rule, group, scaled), group)


def check(rule: Rule | None, group: Mapping[str, Any]) -> None:
    """Refuse what cannot stand around a rule. Mutates: `group`, which gets the numbers that it did not say. Raises: ValueError
    in torch's words where torch has them."""
    for transformation in TRANSFORMATIONS:
        transformation.check(rule, group)
    if rule is not None:
        whole = dict(group)
        for transformation in TRANSFORMATIONS:
            whole |= transformation.completed(rule, group)
        rule = derived(rule, whole)
    storage.check(rule, group)


def take_over(rules: Iterable[Rule], groups: Iterable[dict[str, Any]]) -> None:
    """Check and complete how values are kept where it was put into a group by hand. Mutates: the groups. Raises: ValueError."""
    for rule, group in zip(rules, groups, strict=True):
        if storage.is_asked(group):
            check(rule, group)
            storage.complete(group)


def complete(rule: Rule, group: dict[str, Any]) -> None:
    """Fill in what a group that was added leaves open. Mutates: `group`."""
    for transformation in TRANSFORMATIONS:
        group.update(transformation.completed(rule, group))
    storage.complete(group)
