"""A program that reduces → passes: pointwise programs between reductions, which native code runs one after the other.

A pass computes, for all elements, rows, columns or matrices, what later passes need: values that are reduced as soon as they
are there, and small tensors that are kept. Between two reductions nothing of an element's size is kept: it is computed
again from what it came from, which takes less time than memory does.

Inductor on the whole of such a rule was tried: Adafactor on a matrix of 1000 × 1000 took 0.9 to 1.0 ms, in passes 0.4.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from compiledopt.rules.collector import Collector
from compiledopt.rules.composed import SCALES
from compiledopt.rules.program import (
    BLOCKS,
    COLUMNS,
    ELEMENTS,
    MATRICES,
    NUMBER,
    PACKED,
    REDUCTIONS,
    ROWS,
    Argument,
    Node,
    Program,
    node_args,
)

# Where an operand of a pass lives: among the tensors of the rule; in a buffer that is kept between passes; in a tile that is
# reduced at once; among the 0-dim numbers of a parameter.
TENSOR, BUFFER, TILE, SLOT = range(4)


@dataclass(frozen=True)
class Operand:
    """kind: where it lives; index: which one there; axes: those along which it varies; size: elements of a block, of scales and
    of what is packed."""

    kind: int
    index: int
    axes: int
    size: int = 0

    @property
    def is_of_elements(self) -> bool:
        """Whether it has something for each element of a parameter, or for each block of them."""
        return self.axes in (ELEMENTS, BLOCKS, PACKED)

    @property
    def elements(self) -> int:
        """That share one of its values."""
        return self.size if self.axes == BLOCKS else 2 if self.axes == PACKED else 1


@dataclass(frozen=True)
class Reduction:
    """op: of REDUCTIONS; source: the position among the pass's operands of the tile that is reduced; target: where to."""

    op: str
    source: int
    target: Operand


@dataclass(frozen=True, eq=False)
class Pass:
    """One sweep over what varies along `axes`. program: its arithmetic, pointwise; operands: where the program's tensors live;
    columns: for the program's columns, their positions among the numbers."""

    axes: int
    program: Program
    operands: tuple[Operand, ...]
    columns: tuple[int, ...]
    reductions: tuple[Reduction, ...]

    def dtypes(self, dtypes: tuple[torch.dtype, ...], wide: torch.dtype) -> tuple[torch.dtype, ...]:
        """Of its operands, given those of the rule's tensors and of the arithmetic. Numbers are float64."""
        of = {BUFFER: wide, TILE: wide, SLOT: torch.float64}
        return tuple(dtypes[operand.index] if operand.kind == TENSOR else of[operand.kind] for operand in self.operands)


@dataclass(frozen=True, eq=False)
class Passes:
    """columns: how many numbers are known before; numbers: how many there are in all; buffers: the axes of each; made: what
    backends made of them."""

    sweeps: tuple[Pass, ...]
    columns: int
    numbers: int
    buffers: tuple[int, ...]
    made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_flat(self) -> bool:
        """Whether the shape of a parameter does not matter."""
        return all(sweep.axes in (ELEMENTS, NUMBER) for sweep in self.sweeps) and not self.buffers

    def bytes_per_element(self, dtypes: tuple[torch.dtype, ...]) -> tuple[float, float]:
        """Read and written, of what has a parameter's size or a value for each block; what a second pass reads again is in the
        cache by then. dtypes: of the rule's tensors."""
        read, written = set[Operand](), set[Operand]()
        for sweep in self.sweeps:
            used = {arg for node in sweep.program.nodes for arg in node_args(node)} | set(sweep.program.outputs.values())
            for node, operand in zip(sweep.program.tensors, sweep.operands, strict=True):
                if operand.kind == TENSOR and operand.is_of_elements:
                    read |= {operand} if node in used else set()
                    written |= {operand} if node.name in sweep.program.outputs else set()
        each = {operand: dtypes[operand.index].itemsize / operand.elements for operand in read | written}
        return sum(each[operand] for operand in read), sum(each[operand] for operand in written)

    @cached_property
    def text(self) -> str:
        """Two with the same text compute the same."""
        lines = [f"{self.columns} columns, {self.numbers} numbers, buffers {self.buffers}"]
        for sweep in self.sweeps:
            lines += [f"over {sweep.axes}: {sweep.operands} {sweep.columns} {sweep.reductions}", sweep.program.kernel_text]
        return "\n".join(lines)


def cut(program: Program) -> Passes:
    """Cut a program at its reductions."""
    return _Cutter(program).passes()


def reduced(node: Node, value: torch.Tensor) -> torch.Tensor:
    """A reduction of a program by torch's operations. value: its argument, of three dimensions: matrices, rows, columns."""
    (arg,) = node_args(node)
    over = [dim for dim, axis in enumerate((MATRICES, ROWS, COLUMNS)) if arg.axes & axis and not node.axes & axis]
    found: torch.Tensor = getattr(value, node.op)(over, keepdim=True) if over else value
    return found


