"""The programs of this process: each (rule, flags) is traced once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from compiledopt.compiler.program import Program
from compiledopt.compiler.rule import Rule, as_float, truthy
from compiledopt.compiler.source import Eager, eager, scalar_function
from compiledopt.compiler.stats import STATS, timed
from compiledopt.compiler.trace import is_number, trace

_traced: dict[tuple[Rule, tuple[Any, ...]], Traced] = {}


def _reader(name: str) -> Callable[[Mapping[str, Any]], float]:
    option, _, index = name.partition("[")
    if index:
        position = int(index[:-1])
        return lambda group: as_float(group[option][position])
    return lambda group: as_float(group[option])


class Traced:
    """A program and what is derived from it, each derived once."""

    def __init__(self, rule: Rule, program: Program) -> None:
        self.rule = rule
        self.program = program
        self.state_names = tuple(node.name for node in program.tensors[2:])
        self.scalar_names = tuple(program.scalar_outputs)
        self.reads_first = any(node.name == "first" for node in program.scalars)
        self._eager: dict[tuple[bool, torch.dtype | None], Eager] = {}
        self._readers = [self._source(node.name) for node in program.scalars]

    def _source(self, name: str) -> tuple[int | None, Callable[[Mapping[str, Any]], float] | None]:
        """Where a 0-dim input comes from: a position among (first, *scalar states), or an option of the group."""
        if name == "first":
            return 0, None
        if name in self.scalar_names:
            return 1 + self.scalar_names.index(name), None
        return None, _reader(name)

    @cached_property
    def _scalars(self) -> Callable[..., tuple[list[float], list[float]]]:
        return scalar_function(self.program)

    def scalars(self, group: Mapping[str, Any], row: tuple[float, ...]) -> tuple[list[float], list[float]]:
        """The scalar part in float64: (columns, new 0-dim states) for one row: (first, *0-dim states)."""
        return self._scalars(*(row[at] if read is None else read(group) for at, read in self._readers))  # type: ignore[index]

    def eager(self, *, foreach: bool, compute: torch.dtype | None) -> Eager:
        key = (foreach, compute)
        if key not in self._eager:
            self._eager[key] = eager(self.program, foreach=foreach, compute=compute)
        return self._eager[key]


def signature(rule: Rule, group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a group's options selects the program: flags, and which branching numbers are zero. Numbers do not."""
    parts: list[Any] = []
    for name in rule.options:
        value = 0.0 if name == "first" else group[name]
        if name in rule.branches:
            parts.append(truthy(value))
        elif isinstance(value, (tuple, list)):
            parts.append(len(value))
        else:
            parts.append(None if is_number(value) else (value,))
    return tuple(parts)


def traced(rule: Rule, group: Mapping[str, Any]) -> Traced:
    """The program of `rule` under the options of `group`. Raises: TraceError where the rule cannot be traced."""
    key = (rule, signature(rule, group))
    if key not in _traced:
        with timed("seconds_tracing"):
            _traced[key] = Traced(rule, trace(rule, group))
        STATS.programs_traced += 1
    return _traced[key]
