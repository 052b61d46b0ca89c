"""Rules with a function of whole matrices, as Muon's products: one kernel, or a few where it reduces, writes what the function
is given for all matrices, each in the stack of those of its shape; the function runs on the stacks, by torch's products, in
memory that stays where it is; and one more reads what it made.

Stacks are filled and emptied in waves, so that what they take does not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.devices import ordinary
from compiledopt.backends.waves import MakeBatch, Wave, WavedBatch, padded, waves
from compiledopt.rules.matrix_program import MATRIX, MatrixProgram, Part, matrix_program
from compiledopt.rules.pieces import Runner
from compiledopt.rules.products import WholeMatrices
from compiledopt.rules.program import COLUMN_AFTER_COLUMN, ROW_AFTER_ROW
from compiledopt.rules.traced import order_of

Kind = tuple[torch.Size, int]  # shape, order in memory
BY_KERNEL = "by a kernel for symmetric results"  # in place of the name of a call of torch


def program_of(entry: Entry) -> MatrixProgram | None:
    """What a backend with products runs for an entry, where its rule is not elementwise and does not run in passes alone."""
    if entry.traced.elementwise or not isinstance(entry.traced.variant(entry.param), str):
        return None
    found = matrix_program(entry.traced, entry.param)
    return None if isinstance(found, str) else found


def part_of(entry: Entry, part: Part, matrix: torch.Tensor | None = None) -> Entry:
    """An entry of the program before the function or after it. matrix: where its matrix is; None for one without data."""
    if matrix is None:
        matrix = torch.empty_like(entry.param, dtype=part.dtypes_of(entry.param)[MATRIX], device="meta", requires_grad=False)
    names = (*part.state_names, *part.scalar_names)
    state = {name: entry.state[name] for name in names if name != MATRIX and name in entry.state}
    return replace(entry, traced=part, state={**state, MATRIX: matrix})


def matrix_parts(entry: Entry, program: MatrixProgram) -> tuple[Entry, Entry]:
    return part_of(entry, program.before), part_of(entry, program.after)


def _kind(entry: Entry) -> Kind:
    return entry.param.shape, order_of(entry.param)


class Stack:
    """The matrices of one shape in a wave. matrices: (places, rows, columns), in the order in memory of their parameters."""

    def __init__(self, kind: Kind, begin: int, count: int, memory: torch.Tensor) -> None:
        self.begin, self.count, self.active = begin, count, 0
        (rows, columns), order = kind
        shape = (columns, rows) if order == COLUMN_AFTER_COLUMN else (rows, columns)
        every = memory.view(count, padded(rows * columns))
        matrices = torch.as_strided(every, (count, *shape), (every.stride(0), shape[1], 1))
        self.matrices = matrices.mT if order == COLUMN_AFTER_COLUMN else matrices
        self.run: tuple[torch.Tensor, Sequence[torch.Tensor]] = (self.matrices[:0], ())

    def fit(self, active: int, function: WholeMatrices, memory: torch.Tensor) -> None:
        """Let the function run on the first places. memory: for what it keeps."""
        self.active = active if self.matrices.numel() else 0
        rows, columns = self.matrices.shape[-2:]
        pieces, taken = [], 0
        for shape in function.shapes(rows, columns):
            size = active * shape[0] * shape[1]
            pieces.append(memory[taken : taken + size].view(active, *shape))
            taken += padded(size)
        self.run = self.matrices[:active], pieces

    @staticmethod
    def room(kind: Kind, count: int, function: WholeMatrices) -> int:
        """Elements that the function keeps."""
        return sum(padded(count * rows * columns) for rows, columns in function.shapes(*kind[0]))


class MatrixWave(Wave):
    """entries: those of one shape and order side by side. memory: for the matrices; more: for what the function keeps."""

    def __init__(
        self,
        entries: list[Entry],
        context: Context,
        program: MatrixProgram,
        make: MakeBatch,
        memory: torch.Tensor,
        more: torch.Tensor,
    ) -> None:
        self.entries, self.program, self.more = entries, program, more
        self.stacks: list[Stack] = []
        taken = 0
        for kind, members in groupby(entries, _kind):
            count = len(list(members))
            size = count * padded(kind[0].numel())
            begin = sum(stack.count for stack in self.stacks)
            self.stacks.append(Stack(kind, begin, count, memory[taken : taken + size]))
            taken += size
        matrices = [matrix for stack in self.stacks for matrix in stack.matrices]
        parts = (program.before, program.after)
        given = [[part_of(e, part, m) for e, m in zip(entries, matrices, strict=True)] for part in parts]
        self.states = [[(e.state, own.state) for e, own in zip(entries, part, strict=True)] for part in given]
        self.active: list[bool] = []
        self.before, self.after = self.batches = [make(part, context) for part in given]
        self.measures = self.before
        self.by = self.who_multiplies()

    def who_multiplies(self) -> Runner | None:
        """Who writes products that are symmetric, where not torch does. Mutates: the memory of the stacks."""
        return None

    def prepare(self) -> bool:
        """Give those with a gradient the first places of their stacks, and read and check every tensor."""
        active = [entry.param.grad is not None for entry in self.entries]
        if active != self.active:
            self._place(active)
        for pairs in self.states:
            for theirs, mine in pairs:
                for name, known in mine.items():
                    if name != MATRIX and theirs.get(name) is not known:
                        mine[name] = theirs[name]
        return self.before.prepare() and self.after.prepare()

    def multiply(self, matrices: torch.Tensor, room: Sequence[torch.Tensor]) -> None:
        """Let the function run on a stack. Mutates: matrices, room."""
        self.program.function(matrices, *self.program.arguments, room=room, by=self.by)

    def _place(self, active: list[bool]) -> None:
        for stack in self.stacks:
            places = range(stack.begin, stack.begin + stack.count)
            ordered = sorted(places, key=lambda place: not active[place])
            for matrix, place in zip(stack.matrices, ordered, strict=True):
                for pairs in self.states:
                    pairs[place][1][MATRIX] = matrix
            stack.fit(sum(active[place] for place in places), self.program.function, self.more)
        self.active = active

    def launch(self) -> None:
        self.before.launch()
        for stack in self.stacks:
            if stack.active:
                self.multiply(*stack.run)
        self.after.launch()
        for entry, active in zip(self.entries, self.active, strict=True):
            entry.first = entry.first and not active


def in_stacks(entries: Sequence[Entry]) -> list[Entry]:
    """Those of one shape and order in memory side by side."""
    return sorted(entries, key=lambda entry: (tuple(entry.param.shape), order_of(entry.param)))


@ordinary
def reserve(pieces: Sequence[Sequence[Entry]], program: MatrixProgram) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the largest of the waves, and for the largest stack of any."""
    own = max(sum(padded(entry.param.numel()) for entry in piece) for piece in pieces)
    stacks = [(kind, len(list(members))) for piece in pieces for kind, members in groupby(piece, _kind)]
    more = max(Stack.room(kind, count, program.function) for kind, count in stacks)
    device = pieces[0][0].param.device
    first, second = (torch.zeros(size, dtype=program.dtype, device=device) for size in (own, more))
    return first, second


