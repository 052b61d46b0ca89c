"""The norm of all gradients in one launch: each block leaves the squares of its part, and the one that finishes last adds them
up, in float64 and in an order that the sizes alone decide. It also writes what a table of scalars has of the norm."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from compiledopt.backends.devices import Streams, as_numbers, on_device, ordinary, synchronize, upload
from compiledopt.backends.triton.kernels import ALIGNMENT, NAMES, TritonKernel, measured_columns
from compiledopt.backends.triton.proof import LENGTHS, OFFSETS, WRONG, on_device_at, remembered, unlike
from compiledopt.backends.triton.readiness import AnyKernel, made_ready
from compiledopt.backends.triton.tables import alone, cut, launch
from compiledopt.errors import CompileError
from compiledopt.rules.options import NORM
from compiledopt.rules.program import Argument, Node, Program, value_of
from compiledopt.rules.traced import Traced, Variant

BLOCK, WARPS = 4096, 8
BOUND = "max_grad_norm"
# What a rule computes of the norm and its bound before it reads a tensor (around/clip.py).
WRITTEN = {"add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})", "gt": "({} > {})", "lt": "({} < {})"}
WRITTEN |= {"where": "tl.where({}, {}, {})", "reciprocal": "(1.0 / {})", "sqrt": "tl.sqrt({})"}

SOURCE = """\
import triton
import triton.language as tl


@triton.jit
def squares(gradient, start, length, XBLOCK: tl.constexpr):
    index = start + tl.arange(0, XBLOCK)
    value = tl.load(gradient + index, index < length, other=0.0).to({wide})
    return tl.sum(value * value).to(tl.float64)


