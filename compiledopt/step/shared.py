"""What parameters have in common: sums over them, and the states that they share, which live in the groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from compiledopt.around import Programs
from compiledopt.around.every import STEPS
from compiledopt.backends.batch import Batch, Context, Sharing
from compiledopt.backends.eager.measured import scalar_values
from compiledopt.rules.author import TraceError
from compiledopt.rules.options import as_float
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Traced
from compiledopt.step.totals import Totals

Group = dict[str, Any]


class Shared:
    """Of a plan: the states follow from numbers alone, sums over parameters among them."""

    def __init__(self, context: Context, kinds: Sequence[Programs], tensors: bool) -> None:
        """context: the one that reads the groups; kinds: the programs of each; tensors: whether no value may be read on the
        host. Raises: TraceError, where a rule whose parameters share a state reduces; RuntimeError, where one cannot sum."""
        self.context, self.tensors, self.totals = context, tensors, Totals(context, kinds)
        self.programs = [each.bare for each in kinds]
        ways = list(zip(self.programs, context.groups, strict=True))
        self.states = [(group, name, group[name]) for program, group in ways for name in program.rule.shared]
        self.fresh: list[tuple[torch.Tensor, Any]] = []  # their new values
        self.sharing: list[Sharing] = []  # what launches instead
        self.is_due = False
        self.exist = self.totals.exist or bool(self.states)
        for program in self.programs if self.states else ():
            if program.rule.shared and not program.elementwise:
                raise TraceError(f"parameters share a state, and the rule is not one of pointwise operations: {program.reason}")

    def fit(self) -> bool:
        """Whether the groups hold the very states that they held."""
        return all(group.get(name) is value for group, name, value in self.states)

    def settle(self, rounds: Sequence[Sequence[Batch]], contexts: Mapping[torch.device, Context]) -> None:
        """Leave them to who launches what runs, where all of it runs by one, on one device, and nothing is read on the host."""
        if not self.states or len(rounds) != 1 or not all(group.get("capturable") for group in self.context.groups):
            return
        of = {(entry.choice.backend, entry.param.device) for batch in rounds[0] for entry in batch.entries}
        if len(of) != 1:
            return
        (backend, device), whole = next(iter(of)), dict[Traced, list[int]]()
        for index, program, targets in self._targets():
            if 0 < len(targets) < len(program.rule.shared):
                return  # a row of the launch would write what is another's
            if targets:
                whole.setdefault(program, []).append(index)
        assert backend is not None
        made = [backend.sharing(program, groups, contexts[device], device) for program, groups in whole.items()]
        self.sharing = [one for one in made if one is not None]
        if len(self.sharing) != len(made):
            self.sharing = []

    def _targets(self) -> Iterator[tuple[int, Traced, dict[str, torch.Tensor]]]:
        """(index, program, states) of each group that shares any: those of the model follow the first group."""
        done: set[int] = set()
        for index, program in enumerate(self.programs):
            if program.rule.shared:
                values = {name: self.context.groups[index][name] for name in program.program.shared_part.outputs}
                yield index, program, {name: value for name, value in values.items() if id(value) not in done}
                done.update(map(id, values.values()))

    def prepare(self) -> bool:
        """As of a batch."""
        return all(one.prepare() for one in self.sharing)

    def join(self, step: dict[str, Any]) -> None:
        """Keep the sums among a device's numbers of the step. Mutates: step."""
        self.totals.join(step)

    def measure(self, batches: Sequence[Batch], again: bool) -> None:
        """Sum over what was gathered, and compute the new values. again: parameters that are listed twice, counted before."""
        if self.totals.exist:
            self.totals.measure(batches, again)
        if not again and self.states:
            self.is_due = any(entry.param.grad is not None for batch in batches for entry in batch.entries)
            if self.is_due and not self.sharing:
                self._advance(self.totals.steps[0])

    @torch.no_grad()
    def _advance(self, step: Mapping[str, Any]) -> None:
        """Compute the new values, once all sums are known. step: the numbers of the step."""
        for index, program, targets in self._targets():
            new = self._new(program, self.context.numbers[index], step)
            values = zip(program.program.shared_part.outputs, new, strict=True)
            self.fresh += [(targets[name], value) for name, value in values if name in targets]

    @torch.no_grad()
    def commit(self) -> None:
        """Write what parameters share, once they are written themselves."""
        for one in self.sharing if self.is_due else ():
            one.launch()
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


def _number(value: Any) -> Any:
    return value.reshape(()).double() if isinstance(value, torch.Tensor) else float(value)


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
