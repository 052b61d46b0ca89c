"""The tables of a rule that reduces: how each parameter lies, memory for what is kept between launches, and their blocks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compiledopt.backends.devices import as_numbers, on_device, upload
from compiledopt.backends.triton.forms import PLAIN, Form, chosen
from compiledopt.backends.triton.kernels import Built, TritonKernel, build_for
from compiledopt.backends.triton.places import AXES
from compiledopt.backends.triton.prepared import Launch
from compiledopt.backends.triton.reducing import SLOTS, TILES, Layout, ReducingKernel, Tile, part_of, tiles_of
from compiledopt.backends.triton.stages import Kind
from compiledopt.backends.triton.tables import Scalars, Tables, alone, launch
from compiledopt.rules.program import ANY_ORDER, COLUMNS, ELEMENTS, OUTER, ROW_AFTER_ROW, ROWS

UNIT = 16  # elements: what is kept begins on multiples of so many
MORE = 1.25  # times the fewest blocks, for tiles with vector loads

Shape = Sequence[int]  # matrices, rows, columns
Size = Sequence[int]  # the same, the number of the parameter, and the place of the tensor's first element there
Prove = Callable[[Sequence[int]], None] | None


@dataclass
class Laid:
    """Where things lie, for parameters of known shapes. table: as reducing.Layout says; kept: the memory that it points into;
    blocks: (kind and tile, tensor, index) of each stage; masks: the kinds and tiles that each stage has."""

    table: torch.Tensor
    kept: tuple[torch.Tensor, ...]
    blocks: list[torch.Tensor]
    masks: list[int]


def shape_of(param: torch.Tensor, order: int) -> Shape:
    """(matrices, rows, columns), as they lie in memory."""
    outer, order = order >> OUTER, order & ((1 << OUTER) - 1)
    if outer:
        rows = math.prod(param.shape[:outer])
        return min(1, param.numel()), rows, param.numel() // max(1, rows)
    if order == ANY_ORDER or param.dim() < 2:
        return min(1, param.numel()), 1, param.numel()
    rows, columns = param.shape[-2:] if order == ROW_AFTER_ROW else param.shape[:-3:-1]
    return param.numel() // max(1, rows * columns), rows, columns


def tiles(kind: Kind, shape: Shape, is_flat: bool, split: int = 1) -> tuple[int, Tile, int]:
    """(which tile, the tile, how many of them) for a tensor: the first that needs few, however it is split. A tile of many
    matrices takes whole ones, so that neighbours in it are neighbours in memory. Those that come first have vector loads, for
    some more blocks: with the fewest, 1000 × 1000 went by 16 columns at a time."""
    forms = tiles_of(kind, is_flat)
    whole = [number for number, tile in enumerate(forms) if tile[0] == 1 or _is_whole(kind.axes, shape, tile)]
    counts = {number: _count(kind.axes, shape, forms[number]) for number in whole}
    few = MORE * min(counts.values())
    number = next(number for number in whole if counts[number] <= few)
    tile = part_of(forms[number], kind.axes, split)
    return number, tile, _count(kind.axes, shape, tile)


def _is_whole(axes: int, shape: Shape, tile: Tile) -> bool:
    return not (axes & ROWS and shape[1] > tile[1]) and not (axes & COLUMNS and shape[2] > tile[2])


def _count(axes: int, shape: Shape, tile: Tile) -> int:
    count = 1
    for axis, size, block in zip(AXES, shape, tile, strict=True):
        count *= -(-size // block) if axes & axis else 1
    return count


def _size(axes: int, shape: Shape) -> int:
    size = 1
    for axis, length in zip(AXES, shape, strict=True):
        size *= length if axes & axis else 1
    return size


@dataclass
class Room:
    """Takes places in one piece of memory."""

    taken: int = 0
    places: list[int] = field(default_factory=list)

    def take(self, count: int) -> int:
        start = self.taken
        self.taken += -(-count // UNIT) * UNIT
        return start


def laid_out(kernel: ReducingKernel, sizes: Sequence[Size], masks: Sequence[int], device: torch.device) -> Laid:
    """Where things lie, once `run_on_nothing` has chosen the form of each launch. masks: the kinds and tiles that each has, of
    these sizes or more."""
    passes, layout, room = kernel.passes, Layout(kernel.passes), Room()
    shapes, own = [size[:3] for size in sizes], [size[3:] for size in sizes]
    numbers = max(1, passes.numbers - passes.columns)
    splits = [form_of(stage, device, mask).split for stage, mask in zip(kernel.stages, masks, strict=True)]
    split_of = {kind.sweep: split for kinds, split in zip(kernel.kinds, splits, strict=True) for kind in kinds}
    rows = []
    for tensor, shape in enumerate(shapes):
        row = [*shape, tensor * numbers, *own[tensor]]
        row += [room.take(_size(axes, shape)) for axes in passes.buffers]
        for s, i in layout.reductions:
            sweep = passes.sweeps[s]
            target = sweep.reductions[i].target.axes
            _, tile, _ = tiles(Kind(sweep.axes), shape, passes.is_flat, split_of.get(s, 1))
            parts = _count(sweep.axes & ~target, shape, tile)
            row += [room.take(parts * _size(target, shape)), parts]
        rows.append(row)
    slots = torch.zeros(numbers * len(shapes), dtype=torch.float64, device=device)
    memory = torch.zeros(room.taken, dtype=kernel.wide, device=device)
    places = [layout.buffer(k) for k in range(len(passes.buffers))] + [layout.partial(one) for one in layout.reductions]
    for row in rows:
        row[SLOTS] = slots.data_ptr() + 8 * row[SLOTS]
        for place in places:
            row[place] = memory.data_ptr() + memory.element_size() * row[place]
    table = upload(array("q", [value for row in rows for value in row]).tobytes(), device)
    ways = zip(kernel.kinds, splits, strict=True)
    blocks = [upload(_blocks(kinds, shapes, passes.is_flat, split)[0], device) for kinds, split in ways]
    return Laid(table, (slots, memory), blocks, list(masks))


def masks_of(kernel: ReducingKernel, shapes: Sequence[Shape]) -> list[int]:
    return [_blocks(kinds, shapes, kernel.passes.is_flat)[1] for kinds in kernel.kinds]


def _blocks(kinds: Sequence[Kind], shapes: Sequence[Shape], is_flat: bool, split: int = 1) -> tuple[torch.Tensor, int]:
    """The blocks of a stage, kind after kind, and which kinds and tiles there are."""
    found, mask, code = [torch.empty(0, 3, dtype=torch.int32, device="cpu")], 0, 0
    for kind in kinds:
        for tensor, shape in enumerate(shapes):
            number, _, count = tiles(kind, shape, is_flat, split)
            if _size(ELEMENTS, shape) == 0:
                continue
            block = torch.empty(count, 3, dtype=torch.int32, device="cpu")
            block[:, 0], block[:, 1] = code + number, tensor
            block[:, 2] = torch.arange(count, device="cpu")
            found.append(block)
            mask |= 1 << (code + number)
        code += len(tiles_of(kind, is_flat))
    return torch.cat(found), mask


class ShapedTables(Tables):
    """Of the kernels of a rule that reduces; what it is given for lengths are shapes."""

    few = 0

    def __init__(
        self, kernel: ReducingKernel, device: torch.device, prove: Prove = None, masks: Sequence[int] | None = None
    ) -> None:
        """prove: what is asked of the kinds and forms of tiles before they are used; it may raise CompileError. masks: those
        of the launches, where they are not those of the tensors alone."""
        super().__init__(kernel.stages[0], device)
        self.stages, self.prove, self.masks = kernel, prove, masks
        self.laid = Laid(self.lengths, (), [], [])
        self.compiled_stages: list[dict[Any, Any]] = [{} for _ in kernel.stages]

    def _arrange(self, sizes: bytes) -> Any:
        found = as_numbers(sizes).view(-1, self.stages.extents).tolist()
        masks = self.masks or masks_of(self.stages, [each[:3] for each in found])
        run_on_nothing(self.stages, masks, self.device)
        if self.prove is not None:
            self.prove(masks)
        return laid_out(self.stages, found, masks, self.device)

    def _take(self, arranged: Any) -> None:
        self.laid = arranged

    def read_by_graphs(self) -> tuple[Any, ...]:
        return (self.rows, self.laid)

    def prepared(self, table: torch.Tensor | None, rows: int) -> list[Launch] | None:
        given = [self.pointers, self.laid.table, self.rows]
        found = []
        for number, (blocks, mask) in enumerate(zip(self.laid.blocks, self.laid.masks, strict=True)):
            if blocks.shape[0]:
                form = form_of(self.stages.stages[number], self.device, mask)
                made = self.compiled_stages[number].get((mask, form.split))
                tensors = [*given, blocks, self.numbers if table is None else table]
                own = alone(made, self.streams, blocks.shape[0], tensors, ())
                if own is None:
                    return None
                found += own
        return found

    def run(self, scalars: Scalars, pointers: torch.Tensor | None = None) -> None:
        table = scalars if isinstance(scalars, torch.Tensor) else self.fill(scalars)
        given = [self.pointers if pointers is None else pointers, self.laid.table, self.rows]
        with on_device(self.device):
            self.streams.read(*given, table, *self.laid.kept, *self.laid.blocks)
            for number, (blocks, mask) in enumerate(zip(self.laid.blocks, self.laid.masks, strict=True)):
                if blocks.shape[0]:
                    known = self.compiled_stages[number]
                    stage = self.stages.stages[number]
                    form = form_of(stage, self.device, mask)
                    constants = (mask, form.split)
                    launch(stage, known, blocks.shape[0], [*given, blocks, table], (), constants, form.warps, form.most)


_ready: dict[tuple[str, torch.device, int], Form] = {}


def form_of(stage: TritonKernel, device: torch.device, mask: int) -> Form:
    """What `run_on_nothing` has chosen."""
    return _ready.get((stage.source, device, mask), PLAIN)


def run_on_nothing(kernel: ReducingKernel, masks: Sequence[int], device: torch.device) -> None:
    """Compile and load the kernels for the tiles that a model has."""
    nothing = torch.full((3,), -1, dtype=torch.int32, device=device)
    numbers = torch.zeros(Layout(kernel.passes).width + kernel.operands, dtype=torch.int64, device=device)
    table = torch.zeros(max(1, kernel.columns), dtype=kernel.scalar, device=device)
    for stage, mask in zip(kernel.stages, masks, strict=True):
        if mask and (stage.source, device, mask) not in _ready:

            def run(form: Form, stage: TritonKernel = stage, mask: int = mask) -> tuple[int, int] | None:
                compiled: dict[Any, Any] = {}
                given, constants = [numbers, numbers, numbers, nothing, table], (mask, form.split)
                with on_device(device):
                    launch(stage, compiled, 1, given, (), constants, form.warps, form.most)
                made = compiled.get(constants)  # the interpreter makes nothing, and other GPUs have other registers
                return (made.n_regs, made.n_spills) if made and made.metadata.target.backend == "cuda" else None

            _ready[stage.source, device, mask] = chosen(run)


def best_for(stage: TritonKernel, arch: int, mask: int) -> Built:
    """A launch for a GPU that need not be there, in the form that is chosen for it. Raises: CompileError."""
    found: dict[Form, Built] = {}

    def compiled(form: Form) -> tuple[int, int]:
        block = math.prod(TILES[ELEMENTS][0]) // form.split
        found[form] = build_for(stage, arch, block, form.warps, kinds=mask, most=form.most, split=form.split)
        return found[form].registers, found[form].spills

    return found[chosen(compiled)]
