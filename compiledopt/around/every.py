"""`every=` of a rule: work that is due every so many steps. Each choice of what is due is a program of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, named
from compiledopt.rules.options import as_float
from compiledopt.rules.rule import Rule, Turn

STEPS = "steps"  # of a group: how many were taken, where its rule has work that is not due at each


class Due(Transformation):
    """What of a rule is due at this step: options that are True then, and False otherwise."""

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return due(rule, group)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        flags = {name: name in wanted for name in rule.every}

        def at_this_step(param: Any, grad: Any, *states: Any, **options: Any) -> Any:
            return rule(param, grad, *states, **options, **flags)

        options = tuple(name for name in rule.options if name not in flags)
        return named(replace(rule, function=at_this_step, options=options), rule)


def due(rule: Rule, group: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Which of a rule's options are True at the next step of a group; None for a rule without such."""
    if not rule.every:
        return None
    step = as_float(group.get(STEPS, 0.0)) + 1
    return tuple(name for name, turn in rule.every.items() if _is_due(turn, step, group))


def _is_due(turn: Turn, step: float, group: Mapping[str, Any]) -> bool:
    if callable(turn):
        return turn(int(step), group)
    often, first = turn
    return (step - first) % max(1.0, as_float(group[often])) == 0


def count(group: Mapping[str, Any]) -> None:
    """A step was taken. Mutates: the group's count, in place."""
    with torch.no_grad():
        group[STEPS].add_(1)
