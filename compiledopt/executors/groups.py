"""A parameter group whose learning rate is a function of its own step count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compiledopt.compiler.derive import SCHEDULE
from compiledopt.compiler.schedule import Schedule


class ScheduledGroup(dict[str, Any]):
    """A group with a schedule: `group["lr"]` is what the next step will use, whoever counted the steps, a replayed graph
    for instance. Assigning another schedule changes it, and a number ends it; but the very number that was read last keeps
    the schedule or brings it back: distributed checkpoints read the rate, set 0 for a step that makes the states, and put
    back what they read.

    state: the optimizer's, to read the step counts from.
    """

    state: Mapping[Any, Any] | None = None
    shown: float | None = None
    ended: Schedule | None = None

    def __getitem__(self, key: str) -> Any:
        if key != "lr" or SCHEDULE not in self:
            return super().__getitem__(key)
        self.shown = float(super().__getitem__(SCHEDULE)(self.step))
        super().__setitem__("lr", self.shown)
        return self.shown

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - that would call itself

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            schedule = super().get(SCHEDULE, self.ended)
            if isinstance(value, float) and value == self.shown and schedule is not None:
                value = schedule
            if isinstance(value, Schedule):
                key = SCHEDULE
            else:
                self.ended = self.pop(SCHEDULE, None)
        super().__setitem__(key, value)

    @property
    def step(self) -> float:
        """Of the parameter that took most of them; reads a device that holds the count."""
        steps = [(self.state or {}).get(param, {}).get("step") for param in self["params"]]
        counted: dict[torch.device, list[torch.Tensor]] = {}
        for step in steps:
            if isinstance(step, torch.Tensor):
                counted.setdefault(step.device, []).append(step.reshape(()))
        return max((float(torch.stack(values).max()) for values in counted.values()), default=0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return ScheduledGroup, (dict(self),)


def scheduled(group: dict[str, Any], schedule: Schedule, state: Mapping[Any, Any]) -> ScheduledGroup:
    """The group with its rate from a schedule. Raises: TypeError, naming the line, where that cannot be traced."""
    schedule.program  # noqa: B018
    made = ScheduledGroup({**group, "lr": schedule(0), SCHEDULE: schedule})
    made.state = state
    return made
