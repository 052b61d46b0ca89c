"""What a plan needs of its optimizer."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch

from compiledopt import around
from compiledopt.backends.batch import Batch
from compiledopt.interrupts import Whole
from compiledopt.rules.rule import Rule
from compiledopt.step.evaluating import give_modes
from compiledopt.step.shared import give_shared


class Turn:
    """Whose turn it is to step an optimizer. Entering raises RuntimeError while another thread is within."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # by which thread: one that was interrupted in between may enter again

    def __enter__(self) -> None:
        if self._taken.setdefault("thread", get_ident()) != get_ident():
            raise RuntimeError("another thread is in a step of this optimizer; one at a time may step it")

    def __exit__(self, *error: Any) -> None:
        self._taken.clear()


@dataclass(frozen=True, eq=False)
class Owner:
    """rules: of each group, before anything stands around it; reasons: fallbacks it was already warned of; fresh: parameters
    whose states were made ahead of their first update; watched: who looks at every operator of this step, if anybody does;
    turn: for what Python does in a step."""

    name: str
    rules: list[Rule]
    groups: list[dict[str, Any]]
    state: MutableMapping[torch.Tensor, Any]
    reasons: set[str]
    fresh: set[torch.Tensor]
    scaling: around.Scaling | None = None
    clipping: around.Clipping | None = None
    watched: str | None = None
    turn: Turn = field(default_factory=Turn)

    def derived(self) -> list[Rule]:
        """The rule of each group, with what the group and the step ask for around it."""
        scaled = self.scaling is not None
        return [around.reading(rule, group, scaled) for rule, group in zip(self.rules, self.groups, strict=True)]

    def programs(self) -> list[around.Programs]:
        """What updates the parameters of each group."""
        scaled = self.scaling is not None
        return [around.Programs(rule, group, scaled) for rule, group in zip(self.rules, self.groups, strict=True)]

    def step_on(self, device: torch.device) -> dict[str, Any]:
        """The step's own numbers for batches on a device, kept up to date in place."""
        step = {} if self.clipping is None else self.clipping.on(device)
        if self.scaling is not None:
            step.update(self.scaling.on(device))
        return step

    def writing(self) -> Whole:
        """What is entered before the first write of a step, and left after the last."""
        return Whole()

    def count(self, batches: Sequence[Batch]) -> None:
        """A step was taken: groups whose rule has work that is not due at each count them. Mutates: their counts."""
        counting = [group for rule, group in zip(self.rules, self.groups, strict=True) if rule.every]
        if counting and any(entry.param.grad is not None for batch in batches for entry in batch.entries):
            for group in counting:
                around.count(group)

    def measure(self, batches: Sequence[Batch], again: bool) -> None:
        """Measure the norm of the gradients that were gathered, where they are clipped."""
        if self.clipping is not None:
            scale = None if self.scaling is None else self.scaling.last[0]
            self.clipping.measure(batches, scale, again=again)


def share(optimizer: Any) -> None:
    """Give the groups of an optimizer what stands in them beside options: states that parameters share, counts, the mode.

    Mutates: the groups, where one lacks them.
    """
    groups = optimizer.param_groups
    rules = [optimizer.rule_of(group) for group in groups]
    give_modes(rules, groups)
    give_shared(rules, [around.derived(rule, group) for rule, group in zip(rules, groups, strict=True)], groups)
