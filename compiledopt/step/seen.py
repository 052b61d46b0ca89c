"""Whether the groups still ask for what a plan was made for."""

from __future__ import annotations

from operator import is_
from typing import Any

from compiledopt import around
from compiledopt.rules.rule import Rule
from compiledopt.step import choose


class Seen:
    """What of a group a plan depends on, beside what its rule reads; and the objects that were in it when it was looked at."""

    def __init__(self, rule: Rule, group: Any) -> None:
        choose.check_options(group)
        self.rule, self.group = rule, group
        self.wanted, self.executors = self._now()
        self._look()

    def _now(self) -> tuple[Any, list[Any]]:
        return around.wanted(self.rule, self.group), [self.group.get(name) for name in choose.OPTIONS]

    def _look(self) -> None:
        # Not through the group, which may compute what is asked of it.
        self.due = around.due(self.rule, self.group)
        self.names, self.values = tuple(dict.keys(self.group)), tuple(dict.values(self.group))
        # What may change in place is read anew at each step: lists, and tensors on whose being zero a program depends.
        others = [value for name, value in zip(self.names, self.values, strict=True) if name not in ("params", "param_names")]
        branching = [self.group[name] for name in self.rule.branches if name in self.group]
        self.fixed = not any(isinstance(value, (list, dict)) for value in others)
        self.fixed &= all(isinstance(value, (float, int)) for value in branching)
        self.fixed &= type(self.group["params"]) is list  # what native code walks through

    def is_as_before(self) -> bool:
        """Whether the group holds the very objects that it held, none of which can have changed."""
        same = self.fixed and tuple(dict.keys(self.group)) == self.names
        if self.rule.every and around.due(self.rule, self.group) != self.due:
            return False
        return same and all(map(is_, dict.values(self.group), self.values))

    def fits(self) -> bool:
        """Whether the group still asks for the same around its rule, and for the same executor."""
        if self._now() != (self.wanted, self.executors):
            return False
        self._look()
        return True
