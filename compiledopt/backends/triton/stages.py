"""The passes of a rule that reduces, as few launches: what each launch does, and what it reads from the ones before.

A reduction leaves partial sums, one for each tile. Where they are few, or the reader works along the same axes, the reader adds
them up itself; else the next launch does. A pass over rows or columns that only computes is done again by who needs it, where
that saves a launch. So Adafactor's ten passes over matrices are five launches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from compiledopt.rules.program import ELEMENTS, node_args
from compiledopt.rules.reductions import BUFFER, SLOT, TENSOR, Operand, Pass, Passes

Value = tuple[int, int]  # (BUFFER or SLOT, which one)
Reduced = tuple[int, int]  # (pass, which of its reductions)


@dataclass(frozen=True)
class Kind:
    """What the blocks of one kind do: a pass, after the passes that it does again; or, `combined`, the sums of a reduction's
    partial sums."""

    axes: int
    sweep: int = -1
    before: tuple[int, ...] = ()
    combined: Reduced | None = None


def is_few(passes: Passes, reduced: Reduced) -> bool:
    """Whether any reader may add up the partial sums: those of what is smaller than a tensor."""
    return passes.sweeps[reduced[0]].axes != ELEMENTS


@dataclass(frozen=True)
class Uses:
    """What a pass reads and writes: values between passes, and tensors."""

    reads: frozenset[Value]
    writes: frozenset[Value]
    tensors_read: frozenset[int]
    tensors_written: frozenset[int]


def uses_of(sweep: Pass, columns: int) -> Uses:
    program = sweep.program
    used = {arg for node in program.nodes for arg in node_args(node)} | set(program.outputs.values())
    pairs = list(zip(program.tensors, sweep.operands, strict=True))
    read = [operand for node, operand in pairs if node in used]
    written = [operand for node, operand in pairs if node.name in program.outputs]
    slots = {(SLOT, index) for index in sweep.columns if index >= columns}

    def values(operands: Iterable[Operand]) -> set[Value]:
        found = {(o.kind, o.index) for o in operands if o.kind in (BUFFER, SLOT)}
        return {value for value in found if value[0] == BUFFER or value[1] >= columns}

    def tensors(operands: Iterable[Operand]) -> frozenset[int]:
        return frozenset(operand.index for operand in operands if operand.kind == TENSOR)

    return Uses(frozenset(values(read) | slots), frozenset(values(written)), tensors(read), tensors(written))


class Stages:
    """stages: the kinds of blocks of each launch."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.uses = [uses_of(sweep, passes.columns) for sweep in passes.sweeps]
        self.makers = {value: s for s, uses in enumerate(self.uses) for value in uses.writes}
        self.reduced: dict[Value, Reduced] = {}
        for s, sweep in enumerate(passes.sweeps):
            for i, reduction in enumerate(sweep.reductions):
                self.reduced[reduction.target.kind, reduction.target.index] = (s, i)
        self.at: list[int] = []
        self.before: list[tuple[int, ...]] = []
        for s in range(len(passes.sweeps)):
            self._place(s)

    @cached_property
    def stages(self) -> list[list[Kind]]:
        sweeps, needed = self.passes.sweeps, self._needed()
        combined = {reduced for s in needed for reduced in self._combined(s, self.before[s])}
        count = 1 + max(self.at[s] for s in needed)
        found: list[list[Kind]] = [[] for _ in range(count)]
        for s in sorted(needed):
            found[self.at[s]].append(Kind(sweeps[s].axes, s, self.before[s]))
        for s, i in sorted(combined):
            found[self.at[s] + 1].append(Kind(sweeps[s].reductions[i].target.axes, combined=(s, i)))
        return found

    def _place(self, s: int) -> None:
        """The earliest launch of a pass, and the least that it does again for that."""
        every = self._again(s, frozenset())
        earliest, left_out = self._stage(s, every), frozenset[int]()
        for p in every:
            more = left_out | {p}
            if self._stage(s, self._again(s, more)) <= earliest:
                left_out = more
        before = self._again(s, left_out)
        # What others read of the tensors that it writes, they read before.
        written = self.uses[s].tensors_written
        readers = [q for q in range(s) if written & self._read(q)]
        self.at.append(max([earliest, *(self.at[q] + 1 for q in readers)]))
        self.before.append(before)

    def _read(self, s: int) -> frozenset[int]:
        return self.uses[s].tensors_read.union(*(self.uses[p].tensors_read for p in self.before[s]))

    def _again(self, s: int, left_out: frozenset[int]) -> tuple[int, ...]:
        """The passes that only compute what `s` needs, and what those need, in order."""
        found: set[int] = set()
        waiting = [s]
        while waiting:
            for value in self.uses[waiting.pop()].reads:
                p = self.makers.get(value)
                if p is not None and p not in found and p not in left_out and self._only_computes(p, s):
                    found.add(p)
                    waiting.append(p)
        return tuple(sorted(found))

    def _only_computes(self, p: int, s: int) -> bool:
        one, axes = self.passes.sweeps[p], self.passes.sweeps[s].axes
        return not one.reductions and not self.uses[p].tensors_written and one.axes & axes == one.axes

    def inputs(self, s: int, before: tuple[int, ...]) -> set[Value]:
        """What a pass finds in memory."""
        made = {value for p in before for value in self.uses[p].writes}
        return {value for q in (s, *before) for value in self.uses[q].reads} - made

    def is_ready(self, value: Value, axes: int) -> bool:
        """Whether a pass along these axes adds up the partial sums of a reduction itself."""
        s, i = self.reduced[value]
        return is_few(self.passes, (s, i)) or self.passes.sweeps[s].reductions[i].target.axes == axes

    def _stage(self, s: int, before: tuple[int, ...]) -> int:
        earliest, axes = 0, self.passes.sweeps[s].axes
        for value in self.inputs(s, before):
            if value in self.reduced:
                earliest = max(earliest, self.at[self.reduced[value][0]] + (1 if self.is_ready(value, axes) else 2))
            else:
                earliest = max(earliest, self.at[self.makers[value]] + 1)
        return earliest

    def _combined(self, s: int, before: tuple[int, ...]) -> Iterable[Reduced]:
        axes = self.passes.sweeps[s].axes
        for value in self.inputs(s, before):
            if value in self.reduced and not self.is_ready(value, axes):
                yield self.reduced[value]

    def _needed(self) -> set[int]:
        """The passes that are launched: that write tensors, and whose results another one finds in memory."""
        found: set[int] = set()
        waiting = [s for s, uses in enumerate(self.uses) if uses.tensors_written]
        while waiting:
            s = waiting.pop()
            if s in found:
                continue
            found.add(s)
            for value in self.inputs(s, self.before[s]):
                waiting.append(self.reduced[value][0] if value in self.reduced else self.makers[value])
        return found


def stages_of(passes: Passes) -> Stages:
    if Stages not in passes.made:
        passes.made[Stages] = Stages(passes)
    return passes.made[Stages]  # type: ignore[no-any-return]
