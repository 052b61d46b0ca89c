"""The scalar part of a program, and of what is summed before it, as functions of floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from compiledopt.rules.options import STEP_NUMBERS, as_float
from compiledopt.rules.program import SIZES, Node, Program
from compiledopt.rules.scalars import scalar_function
from compiledopt.rules.totals import Measure, measures

Numbers = Mapping[str, Any]


class ScalarPart:
    """The scalar part of a program as a function of floats."""

    def __init__(self, program: Program, scalar_names: tuple[str, ...]) -> None:
        self.program = program
        self.scalar_names = scalar_names
        # Where each 0-dim input comes from: a place in a row (first, *0-dim states), the step's numbers, or the group's.
        places = {"first": 0, **{name: index for index, name in enumerate(scalar_names, 1)}}
        self.size_names = tuple(node.name for node in program.scalars if node.name.startswith(SIZES))
        places |= {name: 1 + len(scalar_names) + index for index, name in enumerate(self.size_names)}
        self.inputs = [(places.get(node.name, -1), _is_of_step(node), node.name) for node in program.scalars]

    @cached_property
    def _function(self) -> Callable[..., tuple[list[float], list[float]]]:
        return scalar_function(self.program)

    def sizes(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Of a parameter, those that are read."""
        return tuple(self.size(name, shape) for name in self.size_names)

    @staticmethod
    def size(name: str, shape: Sequence[int]) -> float:
        """A number of a parameter, by its name in programs. A parameter without dimensions has one of size 1."""
        if name == SIZES[0]:
            return float(math.prod(shape))
        return float((shape or (1,))[int(name[len(SIZES[1]) + 1 : -1])])

    def __call__(self, numbers: Numbers, step: Numbers, row: tuple[float, ...]) -> tuple[list[float], list[float]]:
        """In float64: (columns, new 0-dim states). numbers: of the group; step: of the step; row: (first, *0-dim states,
        *sizes)."""
        return self._function(
            *[row[place] if place >= 0 else as_float(step[name] if own else numbers[name]) for place, own, name in self.inputs]
        )


def _is_of_step(node: Node) -> bool:
    """Whether a number is one of the step itself; a total over a group stands with the numbers of that."""
    return node.name in STEP_NUMBERS or (node.op == "total" and not node.is_of_group)


class Measurement:
    """One of the rounds of sums that come before an update."""

    def __init__(self, measure: Measure, scalar_names: tuple[str, ...]) -> None:
        self.program, self.reads = measure.program, measure.reads
        self.totals = measure.totals
        self.scalars = ScalarPart(measure.program, scalar_names)


def measurements(program: Program, scalar_names: tuple[str, ...]) -> tuple[Measurement, ...]:
    """The rounds of sums of a program, those first that others are computed from."""
    return tuple(Measurement(measure, scalar_names) for measure in measures(program))
