"""Sums over all parameters, between preparing a step and launching it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from compiledopt.around import Programs
from compiledopt.backends.batch import Batch, Context, TotalOf, Value
from compiledopt.rules.program import Node
from compiledopt.rules.traced import Runnable, Traced

Group = dict[str, Any]


class Totals:
    """The totals of a plan. Where a value is on a device, it stays there."""

    def __init__(self, context: Context, kinds: Sequence[Programs]) -> None:
        """context: the one that reads the groups; kinds: the programs of each.

        Raises: RuntimeError, where a rule cannot sum over parameters.
        """
        self.context = context
        # However the values of a parameter are kept, its program has totals of the same names in the same rounds.
        programs = [each.bare for each in kinds]
        self.measured = [_measured(program, group) for program, group in zip(programs, context.groups, strict=True)]
        self.steps: list[dict[str, Any]] = []
        self.exist = any(self.measured)
        if self.exist:
            self._check()
            self.context.more = [self._zeros(group, True) for group in range(len(programs))]
            self.context.add_more()

    def _check(self) -> None:
        owner, lines = self.context.owner, dict[str, str]()
        for measured, group in zip(self.measured, self.context.groups, strict=True):
            if measured and group.get("differentiable"):
                raise RuntimeError(f"{owner} sums over all parameters, which `differentiable=True` does not support")
            for node in _totals(measured):
                if lines.setdefault(node.name, node.line) != node.line:
                    raise RuntimeError(
                        f"{owner}: {node.line} and {lines[node.name]} are both {node.name}, in groups that differ in a flag or "
                        "for parameters of other dimensions; take each total whatever those are"
                    )

    def _zeros(self, group: int, of_group: bool) -> dict[str, Any]:
        return {node.name: 0.0 for node in _totals(self.measured[group]) if node.is_of_group is of_group}

    def join(self, step: dict[str, Any]) -> None:
        """Keep the totals among a device's numbers of the step. Mutates: step."""
        for group in range(len(self.measured)):
            step.update(self._zeros(group, False))
        self.steps.append(step)

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch], again: bool = False) -> None:
        """Sum over what was gathered, and let the batches know. again: parameters that are listed twice, and counted before."""
        measured = [(batch, most) for batch in batches if (most := batch.rounds_of_totals)]
        for number in range(0 if again else max((most for _, most in measured), default=0)):
            found: dict[TotalOf, Value] = {}
            for batch, most in measured:
                for key, value in batch.totals(number).items() if number < most else ():
                    found[key] = _sum(found[key], value) if key in found else value
            self._set(found, number)
        for batch, _ in measured:
            batch.renew()

    def _set(self, found: Mapping[TotalOf, Value], number: int) -> None:
        """Totals of parameters without a gradient are zero."""
        for index, measured in enumerate(self.measured):
            for node in _totals(measured, number):
                value = found.get((node.name, index if node.is_of_group else None), 0.0)
                for numbers in [self.context.more[index]] if node.is_of_group else self.steps:
                    _put(numbers, node.name, value)
        self.context.add_more()


def _measured(program: Traced, group: Mapping[str, Any]) -> list[Runnable]:
    """What a group's parameters are summed by: nothing, one program, or a variant for each kind of parameter."""
    found = {program} if program.elementwise else {program.measured(param) for param in group["params"]}
    return [one for one in found if one.measures]


def _totals(measured: Sequence[Runnable], round: int | None = None) -> Iterator[Node]:
    """The totals of all rounds, or of one."""
    for one in measured:
        for measure in one.measures if round is None else one.measures[round : round + 1]:
            yield from measure.totals


def _put(numbers: dict[str, Any], name: str, value: Value) -> None:
    """Mutates: what is there already where that is a tensor, which a kernel reads."""
    there = numbers.get(name)
    if isinstance(there, torch.Tensor) and there is not value and not there.is_inference():
        there.copy_(value, non_blocking=True) if isinstance(value, torch.Tensor) else there.fill_(value)
    else:
        numbers[name] = value


def _sum(one: Value, other: Value) -> Value:
    """On the host where both are there, else on the device of the first that is not."""
    if isinstance(one, float) and isinstance(other, torch.Tensor):
        one, other = other, one
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        other = other.to(one.device, non_blocking=True)
    return one + other