class _Cutter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.levels: dict[Node, int] = {}
        for node in program.elementwise_part:
            below = max((self.levels.get(arg, 0) for arg in node_args(node)), default=0)
            self.levels[node] = below + (node.op in REDUCTIONS)
        self.kept: dict[Node, Operand] = {}
        self.numbers = len(program.columns)
        self.buffers: list[int] = []
        for node in program.elementwise_part:
            if node.op in REDUCTIONS:
                self._keep(node)
            for arg in node_args(node) if node.op not in (*REDUCTIONS, *SCALES) else ():
                if not arg.scalar and arg.op != "input" and arg.axes not in (node.axes, BLOCKS):
                    self._keep(arg)

    def _keep(self, node: Node) -> None:
        """Something smaller than an element's size, which larger values are computed from."""
        if node in self.kept:
            return
        if node.axes == NUMBER:
            self.kept[node] = Operand(SLOT, self.numbers, NUMBER)
            self.numbers += 1
        else:
            self.kept[node] = Operand(BUFFER, len(self.buffers), node.axes)
            self.buffers.append(node.axes)

    def passes(self) -> Passes:
        products: dict[tuple[int, int, int], list[Node]] = {}
        for node in self.kept:
            source = node.args[0] if node.op in REDUCTIONS else node
            assert isinstance(source, Node)
            products.setdefault(_order(self.levels.get(source, 0), source.axes), []).append(node)
        sweeps = [self._sweep(order[2], products[order], {}) for order in sorted(products)]
        found: dict[int, dict[str, Node]] = {}
        for name, node in self.program.tensor_outputs.items():
            found.setdefault(ELEMENTS if node.axes == BLOCKS else node.axes, {})[name] = node
        sweeps += [self._sweep(axes, [], found[axes]) for axes in sorted(found, key=_size, reverse=True)]
        return Passes(tuple(sweeps), len(self.program.columns), self.numbers, tuple(self.buffers))

    def _sweep(self, axes: int, products: Iterable[Node], outputs: Mapping[str, Node]) -> Pass:
        return _Sweep(self.program, self.kept, axes, list(products)).finish(outputs)


def _size(axes: int) -> int:
    return axes.bit_count()


def _order(level: int, axes: int) -> tuple[int, int, int]:
    """What is smaller comes first: larger values of the same level may read it."""
    return level, _size(axes), axes


class _Sweep(Collector[Operand, int]):
    """Collects one pass. Its numbers are positions among those of all passes."""

    in_blocks = True

    def __init__(self, program: Program, kept: Mapping[Node, Operand], axes: int, products: list[Node]) -> None:
        super().__init__()
        self.whole, self.axes, self.products = program, axes, products
        self.kept = {node: operand for node, operand in kept.items() if node not in products}
        self.places = dict(kept)
        self.known = {node: index for index, node in enumerate(program.columns)}

    def finish(self, outputs: Mapping[str, Node]) -> Pass:
        reduced: list[tuple[str, Operand, Node]] = []
        tiles: dict[Argument, Node] = {}
        for node in self.products:
            if node.op in REDUCTIONS:
                value = node.args[0]
                if value not in tiles:
                    tiles[value] = self.write(Operand(TILE, len(tiles), self.axes), value)
                reduced.append((node.op, self.places[node], tiles[value]))
            else:
                self.write(self.places[node], node)
        for name, node in outputs.items():
            index = next(i for i, tensor in enumerate(self.whole.tensors) if tensor.name == name)
            self.write(self._home(index), node)
        order = list(self.tensors)
        # Both parts of a program with blocks share an input by themselves.
        sizes = {node.name: operand.size for node, operand in self.tensors.items() if operand.size}
        program = self.program(f"{self.whole.rule}_pass", None if sizes else order[0], sizes)
        reductions = tuple(Reduction(op, order.index(tile), target) for op, target, tile in reduced)
        columns = tuple(self.numbers[node] for node in program.columns)
        return Pass(self.axes, program, tuple(self.tensors.values()), columns, reductions)

    def _home(self, index: int) -> Operand:
        """A tensor of the rule."""
        tensor = self.whole.tensors[index]
        return Operand(TENSOR, index, tensor.axes, self.whole.sizes.get(tensor.name, 0))

    def tensor(self, place: Operand, axes: int = ELEMENTS) -> Node:
        return super().tensor(place, place.axes if place.size else axes)

    def given(self, node: Node) -> Node | None:
        place = self.kept.get(node)
        if node.scalar or (place is not None and place.kind == SLOT):
            index = self.known[node] if place is None else place.index
            # Of columns alone, Inductor of torch 2.11 makes a buffer and a kernel that copies it.
            return self.tensor(Operand(SLOT, index, NUMBER)) if self.axes == NUMBER else self.number(index)
        if place is not None:
            return self.tensor(place)
        if node.op == "input":
            return self.tensor(self._home(self.whole.tensors.index(node)))
        return None
