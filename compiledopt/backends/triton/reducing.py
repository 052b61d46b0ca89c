"""A rule that reduces → Triton: for each launch of stages.py one kernel, whose blocks work on tiles of all matrices.

The arithmetic of each pass is what Inductor wrote for it; where its values come from, and where they go, is written here.
Within a tile an element is (matrix, row, column); what varies along fewer axes has one place there, and Triton spreads it. Sums
of tiles are in the dtype of the arithmetic, sums of those in float64, in an order that nothing but the shapes decides.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.triton import random
from compiledopt.backends.triton.bodies import KEPT, Body, kept_source, lowered
from compiledopt.backends.triton.bodies import TEXT as BODIES
from compiledopt.backends.triton.kernels import ALIGNMENT, NAMES, TritonKernel, imports_of, missing
from compiledopt.backends.triton.places import (
    AXES,
    constant_of,
    elements_of,
    lines_of_place,
    lines_of_places,
    shape_of,
    size_of,
)
from compiledopt.backends.triton.stages import Kind, stages_of
from compiledopt.errors import CompileError
from compiledopt.files import source_of
from compiledopt.rules.program import COLUMNS, ELEMENTS, MATRICES, NUMBER, ROWS
from compiledopt.rules.reductions import SLOT, TENSOR, TILE, Pass, Passes

Tile = tuple[int, int, int]  # of matrices, rows and columns
# The tiles that there are for what varies along these axes; a tensor goes by those that need the fewest. Of rows of one element
# for long ones, of many for tall and narrow matrices, of many small matrices, and of the values of 1 × 1 convolutions.
TILES: dict[int, tuple[Tile, ...]] = {
    ELEMENTS: ((1, 32, 128), (1, 1, 4096), (1, 256, 16), (256, 4, 4), (4096, 1, 1)),
    MATRICES | ROWS: ((1, 128, 1), (256, 4, 1)),
    MATRICES | COLUMNS: ((1, 1, 32), (256, 1, 4)),
    MATRICES: ((1024, 1, 1),),
    0: ((1, 1, 1),),
}
VECTORS = ((1, 32, 128), (1, 1, 4096))  # tiles with rows long enough for vector loads
TEXT = source_of(__name__) + source_of(random.__name__) + BODIES  # of which kernels in the cache are made
MOST_TOGETHER = 1024  # partial sums that are added up at once, for each result
START = {"sum": "0.0", "mean": "0.0", "amax": 'float("-inf")', "amin": 'float("inf")'}
JOIN = {"sum": "{} + {}", "mean": "{} + {}", "amax": "larger({}, {})", "amin": "smaller({}, {})"}
FOLD = {"sum": "tl.sum({}, {}, keep_dims=True)", "amax": "tl.reduce({}, {}, larger, keep_dims=True)"}
FOLD |= {"mean": FOLD["sum"], "amin": FOLD["amax"].replace("larger", "smaller")}

HEAD = """\
import triton
import triton.language as tl
{imports}


@triton.jit
def larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    return tl.where((a < b) | (a != a), a, b)

"""
KIND = """
@triton.jit
def kind{number}(pointers, layout, table, index, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, ALIGNED: tl.constexpr):
    matrices = tl.load(layout)
    rows = tl.load(layout + 1)
    columns = tl.load(layout + 2)
    if ALIGNED:
        columns = tl.multiple_of(columns, {alignment})
    slots = tl.load(layout + {slots}).to(tl.pointer_type(tl.float64))
{body}
"""
STAGE = """
@triton.jit(do_not_specialize=["pointers", "layout", "rows", "blocks", "table"])
def whole_model(pointers, layout, rows, blocks, table, KINDS: tl.constexpr, SPLIT: tl.constexpr):
    code = tl.load(blocks + 3 * tl.program_id(0))
    tensor = tl.load(blocks + 3 * tl.program_id(0) + 1).to(tl.int64)
    index = tl.load(blocks + 3 * tl.program_id(0) + 2).to(tl.int64)
    pointers += tensor * {operands}
    layout += tensor * {width}
    table += tl.load(rows + tensor) * {columns}
