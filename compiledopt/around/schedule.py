"""A parameter group whose learning rate is a function of its own step count."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Protocol
from weakref import ReferenceType, ref

import torch

from compiledopt.around.transformation import Transformation, named, results
from compiledopt.errors import warn
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule

SCHEDULE = "lr_schedule"


class ScheduledRate(Transformation):
    """lr ← schedule(step), from the rule's own step count, or one that is added."""

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        schedule = group.get(SCHEDULE)
        if schedule is None and SCHEDULE not in group and isinstance(group.get("lr"), Schedule):  # put there by hand
            schedule = group["lr"]
        return schedule

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        if rule is None and isinstance(group.get("lr"), Schedule):
            raise ValueError("a schedule as lr is for optimizers that are one rule for each parameter, which this one is not")

    def derive(self, rule: Rule, wanted: Schedule) -> Rule:
        counts = "step" in (*rule.scalars, *rule.shared)
        at = rule.states.index("step") if counts else len(rule.states)
        options = tuple(name for name in rule.options if name != "lr")
        rate = wanted.function  # not the schedule, with which what is derived ends

        def scheduled(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
            step = states[at]
            own = states if counts else states[:-1]
            new = results(rule, param, grad, own, {**options, "lr": rate(step)})
            return new if counts else (*new, step + 1)

        made = replace(rule, function=scheduled, options=options)
        if not counts:
            made = replace(made, states=(*rule.states, "step"), added=rule.added | {"step"})
            if rule.shared:  # these may follow from the rate, so parameters share its count
                made = replace(made, shared={**rule.shared, "step": "group"})
            else:
                made = replace(made, scalars=rule.scalars | {"step"})
        return named(made, rule)


class Grouped(Protocol):
    """An optimizer: its `state` may be exchanged for another at any time, so a group asks for it anew."""

    param_groups: list[dict[str, Any]]
    state: Any


@dataclass(frozen=True)
class Ended:
    """A schedule whose place a number took. by: who put it there."""

    schedule: Schedule
    by: str


class ScheduledGroup(dict[str, Any]):
    """A group with a schedule: `group["lr"]` is what the next step will use, whoever counted the steps, a replayed graph
    for instance, and however it is read. Assigning another schedule changes it, and a number ends it; but the very number
    that was read last keeps the schedule or brings it back: distributed checkpoints read the rate, set 0 for a step that
    makes the states, and put back what they read.
    """

    owner: ReferenceType[Grouped] | None = None
    shown: float | None = None
    ended: Ended | None = None

    def _show(self) -> None:
        """Take down the rate of the next step, for whoever reads the dict itself; a copy without an optimizer keeps its own."""
        schedule, optimizer = super().get(SCHEDULE), None if self.owner is None else self.owner()
        if schedule is not None and optimizer is not None:
            self.shown = float(schedule(self._step(optimizer.state)))
            super().__setitem__("lr", self.shown)

    def __getitem__(self, key: str) -> Any:
        if key == "lr":
            self._show()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - that would call itself

    # dict(group) and {**group} read through these three where __iter__ is not dict's own.
    def __iter__(self) -> Iterator[str]:
        self._show()
        return super().__iter__()

    def keys(self) -> Any:
        self._show()
        return super().keys()

    def items(self) -> Any:
        self._show()
        return super().items()

    def values(self) -> Any:
        self._show()
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __repr__(self) -> str:
        self._show()
        return super().__repr__()

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            schedule = super().get(SCHEDULE) or (self.ended.schedule if self.ended else None)
            if isinstance(value, float) and value == self.shown and schedule is not None:
                value = schedule
            if isinstance(value, Schedule):
                key, self.ended = SCHEDULE, None
            elif (ending := self.pop(SCHEDULE, None)) is not None:
                self.ended = Ended(ending, _caller())
        super().__setitem__(key, value)

    def update(self, *others: Any, **values: Any) -> None:
        for key, value in dict(*others, **values).items():
            self[key] = value

    def _step(self, state: Any) -> float:
        """Of the group, or of the parameter that took most of them; reads a device that holds the count."""
        shared = super().get("step")
        if isinstance(shared, torch.Tensor):
            return float(shared)
        counted: dict[torch.device, list[torch.Tensor]] = {}
        for param in super().__getitem__("params"):
            step = state[param].get("step") if param in state else None
            if isinstance(step, torch.Tensor):
                counted.setdefault(step.device, []).append(step.reshape(()))
        return max((float(torch.stack(values).max()) for values in counted.values()), default=0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return ScheduledGroup, (dict(self),)


def schedule_of(group: Mapping[str, Any]) -> Schedule | None:
    """That of a group, also where a number has ended it."""
    if isinstance(group, ScheduledGroup) and group.ended is not None:
        return group.ended.schedule
    return group.get(SCHEDULE)


def schedule_groups(optimizer: Grouped, schedules: Sequence[Schedule | None] = ()) -> None:
    """Give each group its schedule: of `schedules`, one that stands there as `lr`, or that of another optimizer whose group it
    is. Mutates: `param_groups`. Raises: TypeError, naming the line, where a schedule cannot be traced."""
    for index, (group, schedule) in enumerate(zip_longest(optimizer.param_groups, schedules)):
        given = dict.get(group, "lr")  # as it stands there; a rule of one's own need not have a rate
        schedule = schedule or (given if isinstance(given, Schedule) else None)
        if isinstance(group, ScheduledGroup) and (group.owner is None or group.owner() is not optimizer):
            schedule = schedule or group.get(SCHEDULE)
        if schedule is not None:
            optimizer.param_groups[index] = scheduled(dict(group), schedule, optimizer)


def adopt_groups(optimizer: Grouped) -> None:
    """Let scheduled groups read the steps of this optimizer, which took them over from a pickle or a copy."""
    for group in optimizer.param_groups:
        if isinstance(group, ScheduledGroup):
            group.owner = ref(optimizer)


def without_schedule(group: dict[str, Any]) -> dict[str, Any]:
    """A group to be saved: a schedule is code."""
    return {name: value for name, value in group.items() if name != SCHEDULE}


def tell_ended(groups: Sequence[dict[str, Any]], told: set[Ended]) -> None:
    """Say once of a schedule that a number took its place. Not where the number is 0: so distributed checkpoints take a step
    that makes the states, before they put the rate back. Mutates: `told`."""
    for index, group in enumerate(groups):
        ended = group.ended if isinstance(group, ScheduledGroup) else None
        if ended is None or ended in told or group["lr"] == 0:
            continue
        told.add(ended)
        warn(
            f"the schedule {ended.schedule} of param_groups[{index}] ended, since {ended.by} set its lr to {group['lr']}; "
            "to go on with it, assign the schedule to group['lr'] again, or load a state_dict"
        )


def _caller() -> str:
    """The first frame that is not the library's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("compiledopt."):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')} ({frame.f_code.co_filename}:{frame.f_lineno})"


def scheduled(group: dict[str, Any], schedule: Schedule, optimizer: Grouped) -> ScheduledGroup:
    """The group with its rate from a schedule. Raises: TypeError, naming the line, where that cannot be traced."""
    schedule.program  # noqa: B018
    made = ScheduledGroup({**group, "lr": schedule(0), SCHEDULE: schedule})
    made.owner = ref(optimizer)
    return made
