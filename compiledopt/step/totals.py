"""Sums over all parameters, between preparing a step and launching it, and the states that parameters share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from compiledopt.around import Programs
from compiledopt.around.every import STEPS
from compiledopt.backends.batch import Batch, Context, TotalOf, Value
from compiledopt.backends.eager.measured import scalar_values
from compiledopt.rules.author import TraceError
from compiledopt.rules.options import as_float
from compiledopt.rules.program import Node
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Runnable, Traced

Group = dict[str, Any]


class Totals:
    """The totals of a plan, and the new values of shared states that follow from them.

    Where a value is on a device, it stays there.
    """

    def __init__(self, context: Context, kinds: Sequence[Programs], tensors: bool) -> None:
        """context: the one that reads the groups; kinds: the programs of each; tensors: whether no value may be read on the
        host. Raises: RuntimeError, where a rule cannot sum over parameters."""
        self.context, self.tensors = context, tensors
        # However the values of a parameter are kept, its program has totals of the same names in the same rounds.
        self.programs = programs = [each.bare for each in kinds]
        self.measured = [_measured(program, group) for program, group in zip(programs, context.groups, strict=True)]
        self.steps: list[dict[str, Any]] = []
        self.fresh: list[tuple[torch.Tensor, Any]] = []  # shared states, and their new values
        self.exist = any(self.measured) or any(program.rule.shared for program in programs)
        if self.exist:
            self._check()
            self.context.more = [self._zeros(group, True) for group in range(len(programs))]
            self.context.add_more()
        self.shared = [
            (group, name, group[name])
            for program, group in zip(programs, context.groups, strict=True)
            for name in program.rule.shared
        ]

    def fit(self) -> bool:
        """Whether the groups hold the very states that they held."""
        return all(group.get(name) is value for group, name, value in self.shared)

    def _check(self) -> None:
        owner, lines = self.context.owner, dict[str, str]()
        for program in self.programs:
            if program.rule.shared and not program.elementwise:
                raise TraceError(f"parameters share a state, and the rule is not one of pointwise operations: {program.reason}")
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
        for group in range(len(self.programs)):
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
        if not again and any(entry.param.grad is not None for batch in batches for entry in batch.entries):
            self._advance()

    def _set(self, found: Mapping[TotalOf, Value], number: int) -> None:
        """Totals of parameters without a gradient are zero."""
        for index, measured in enumerate(self.measured):
            for node in _totals(measured, number):
                if node.is_of_group:
                    self.context.more[index][node.name] = found.get((node.name, index), 0.0)
                    continue
                for step in self.steps:
                    _put(step, node.name, found.get((node.name, None), 0.0))
        self.context.add_more()

    # ---- shared states ----

    def _advance(self) -> None:
        """Compute the new shared states."""
        done: set[int] = set()
        step = self.steps[0]
        for index, program in enumerate(self.programs):
            if not program.rule.shared:
                continue
            new = self._new(program, self.context.numbers[index], step)
            for name, value in zip(program.program.shared_part.outputs, new, strict=True):
                target = self.context.groups[index][name]
                if id(target) not in done:  # one of the model follows the first group
                    self.fresh.append((target, value))
                    done.add(id(target))

    @torch.no_grad()
    def commit(self) -> None:
        """Write what parameters share, once they are written themselves."""
        for target, value in self.fresh:
            target.copy_(value) if isinstance(value, torch.Tensor) else target.fill_(value)
        self.fresh = []

    def _new(self, program: Traced, numbers: Mapping[str, Any], step: Mapping[str, Any]) -> list[Any]:
        part = program.program.shared_part
        if not self.tensors:
            return program.shared(numbers, step, ())[1]
        given = {node: _number(step[node.name] if node.name in step else numbers[node.name]) for node in part.scalars}
        device = next((v.device for v in given.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))
        values = scalar_values(part, given, device)
        return [values[node] for node in part.outputs.values()]


def _measured(program: Traced, group: Mapping[str, Any]) -> list[Runnable]:
    """What a group's parameters are summed by: nothing, one program, or a variant for each kind of parameter."""
    found = {program} if program.elementwise else {program.measured(param) for param in group["params"]}
    return [one for one in found if one.measures]


def _totals(measured: Sequence[Runnable], round: int | None = None) -> Iterator[Node]:
    """The totals of all rounds, or of one."""
    for one in measured:
        for measure in one.measures if round is None else one.measures[round : round + 1]:
            yield from measure.totals


def _number(value: Any) -> Any:
    return value.reshape(()).double() if isinstance(value, torch.Tensor) else float(value)


def _put(step: dict[str, Any], name: str, value: Value) -> None:
    """Mutates: what is there already where that is a tensor, which a kernel reads."""
    there = step.get(name)
    if isinstance(there, torch.Tensor) and there is not value and not there.is_inference():
        there.copy_(value, non_blocking=True) if isinstance(value, torch.Tensor) else there.fill_(value)
    else:
        step[name] = value


def _sum(one: Value, other: Value) -> Value:
    """On the host where both are there, else on the device of the first that is not."""
    if isinstance(one, float) and isinstance(other, torch.Tensor):
        one, other = other, one
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        other = other.to(one.device, non_blocking=True)
    return one + other


def give_shared(rules: Sequence[Rule], derived: Sequence[Rule], groups: Sequence[Group]) -> None:
    """Give each group the shared states of its rule, as 0-dim float64 tensors; those of the model are one for all its groups.

    rules: of each group; derived: with what stands around them. Mutates: the groups, where one lacks a state; a number that was
    put in the place of one is its new value.
    """
    first: dict[tuple[Rule, str], torch.Tensor] = {}
    for rule, made, group in zip(rules, derived, groups, strict=True):
        if rule.every:
            _counted(group)
        for name, scope in made.shared.items():
            if scope == "model" and (rule, name) in first:
                given = group.get(name)
                if given is not None and not isinstance(given, torch.Tensor):
                    first[rule, name].fill_(as_float(given))
                if given is not first[rule, name]:
                    group[name] = first[rule, name]
                continue
            first[rule, name] = _given(made, group, name)


def _counted(group: Group) -> None:
    """Give a group its count of steps, where its rule has work that is not due at each."""
    value = group.get(STEPS, 0.0)
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        with torch.inference_mode(False):
            group[STEPS] = torch.tensor(as_float(value), dtype=torch.float64, device="cpu")


def _given(rule: Rule, group: Group, name: str) -> torch.Tensor:
    value = group[name] if name in group else rule.initial_value(name, group)
    device = group["params"][0].device if group.get("capturable") and group["params"] else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64
    if not isinstance(value, torch.Tensor) or value.dtype != wide or value.device != device or value.dim():
        with torch.inference_mode(False):  # later steps write to it
            group[name] = torch.full((), as_float(value), dtype=wide, device=device)
    result: torch.Tensor = group[name]
    return result