@triton.jit(do_not_specialize={names})
def whole_model(
    pointers, lengths, blocks, partial, counter, place, bounds, table, first, count,
    OPERANDS: tl.constexpr, XBLOCK: tl.constexpr,
):
    tensor = tl.load(blocks + 2 * tl.program_id(0)).to(tl.int64)
    start = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * XBLOCK
    length = tl.load(lengths + tensor)
    address = tl.load(pointers + tensor * OPERANDS + 1)
    if (address % {alignment} == 0) & ((length % {alignment} == 0) | (start + XBLOCK <= length)):
        gradient = tl.multiple_of(address.to(tl.pointer_type({dtype})), {alignment})
        total = squares(gradient, start, length // {alignment} * {alignment}, XBLOCK)
    else:
        total = squares(address.to(tl.pointer_type({dtype})), start, length, XBLOCK)
    tl.store(partial + tl.program_id(0), total)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        many = tl.zeros([1024], tl.float64)
        for at in range(0, tl.num_programs(0), 1024):
            index = at + tl.arange(0, 1024)
            many += tl.load(partial + index, index < tl.num_programs(0), other=0.0, cache_modifier=".cg")
        total = tl.sum(many)
        if first == 0:
            total += tl.load(place)
        norm = tl.sqrt(total)
        tl.store(place, total)
        tl.store(place + 1, norm)
        tl.store(counter, 0)
{columns}
"""
COLUMNS = """\
        for at in range(0, count, 128):
            row = at + tl.arange(0, 128)
            bound = tl.load(bounds + row, row < count, other=1.0)
"""


def fills_in(program: Program) -> bool:
    """Whether the launch can write all columns that depend on the norm."""
    return all(_text(node) is not None for node in measured_columns(program).values())


def squares_kernel(
    program: Program, dtype: torch.dtype, scalar: torch.dtype, device: torch.device, on_device: bool
) -> TritonKernel:
    """What measures the gradients of a program, and fills in its table, unless the scalar part is on the device; it has run on
    nothing. dtype: of the gradients; scalar: of the table. Raises: CompileError."""
    columns = {} if on_device or not fills_in(program) else measured_columns(program)
    written = tuple((column, str(_text(node))) for column, node in columns.items())
    kernel = _kernel(dtype, written, len(program.columns))

    def run_on_nothing() -> None:
        squares = Squares(kernel, device, 2, scalar)
        gradient = torch.zeros(2 * ALIGNMENT, dtype=dtype, device=device)
        squares.update(array("q", [ALIGNMENT]).tobytes())
        pointers = upload([gradient.data_ptr()] * 2, device)
        squares.run(pointers, torch.zeros(2, dtype=torch.float64, device=device), True, None, ())
        synchronize(device)
        if (wrong := proved(kernel, columns, len(program.columns), dtype, scalar, device)) is not None:
            raise CompileError(f"{WRONG}: {wrong}")

    made_ready(kernel.source, device, run_on_nothing)
    return kernel


def proved(
    kernel: TritonKernel,
    columns: dict[int, Node],
    width: int,
    dtype: torch.dtype,
    scalar: torch.dtype,
    device: torch.device,
) -> str | None:
    """What the launch does wrong on this device, or None. Asked once per machine. columns: of `width`, which it fills in."""
    of = kernel.source, LENGTHS, OFFSETS, BLOCK
    return remembered(of, device, lambda: _difference(kernel, columns, width, dtype, scalar, device))


@ordinary
def _difference(
    kernel: TritonKernel,
    columns: dict[int, Node],
    width: int,
    dtype: torch.dtype,
    scalar: torch.dtype,
    device: torch.device,
) -> str | None:
    """Two launches, one after the other, against sums by torch's operators in float64."""
    generator, bounds = torch.Generator().manual_seed(0), [0.5, 1e6]
    values = [torch.randn(length, generator=generator, dtype=torch.float64, device="cpu").to(dtype) for length in LENGTHS]
    there = [on_device_at(value, offset, device) for value, offset in zip(values, OFFSETS, strict=True)]
    squares = Squares(kernel, device, 2, scalar)
    squares.update(array("q", LENGTHS).tobytes())
    pointers = upload([address for value in there for address in (0, value.data_ptr())], device)
    place = torch.zeros(2, dtype=torch.float64, device=device)
    table = torch.zeros(len(bounds), max(1, width), dtype=scalar, device=device)
    total = torch.stack([value.double().square().sum() for value in values]).sum()
    for first in (True, False):
        squares.run(pointers, place, first, table if columns else None, bounds if columns else ())
        wanted = total if first else 2 * total
        if (told := unlike("the norm", place.cpu(), torch.stack([wanted, wanted.sqrt()]), torch.float32)) is not None:
            return told
    given = {NORM: (2 * total).sqrt().expand(len(bounds)), BOUND: torch.tensor(bounds, dtype=torch.float64, device="cpu")}
    for column, node in columns.items():
        if (told := unlike(f"column {column}", table[:, column].cpu(), value_of(node, given), torch.float32)) is not None:
            return told
    return None


def check_norm(
    runs: Traced | Variant, dtypes: Sequence[torch.dtype], kernel: AnyKernel, device: torch.device, on_device: bool
) -> TritonKernel:
    """The kernel that measures the gradients for another one, which has run. dtypes: of its operands; on_device: whether the
    scalar part is. Raises: CompileError."""
    return squares_kernel(runs.program, dtypes[1].to_real(), kernel.scalar, device, on_device)


@cache  # as of all kernels: none is let go of while a captured graph may launch it
def _kernel(dtype: torch.dtype, written: tuple[tuple[int, str], ...], width: int) -> TritonKernel:
    wide = "tl.float64" if dtype is torch.float64 else "tl.float32"
    stores = [
        f"            tl.store(table + row * {width} + {column}, ({text}).to(table.dtype.element_ty), row < count)"
        for column, text in written
    ]
    columns = COLUMNS + "\n".join(stores) if stores else ""
    names = ["pointers", "lengths", "blocks", "partial", "counter", "place", "bounds", "table", "first", "count"]
    source = SOURCE.format(names=names, dtype=f"tl.{NAMES[dtype]}", wide=wide, alignment=ALIGNMENT, columns=columns)
    return TritonKernel(source, 2, 0, torch.float64)


def _text(node: Argument) -> str | None:
    if not isinstance(node, Node):
        return repr(float(node))
    if node.op == "input":
        return {NORM: "norm", BOUND: "bound"}.get(node.name)
    parts = [_text(arg) for arg in node.args]
    return None if node.op not in WRITTEN or None in parts else WRITTEN[node.op].format(*parts)


class Squares:
    """The launch that measures the gradients of one batch, and its tables, which a captured graph may read."""

    def __init__(self, kernel: TritonKernel, device: torch.device, operands: int, scalar: torch.dtype) -> None:
        """operands: pointers per tensor; scalar: the dtype of the table of scalars, where there is one."""
        self.kernel, self.device, self.operands = kernel, device, operands
        self.known, self.compiled, self.streams = b"", dict[Any, Any](), Streams(device)
        self.lengths = self.blocks = upload(b"", device)
        self.partial = self.bounds = upload([], device, torch.float64)
        self.counter = upload([0], device, torch.int32)
        self.nothing = upload([0.0], device, scalar)
        self.bound: Sequence[float] = ()
        self.changes = 0  # another number after each exchange of tables

    @ordinary
    def update(self, lengths: bytes) -> None:
        """lengths: of the tensors, int64. All that asks for memory is here."""
        if lengths != self.known:
            numbers = as_numbers(lengths)
            blocks = cut(numbers, BLOCK)
            uploaded = upload(numbers, self.device), upload(blocks, self.device)
            self.partial = torch.zeros(len(blocks), dtype=torch.float64, device=self.device)
            self.lengths, self.blocks = uploaded
            self.known = lengths
            self.changes += 1

    def read_by_graphs(self) -> tuple[Any, ...]:
        return self.lengths, self.blocks, self.partial, self.counter, self.nothing

    def run(
        self, pointers: torch.Tensor, place: torch.Tensor, first: bool, table: torch.Tensor | None, bounds: Sequence[float]
    ) -> None:
        """place: [sum of squares, its root], where the first of several launches begins anew; table: the rows of scalars;
        bounds: max_grad_norm of each."""
        self.bring(bounds)
        if not len(self.blocks):
            if first:
                place.zero_()
            return
        tensors = self._read(pointers, place, table)
        with on_device(self.device):
            self.streams.read(*tensors)
            constants = (self.operands, BLOCK)
            launch(self.kernel, self.compiled, len(self.blocks), tensors, (int(first), len(bounds)), constants, WARPS)

    def bring(self, bounds: Sequence[float]) -> None:
        if bounds != self.bound:
            self.bounds, self.bound = upload(bounds, self.device, torch.float64), bounds
            self.changes += 1

    def _read(self, pointers: torch.Tensor, place: torch.Tensor, table: torch.Tensor | None) -> list[torch.Tensor]:
        tensors = [pointers, self.lengths, self.blocks, self.partial, self.counter, place, self.bounds]
        return [*tensors, self.nothing if table is None else table]

    def prepared(
        self, pointers: torch.Tensor, place: torch.Tensor, first: bool, table: torch.Tensor | None
    ) -> list[Any] | None:
        """The launch of `run` without Python, after one with it, for the bounds that were brought."""
        made, numbers = self.compiled.get((self.operands, BLOCK)), (int(first), len(self.bound))
        return alone(made, self.streams, len(self.blocks), self._read(pointers, place, table), numbers)