"""
SLOTS, PARAMETER, BUFFERS = 3, 4, 6  # of a row of the table of layouts, as Layout says


@dataclass(frozen=True)
class Layout:
    """What a row of the table of layouts holds: a tensor's matrices, rows and columns, where its slots are, the number of its
    parameter and which of that one's elements comes first, where its buffers are, and for each reduction where its partial sums
    are and how many each result has."""

    passes: Passes

    @cached_property
    def reductions(self) -> list[tuple[int, int]]:
        return [(s, i) for s, sweep in enumerate(self.passes.sweeps) for i in range(len(sweep.reductions))]

    def buffer(self, index: int) -> int:
        return BUFFERS + index

    def partial(self, reduced: tuple[int, int]) -> int:
        return BUFFERS + len(self.passes.buffers) + 2 * self.reductions.index(reduced)

    @property
    def width(self) -> int:
        return BUFFERS + len(self.passes.buffers) + 2 * len(self.reductions)


@dataclass(frozen=True)
class ReducingKernel:
    """stages: the kernel of each launch; kinds: of its blocks; operands: pointers per tensor; columns: scalars per row."""

    passes: Passes
    stages: tuple[TritonKernel, ...]
    kinds: tuple[tuple[Kind, ...], ...]
    operands: int
    columns: int
    wide: torch.dtype
    scalar: torch.dtype = torch.float64
    extents = 5  # numbers of a tensor: matrices, rows, columns, that of its parameter, and its first element there

    @property
    def launches(self) -> int:
        return len(self.stages)

    @cached_property
    def source(self) -> str:
        return "\n\n".join(stage.source for stage in self.stages)

    def bytes_per_element(self, dtypes: Sequence[torch.dtype]) -> tuple[float, float]:
        """Read and written, by all launches: what two of them read has left the caches between them. dtypes: of the tensors."""
        of = [re.findall(rf"tl\.{what}\(p(\d+) \+ i{ELEMENTS},", self.source) for what in ("load", "store")]
        read, written = (sum(dtypes[int(index)].itemsize for index in found) for found in of)
        return read, written


_kernels: dict[tuple[str, tuple[torch.dtype, ...]], ReducingKernel | CompileError] = {}


def reducing_kernel(passes: Passes, dtypes: tuple[torch.dtype, ...]) -> ReducingKernel:
    """The kernels of a rule that reduces, for these dtypes of its tensors. Raises: CompileError."""
    identity = (passes.text, dtypes)
    if identity not in _kernels:
        try:
            _kernels[identity] = _made(passes, dtypes)
        except CompileError as error:
            _kernels[identity] = error
    known = _kernels[identity]
    if isinstance(known, CompileError):
        raise known
    return known


def _made(passes: Passes, dtypes: tuple[torch.dtype, ...]) -> ReducingKernel:
    if (reason := missing()) is not None:
        raise CompileError(reason)
    strange = {sweep.axes for sweep in passes.sweeps} | set(passes.buffers)
    if not strange <= TILES.keys():
        raise CompileError(f"there are no tiles for the axes {sorted(strange - TILES.keys())}")
    kinds = tuple(map(tuple, stages_of(passes).stages))
    writer, stages = _Writer(passes, dtypes), []
    for number, members in enumerate(kinds):
        of = "triton stage", passes.text, [str(dtype) for dtype in dtypes], number, TEXT
        source = kept_source(of, partial(writer.stage, members))
        stages.append(TritonKernel(source, len(dtypes), passes.columns, torch.float64))
    return ReducingKernel(passes, tuple(stages), kinds, len(dtypes), passes.columns, compute_dtype(dtypes))


def tiles_of(kind: Kind, is_flat: bool) -> tuple[Tile, ...]:
    return ((1, 1, 4096),) if is_flat and kind.axes == ELEMENTS else TILES[kind.axes]


def cut_along(tile: Tile, axes: int) -> int:
    """The dimension along which a tile of tensors is split (forms.py); -1 of what is smaller than those."""
    return next((dim for dim, size in enumerate(tile) if size > 1), -1) if axes == ELEMENTS else -1


def part_of(tile: Tile, axes: int, split: int) -> Tile:
    """What of it a block works on."""
    cut = cut_along(tile, axes)
    matrices, rows, columns = (size // split if dim == cut else size for dim, size in enumerate(tile))
    return matrices, rows, columns


class _Writer:
    """Writes the source of a rule's stages."""

    def __init__(self, passes: Passes, dtypes: tuple[torch.dtype, ...]) -> None:
        self.passes, self.dtypes = passes, dtypes
        self.wide = f"tl.{NAMES[compute_dtype(dtypes)]}"
        self.layout, self.stages = Layout(passes), stages_of(passes)
        # Columns of which all rows begin on multiples of 16 bytes.
        self.unit = ALIGNMENT // min(dtype.itemsize for dtype in dtypes)

    def stage(self, kinds: Sequence[Kind]) -> str:
        functions = []
        for number, kind in enumerate(kinds):
            lines = self._combine(kind) if kind.combined else self._sweep(kind)
            body = textwrap.indent("\n".join(lines), "    ")
            functions.append(KIND.format(number=number, alignment=self.unit, slots=SLOTS, body=body))
        key = random.key_source() if any("key_of(" in function for function in functions) else ""
        text = "\n".join([key, *functions])
        text += STAGE.format(operands=len(self.dtypes), width=self.layout.width, columns=self.passes.columns)
        text += textwrap.indent("\n".join(self._dispatch(kinds)), "    ") + "\n"
        return HEAD.format(imports=imports_of(text)) + text

    def _dispatch(self, kinds: Sequence[Kind]) -> list[str]:
        """A branch for each kind and tile; those that a model has none of are not compiled."""
        lines, code = [], 0
        for number, kind in enumerate(kinds):
            aligned = [f"tl.load(pointers + {i})" for i in self._whole(kind)]
            for tile in tiles_of(kind, self.passes.is_flat):
                cut = cut_along(tile, kind.axes)
                sizes = ", ".join(f"{size} // SPLIT" if dim == cut else str(size) for dim, size in enumerate(tile))
                call = f"kind{number}(pointers, layout, table, index, {sizes}, {{}})"
                lines += [f"if (KINDS >> {code}) & 1:", f"    if code == {code}:"]
                if kind.axes == ELEMENTS and tile in VECTORS:
                    bits = f"(({' | '.join(aligned or '0')}) % {ALIGNMENT} == 0) & (tl.load(layout + 2) % {self.unit} == 0)"
                    lines += [f"        if {bits}:", f"            {call.format(True)}"]
                    lines += ["        else:", f"            {call.format(False)}"]
                else:
                    lines.append(f"        {call.format(False)}")
                code += 1
        return lines

    def _whole(self, kind: Kind) -> list[int]:
        if kind.combined:
            return []
        return [o.index for o in self.passes.sweeps[kind.sweep].operands if o.kind == TENSOR and o.axes == ELEMENTS]

    def _combine(self, kind: Kind) -> list[str]:
        assert kind.combined is not None
        s, i = kind.combined
        target = self.passes.sweeps[s].reductions[i].target
        lines = [*lines_of_places(kind.axes), *lines_of_place(target.axes), *self._total("value", kind.combined)]
        return [*lines, self._store(target.kind, target.index, target.axes, "value")]

    def _sweep(self, kind: Kind) -> list[str]:
        lines = lines_of_places(kind.axes)
        every = [operand.axes for s in (*kind.before, kind.sweep) for operand in self.passes.sweeps[s].operands]
        sweep = self.passes.sweeps[kind.sweep]
        for axes in sorted({NUMBER, kind.axes, *every, *(reduction.target.axes for reduction in sweep.reductions)}):
            lines += lines_of_place(axes)
        made: dict[tuple[int, int], str] = {}
        for s in (*kind.before, kind.sweep):
            lines += self._pass(s, kind, made)
        for number, reduction in enumerate(sweep.reductions):
            lines += self._reduce(kind, number, f"w{kind.sweep}_{reduction.source}")
        return lines

    def _pass(self, s: int, kind: Kind, made: dict[tuple[int, int], str]) -> list[str]:
        """One pass: what it reads, its arithmetic, and where its results go. Mutates: made, which values are in variables."""
        sweep = self.passes.sweeps[s]
        dtypes = sweep.dtypes(self.dtypes, compute_dtype(self.dtypes))
        arithmetic = f"tl.{NAMES[compute_dtype(dtypes)]}"
        function, arguments = lowered(sweep.program, dtypes)
        kinds = dict(zip([argument.arg for argument in function.args.args], arguments, strict=False))
        body = Body(kinds, f"x{s}_", f"v{s}_", f"w{s}_", f"n{s}_")
        statements = [line for statement in function.body if (line := body.line(statement)) is not None]
        lines = self._place(sweep, kind.axes) if sweep.program.is_random else []
        for k in sorted(body.read):
            operand = sweep.operands[k]
            lines += self._read(f"v{s}_{k}", operand.kind, operand.index, operand.axes, kind, made)
        for j, index in enumerate(sweep.columns):
            lines += self._read(f"n{s}_{j}", SLOT, index, 0, kind, made)
            lines.append(f"n{s}_{j} = n{s}_{j}.to({arithmetic})")
        lines += statements
        for k in sorted(body.written):
            operand, name = sweep.operands[k], f"w{s}_{k}"
            if operand.kind != TILE and s != kind.sweep:
                lines.append(f"{name} = {name}.to({self._dtype(operand.kind)})")
                made[operand.kind, operand.index] = name
            elif operand.kind != TILE:
                lines.append(self._store(operand.kind, operand.index, operand.axes, name))
        return lines

    def _place(self, sweep: Pass, axes: int) -> list[str]:
        """Where the elements of a tile are in their parameter, and the key of its random bits."""
        lines = random.place(
            sweep.program, lambda n: f"tl.load(table + {sweep.columns[n]})", "tl.float64", f"layout + {PARAMETER}", "[1, 1, 1]"
        )
        return [f"x0 = i{axes}", *lines]

    def _dtype(self, kind: int) -> str:
        return "tl.float64" if kind == SLOT else self.wide

    def _read(self, name: str, kind: int, index: int, axes: int, at: Kind, made: dict[tuple[int, int], str]) -> list[str]:
        """Lines that put a value into the variable `name`."""
        if kind == SLOT and index < self.passes.columns:
            return [f"{name} = tl.load(table + {index})"]
        if (kind, index) in made:
            return [f"{name} = {made[kind, index]}"]
        if kind == TENSOR:
            return [self._pointer(index, axes), f"{name} = tl.load(p{index} + i{axes}, k{axes}, other=0)"]
        reduced = self.stages.reduced.get((kind, index))
        if reduced is not None and self.stages.is_ready((kind, index), at.axes):
            return [*self._total(name, reduced), f"{name} = {name}.to({self._dtype(kind)})"]
        if kind == SLOT:
            return [f"{name} = tl.load(slots + {index - self.passes.columns})"]
        return [f"{name} = tl.load({self._buffer(index)} + i{axes}, k{axes}, other=0)"]

    def _pointer(self, index: int, axes: int) -> str:
        address = f"p{index} = tl.load(pointers + {index}).to(tl.pointer_type(tl.{KEPT[self.dtypes[index]]}))"
        return f"{address}\nif ALIGNED:\n    p{index} = tl.multiple_of(p{index}, {ALIGNMENT})" if axes == ELEMENTS else address

    def _buffer(self, index: int) -> str:
        return f"tl.load(layout + {self.layout.buffer(index)}).to(tl.pointer_type({self.wide}))"

    def _store(self, kind: int, index: int, axes: int, value: str) -> str:
        shape = shape_of(axes)
        if kind == TENSOR:
            write = f"tl.store(p{index} + i{axes}, tl.broadcast_to({value}, {shape}), k{axes})"
            return f"{self._pointer(index, axes)}\n{write}"
        if kind == SLOT:
            return f"tl.store(slots + {index - self.passes.columns} + i0, {value}.to(tl.float64))"
        return f"tl.store({self._buffer(index)} + i{axes}, tl.broadcast_to({value}, {shape}).to({self.wide}), k{axes})"

    def _reduce(self, kind: Kind, number: int, value: str) -> list[str]:
        """The sums of one tile, as one of the partial sums of each result."""
        sweep, name = self.passes.sweeps[kind.sweep], f"r{number}"
        reduction = sweep.reductions[number]
        over, target = kind.axes, reduction.target.axes
        start = f"tl.full({shape_of(over)}, {START[reduction.op]}, {self.wide})"
        lines = [f"{name} = tl.where(k{over}, tl.broadcast_to({value}, {shape_of(over)}).to({self.wide}), {start})"]
        for dim in (2, 1, 0):
            if over & AXES[dim] and not target & AXES[dim]:
                lines.append(f"{name} = " + FOLD[reduction.op].format(name, dim))
        if reduction.op == "sum" and target == NUMBER and (constant := constant_of(sweep, reduction)) is not None:
            lines = [f"{name} = tl.zeros([1, 1, 1], {self.wide}) + {constant!r} * {elements_of(over)}"]
        part = "0"
        for axis, count, place in ((MATRICES, "1", "bm"), (ROWS, "down", "br"), (COLUMNS, "across", "bc")):
            if over & axis and not target & axis:
                part = f"({part}) * {count} + {place}"
        column = self.layout.partial((kind.sweep, number))
        lines.append(f"q{number} = tl.load(layout + {column}).to(tl.pointer_type({self.wide}))")
        return [*lines, f"tl.store(q{number} + ({part}) * {size_of(target)} + i{target}, {name}, k{target})"]

    def _total(self, name: str, reduced: tuple[int, int]) -> list[str]:
        """Adds up the partial sums of a reduction, many at a time along an axis that its results do not have."""
        sweep = self.passes.sweeps[reduced[0]]
        op, axes = sweep.reductions[reduced[1]].op, sweep.reductions[reduced[1]].target.axes
        spare = next(dim for dim in (2, 1, 0) if not axes & AXES[dim])
        blocks = "*".join(["1", *(block for axis, block in zip(AXES, ("BM", "BR", "BC"), strict=True) if axes & axis)])
        shape = [block if axes & axis else "1" for axis, block in zip(AXES, ("BM", "BR", "BC"), strict=True)]
        shape[spare] = f"{name}_many"
        index = ", ".join(":" if dim == spare else "None" for dim in range(3))
        column = self.layout.partial(reduced)
        more = f"tl.load({name}_from + {name}_part * {size_of(axes)} + i{axes}, k{axes} & ({name}_part < {name}_parts), "
        lines = [
            f"{name}_many: tl.constexpr = min({MOST_TOGETHER}, max(1, 2048 // ({blocks})))",
            f"{name}_from = tl.load(layout + {column}).to(tl.pointer_type({self.wide}))",
            f"{name}_parts = tl.load(layout + {column + 1})",
            f"{name} = tl.full([{', '.join(shape)}], {START[op]}, tl.float64)",
            f"for {name}_start in range(0, {name}_parts, {name}_many):",
            f"    {name}_part = {name}_start + tl.arange(0, {name}_many)[{index}]",
            f"    {name}_more = {more}other={START[op]}).to(tl.float64)",
            f"    {name} = " + JOIN[op].format(name, f"{name}_more"),
            f"{name} = " + FOLD[op].format(name, spare),
        ]
        return lines if op != "mean" else [*lines, f"{name} = {name} * {size_of(axes)} / ({size_of(sweep.axes)})"]