class MatrixBatch(WavedBatch):
    """Of a rule that has a function of whole matrices. most: elements of a wave, WAVE where it is None."""

    wave: ClassVar[type[MatrixWave]] = MatrixWave
    most: ClassVar[int | None] = None

    def __init__(self, entries: list[Entry], context: Context, program: MatrixProgram, make: MakeBatch) -> None:
        """make: of the entries of a program, what runs it."""
        super().__init__(in_stacks(entries), context)
        cuts = waves([entry.param.numel() for entry in self.entries], self.most)
        pieces = [self.entries[begin:end] for begin, end in cuts]
        self.memory = reserve(pieces, program)
        self.waves = [self.wave(piece, context, program, make, *self.memory) for piece in pieces]


# ---- what is told of it ----


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of torch that run in it, but for views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            name = func.overloadpacket.__name__.removesuffix("_")
            self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def products(
    program: MatrixProgram,
    shapes: Iterable[Sequence[int]],
    most: int | None = None,
    together: Callable[[int], int] | None = None,
    by: Callable[[dict[str, int]], Runner] | None = None,
) -> tuple[int, dict[tuple[int, ...], dict[str, int]]]:
    """(how many waves, {(matrices, rows, columns): {operation of torch: how often it is called}}), for matrices of these
    shapes that all have gradients. most: elements of a wave; together: how many matrices of so many elements are one stack, all
    of a wave where it is None; by: given what is counted, who writes products that are symmetric, and counts them."""
    kinds = sorted((tuple(shape), ROW_AFTER_ROW) for shape in shapes)
    cuts = waves([math.prod(shape) for shape, _ in kinds], most)
    found: dict[tuple[int, ...], dict[str, int]] = {}
    for begin, end in cuts:
        for (shape, order), members in groupby(kinds[begin:end]):
            every = len(list(members))
            if not math.prod(shape):
                continue
            count = every if together is None else min(every, together(math.prod(shape)))
            kind = (torch.Size(shape), order)
            own = torch.empty(count * padded(kind[0].numel()), dtype=program.dtype, device="meta")
            more = torch.empty(Stack.room(kind, count, program.function), dtype=program.dtype, device="meta")
            stack = Stack(kind, 0, count, own)
            stack.fit(count, program.function, more)
            with _Counted() as counted, torch.no_grad():
                writing = None if by is None else by(counted.found)
                program.function(stack.run[0], *program.arguments, room=stack.run[1], by=writing)
            calls = found.setdefault((count, *shape), {})
            for name, number in counted.found.items():
                calls[name] = calls.get(name, 0) + number * -(-every // count)
    return len(cuts), found


def told(program: MatrixProgram, calls: Mapping[tuple[int, ...], Mapping[str, int]]) -> tuple[str, ...]:
    """What `products` found, in words."""
    return tuple(
        f"{program.function.__name__} on {_counted(matrices)} of {rows} × {columns}, by calls of torch: "
        + ", ".join(f"{number} {name}" for name, number in sorted(each.items(), key=lambda one: one[0] == BY_KERNEL))
        for (matrices, rows, columns), each in calls.items()
    )


def _counted(matrices: int) -> str:
    return "1 matrix" if matrices == 1 else f"a stack of {matrices}"
