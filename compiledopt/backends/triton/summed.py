"""Rules that sum over all parameters, or over those of a group: two launches reduce what is summed to one number for each
parameter, those are added up where they lie, and the update reads the sum there, in its scalar part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry, TotalOf, Value, over_processes
from compiledopt.backends.devices import ordinary
from compiledopt.backends.waves import MakeBatch, Wave, WavedBatch
from compiledopt.rules.matrix_program import Part, start_of
from compiledopt.rules.program import ANY_ORDER, NUMBER, Node, Program
from compiledopt.rules.scalar_part import Measurement
from compiledopt.rules.traced import Runnable, Traced, Variant


@dataclass(frozen=True, eq=False)
class SummedProgram:
    """sums: of each round, what reduces a parameter to numbers, which are states of its own, called as the totals are."""

    sums: tuple[Part, ...]

    @property
    def calls(self) -> int:
        """Of torch at a step: zeros, a sum and a copy of each of its results."""
        return sum(2 + len(_totals(part)) for part in self.sums)


def summed_of(traced: Traced, param: torch.Tensor) -> SummedProgram | None:
    """What runs before the update of a rule that sums over parameters, or None: sums over what is kept in blocks have no
    kernels."""
    runs = traced.measured(param)
    if not runs.measures or runs.program.blocks:
        return None
    key = SummedProgram, runs
    if key not in traced.made:
        traced.made[key] = SummedProgram(tuple(_part(traced, runs, measure) for measure in runs.measures))
    found: SummedProgram = traced.made[key]
    return found


def in_common(traced: Traced, param: torch.Tensor) -> str | None:
    """Why what parameters have in common keeps a rule from having kernels, or None."""
    name = traced.rule.name
    if not traced.measured(param).measures or summed_of(traced, param) is not None:
        return None
    return f"{name} sums over what is kept in blocks, and there is no Triton kernel for that"


def _part(traced: Traced, runs: Runnable, measure: Measurement) -> Part:
    """The program of one round. It leaves the 0-dim states that it reads as they are."""
    program, rule = runs.program, runs.rule
    places = tuple(Node("input", (), False, node.name, axes=NUMBER) for node in measure.totals)
    tensors = tuple(node for index, node in enumerate(program.tensors) if index < 2 or index in measure.reads)
    numbers = tuple(node for node in program.scalars if node in set(measure.program.scalars))
    outputs = {node.name: Node("mul", (_sum(node), 1.0), False, axes=NUMBER) for node in measure.totals}
    counted = tuple(name for name in runs.scalar_names if name in {node.name for node in numbers})
    outputs |= {node.name: node for node in numbers if node.name in counted}
    states = (*(node.name for node in tensors[2:]), *counted, *(node.name for node in places))
    read = {node.name.split("[")[0] for node in numbers}
    asked = (*rule.options, *rule.shared)
    initial = {
        name: start_of(traced.rule, name, start, traced.options) for name, start in rule.initial.items() if name in states
    }
    made = replace(
        rule,
        states=states,
        options=tuple(name for name in asked if name in read),
        shared={},
        scalars=frozenset(counted),
        optional={},
        initial={**initial, **{node.name: _number for node in places}},
        branches=rule.branches & read,
        static=rule.static & read,
        added=rule.added & {*states},
    )
    only = Variant(made, Program(rule.name, (*tensors, *places, *numbers), outputs), counted, ANY_ORDER)
    return Part(made, states, traced.reason, traced.options, only)


def _sum(total: Node) -> Node:
    return Node("sum", total.args, False, line=total.line, axes=NUMBER)


def _number(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=_wide(param), device=param.device)


def _wide(param: torch.Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def summed_parts(entry: Entry, program: SummedProgram) -> tuple[Entry, ...]:
    """An entry for each round, and the update."""
    meta = torch.empty((), dtype=_wide(entry.param), device="meta")
    return (*(_part_of(entry, part, dict.fromkeys(_totals(part), meta)) for part in program.sums), entry)


def _part_of(entry: Entry, part: Part, places: dict[str, torch.Tensor]) -> Entry:
    own = {name: entry.state[name] for name in (*part.state_names, *part.scalar_names) if name in entry.state}
    return replace(entry, traced=part, state={**own, **places})


def _totals(part: Part) -> list[str]:
    return [node.name for node in part.only.program.tensors if node.axes == NUMBER and node.name in part.only.program.outputs]


class SummedWave(Wave):
    """All parameters of a batch. sums: of each round, what reduces them; update: what reads the totals."""

    def __init__(self, states: Sequence[tuple[Any, Any]], sums: Sequence[Batch], update: Batch) -> None:
        self.states, self.update = states, update
        self.batches, self.measures = (*sums, update), update

    def prepare(self) -> bool:
        for theirs, mine in self.states:
            for name in mine:
                if name in theirs and theirs[name] is not mine[name]:
                    mine[name] = theirs[name]
        return all(batch.prepare() for batch in self.batches)

    def launch(self) -> None:
        self.update.launch()


class SummedBatch(WavedBatch):
    """Of a rule that sums over all parameters. memory: of each round, for each total what each parameter adds to it."""

    def __init__(self, entries: list[Entry], context: Context, program: SummedProgram, make: MakeBatch) -> None:
        super().__init__(entries, context)
        states = list[tuple[Any, Any]]()
        self._keep_totals()
        self.memory = tuple(self._reserve(len(_totals(part)), _wide(entries[0].param), len(entries)) for part in program.sums)
        self.found = [self._found(measure.totals) for measure in entries[0].measured.measures]
        self.sums = []
        for part, memory in zip(program.sums, self.memory, strict=True):
            parts = [
                _part_of(entry, part, dict(zip(_totals(part), memory[:, place].unbind(), strict=True)))
                for place, entry in enumerate(entries)
            ]
            states += [(entry.state, own.state) for entry, own in zip(entries, parts, strict=True)]
            self.sums.append(make(parts, context))
        self.waves = [SummedWave(states, self.sums, make(entries, context))]

    @ordinary
    def _reserve(self, totals: int, dtype: torch.dtype, *each: int) -> torch.Tensor:
        return torch.zeros(totals, *each, dtype=dtype, device=self.device)

    @ordinary
    def _keep_totals(self) -> None:
        """Let each total have a place on the device, where kernels, and graphs, read it."""
        context = self.context
        for node in (node for measure in self.entries[0].measured.measures for node in measure.totals):
            theirs = [context.more[group] for group in self._groups] if node.is_of_group else [context.step]
            for numbers in theirs:
                if not isinstance(numbers.get(node.name), torch.Tensor):
                    numbers[node.name] = torch.zeros((), dtype=torch.float64, device=self.device)  # type: ignore[index]
        context.add_more()

    @property
    def _groups(self) -> dict[int, slice]:
        """Which of the entries are of which group: they come group by group."""
        groups = [entry.group for entry in self.entries]
        return {group: slice(groups.index(group), groups.index(group) + groups.count(group)) for group in groups}

    def _found(self, totals: Sequence[Node]) -> list[tuple[int | None, slice, torch.Tensor]]:
        """Whose totals are to be added up: (the group, or None for all; its entries; the place of what is found)."""
        wanted = {node.is_of_group for node in totals}
        every = [(None, slice(None))] * (False in wanted) + [*self._groups.items()] * (True in wanted)
        return [(group, members, self._reserve(len(totals), torch.float64)) for group, members in every]

    @torch.no_grad()
    def totals(self, round: int) -> dict[TotalOf, Value]:
        memory, measure, first = self.memory[round], self.entries[0].measured.measures[round], self.entries[0]
        memory.zero_()  # of those without a gradient
        self.sums[round].launch()
        found: dict[TotalOf, Value] = {}
        for group, members, place in self.found[round]:
            torch.sum(memory[:, members], 1, dtype=torch.float64, out=place)
            for index, node in enumerate(measure.totals):
                if node.is_of_group is (group is not None):
                    found[node.name, group] = over_processes(place[index], first)
        return found
