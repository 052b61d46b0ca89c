"""A number that follows the step: a pure function, evaluated on the host, or traced into the scalar part of a rule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

from compiledopt.rules.program import Node, Program
from compiledopt.rules.scalars import scalar_function
from compiledopt.rules.symbol import Symbol
from compiledopt.rules.trace import Tracer

SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*"}


@dataclass(frozen=True, eq=False)
class Schedule:
    """A pure function of the step count.

        value at step t = function(t),  t = 0, 1, 2, …

    function: written like a rule, with operators, `torch.where`, `torch.cos` and the like, for a 0-dim `step`; or, where
    it is only ever evaluated on the host, any function of a number. name: what explain calls it.
    Numbers and other schedules may be added, subtracted and multiplied. Mutates: nothing.
    """

    function: Callable[[Any], Any]
    name: str = "schedule"

    def __call__(self, step: float) -> float:
        """The value at a step, in float64, without walking there."""
        return self._number(step)

    @cached_property
    def program(self) -> Program:
        """The function as operations. Raises: TypeError, naming the line, where it is not written like a rule."""
        step: Any = Symbol(Tracer(), Node("input", (), True, "step"))
        value = self.function(step)
        if not isinstance(value, Symbol):  # a constant
            value = step * 0.0 + value
        return Program(self.name, (step.node,), {"value": value.node})

    @cached_property
    def _number(self) -> Callable[[float], float]:
        try:
            traced = scalar_function(self.program)
        except TypeError:  # not written like a rule: no less a function of a number
            return self.function
        return lambda step: traced(float(step))[1][0]

    def __add__(self, other: Schedule | float) -> Schedule:
        return _combined(operator.add, self, other)

    def __radd__(self, other: float) -> Schedule:
        return _combined(operator.add, other, self)

    def __sub__(self, other: Schedule | float) -> Schedule:
        return _combined(operator.sub, self, other)

    def __rsub__(self, other: float) -> Schedule:
        return _combined(operator.sub, other, self)

    def __mul__(self, other: Schedule | float) -> Schedule:
        return _combined(operator.mul, self, other)

    def __rmul__(self, other: float) -> Schedule:
        return _combined(operator.mul, other, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Schedule, (self.function, self.name)

    def __repr__(self) -> str:
        return self.name


def _combined(operation: Callable[[Any, Any], Any], left: Schedule | float, right: Schedule | float) -> Schedule:
    """One object for one expression, so that what is written anew for each optimizer is traced once, and kept once."""
    lasting = all(isinstance(side, Schedule | int | float) for side in (left, right))  # a tensor may change in place
    return (_made if lasting else _made.__wrapped__)(operation, left, right)


@lru_cache(typed=True)
def _made(operation: Callable[[Any, Any], Any], left: Schedule | float, right: Schedule | float) -> Schedule:
    return Schedule(partial(_at, operation, left, right), f"({left} {SIGNS[operation]} {right})")


def _at(operation: Callable[[Any, Any], Any], left: Schedule | float, right: Schedule | float, step: Any) -> Any:
    return operation(*(side.function(step) if isinstance(side, Schedule) else side for side in (left, right)))
