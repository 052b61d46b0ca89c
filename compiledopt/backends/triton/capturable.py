"""capturable=True: the scalar part runs on the device too, one row per parameter, so that nothing is read on the host.

Numbers of the groups are mirrored into a table on the device when they change; numbers that are tensors on the device are
read where they are. So a captured graph follows tensors changed in place, and floats after `Optimizer.refresh()`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

import torch

from compiledopt.backends.batch import Context, counted_of
from compiledopt.backends.devices import Streams, is_capturing, on_device, ordinary, synchronize, upload
from compiledopt.backends.layout import scalar_dtype
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.readiness import FIRST, AnyKernel, made_ready
from compiledopt.backends.triton.tables import alone, launch
from compiledopt.rules.options import FOUND, NORM, SCALE, as_float
from compiledopt.rules.program import Program, scalar_program
from compiledopt.rules.traced import Traced, Variant

ROWS, WARPS = 128, 4  # rows per block of the scalar kernel
# What the library keeps on the device itself, beside the numbers of the groups: around/clip.py and around/loss_scale.py.
KEPT = {NORM: torch.float64, SCALE: torch.float32, FOUND: torch.float32}
STALE = "CUDA graph capture with numbers that changed since the last step(): call refresh() first"
OTHERS = (
    "CUDA graph capture with other parameters, states, sizes, or tensors as numbers than in the last step(): run step() with "
    "them before"
)
Key = tuple[Any, ...]


def lives_on(value: Any, device: torch.device) -> TypeGuard[torch.Tensor]:
    """Whether a kernel there can read a number where it is."""
    if not isinstance(value, torch.Tensor) or value.device != device:
        return False
    return value.dtype in triton.NAMES and value.numel() == 1


def option_names(traced: Traced | Variant) -> list[str]:
    """The numbers of a group that the scalar part reads, as a program names them, and `first`."""
    own = (*traced.scalar_names, *traced.scalars.size_names)
    return [node.name for node in traced.program.scalars if node.name not in own]


def option_dtypes(traced: Traced | Variant, numbers: Mapping[str, Any], device: torch.device) -> tuple[torch.dtype, ...]:
    return number_dtypes(option_names(traced), numbers, device)


def number_dtypes(names: Sequence[str], numbers: Mapping[str, Any], device: torch.device) -> tuple[torch.dtype, ...]:
    """The dtypes in which a scalar kernel finds the numbers of a group: those of tensors on the device, float64 mirrored."""
    found = []
    for name in names:
        value = None if name == "first" or name in KEPT else numbers.get(name)  # a total of a group is float64, too
        found.append(value.dtype if lives_on(value, device) else KEPT.get(name, torch.float64))
    return tuple(found)


# ---- the scalar part's kernel ----


def is_on_device(traced: Traced | Variant, group: Mapping[str, Any], param: torch.Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the 0-dim states of a parameter are on its device, or will be made there."""
    if group.get("capturable") or traced.rule.follows_norm or _is_summed(traced, param):
        return True
    made = param.device if group.get("fused") else torch.device("cpu")
    values = [state.get(name) for name in counted_of(traced, param)]
    return any((v.device if isinstance(v, torch.Tensor) else made).type != "cpu" for v in values)


def _is_summed(traced: Traced | Variant, param: torch.Tensor) -> bool:
    """Whether it reads sums over all parameters, which only the device knows."""
    return bool((traced if isinstance(traced, Variant) else traced.measured(param)).measures)


def launches_of(traced: Traced, group: Mapping[str, Any]) -> int:
    """At a step, for what parameters share (shared.py)."""
    return int(bool(traced.rule.shared and group.get("capturable")))


def check_scalars(
    traced: Traced | Variant,
    group: Mapping[str, Any],
    param: torch.Tensor,
    state: Mapping[str, Any],
    kernel: AnyKernel,
) -> None:
    """Make the kernel of the scalar part that a parameter will need. Raises: CompileError."""
    states = [state.get(name) for name in traced.scalar_names]
    dtypes = [value.dtype if isinstance(value, torch.Tensor) else scalar_dtype(group) for value in states]
    options = option_dtypes(traced, traced.rule.read(group).numbers, param.device)
    scalars_kernel(traced, dtypes, options, kernel, param.device)


def scalars_kernel(
    traced: Traced | Variant,
    state_dtypes: Sequence[torch.dtype],
    option_dtypes: Sequence[torch.dtype],
    kernel: AnyKernel,
    device: torch.device,
) -> triton.TritonKernel | None:
    """The kernel of the scalar part, which has run on nothing; None where nothing is to be computed. Raises: CompileError."""
    sizes = [torch.float64] * len(traced.scalars.size_names)
    states, options, own = iter(state_dtypes), iter(option_dtypes), iter(sizes)
    inputs = [node.name for node in traced.program.scalars]
    of = [states if n in traced.scalar_names else own if n in traced.scalars.size_names else options for n in inputs]
    dtypes = [next(each) for each in of]
    if not inputs:
        return None
    return rows_ready(traced.program, (*dtypes, *[kernel.scalar] * kernel.columns), device)


def rows_ready(program: Program, dtypes: tuple[torch.dtype, ...], device: torch.device) -> triton.TritonKernel:
    """The kernel of a program's scalar part, which has run on nothing. Raises: CompileError."""
    made = _lowered(program, dtypes)

    def run_on_nothing() -> None:
        RowsLaunch(made, device)(torch.zeros(1, dtype=torch.int64, device=device), 0)
        synchronize(device)

    made_ready(made.source, device, run_on_nothing)
    return made


@lru_cache
def _lowered(program: Program, dtypes: tuple[torch.dtype, ...]) -> triton.TritonKernel:
    """Once for all parameters that share it."""
    return triton.rows_kernel(scalar_program(program), dtypes)


def blocks_of(rows: int) -> int:
    return max(1, -(-rows // ROWS))


class RowsLaunch:
    """Launches the scalar part's kernel on a device."""

    def __init__(self, kernel: triton.TritonKernel, device: torch.device) -> None:
        self.kernel, self.streams, self.compiled = kernel, Streams(device), dict[Any, Any]()

    def __call__(self, addresses: torch.Tensor, count: int, *read: torch.Tensor) -> None:
        """addresses: of each row's inputs and results; read: the tensors that those lie in."""
        with on_device(addresses.device):
            self.streams.read(addresses, *read)
            launch(self.kernel, self.compiled, blocks_of(count), [addresses], [count], (ROWS,), WARPS)

    def prepared(self, addresses: torch.Tensor, count: int) -> list[Any] | None:
        """The launch without Python, after one with it."""
        return alone(self.compiled.get((ROWS,)), self.streams, blocks_of(count), [addresses], [count])


# ---- the numbers ----


class Mirror:
    """The numbers of a batch's groups that are not on the device already, and the two constants that `first` points to."""

    def __init__(self, context: Context, groups: Sequence[int], names: Sequence[str], device: torch.device) -> None:
        self.context, self.groups, self.names, self.device = context, groups, names, device
        self.places = {place: index for index, place in enumerate((group, name) for group in groups for name in names)}
        self.known: bytes | None = None
        self.table = upload([0.0] * (len(self.places) + 2), device, torch.float64)

    def _options(self) -> Iterator[tuple[int, Any]]:
        for (group, name), place in self.places.items():
            yield place, self.context.number(group, name)

    def tensors(self) -> list[tuple[int, torch.Tensor]]:
        """The numbers that the host does not read, with the places that they would have."""
        found = [(place, value) for place, value in self._options() if isinstance(value, torch.Tensor)]
        return [(place, value) for place, value in found if lives_on(value, self.device) or value.device.type != "cpu"]

    def _now(self) -> array[float]:
        known = dict(self.tensors())
        return array("d", [0.0 if place in known else as_float(value) for place, value in self._options()])

    def stale(self) -> bool:
        return self._now().tobytes() != self.known  # as bytes: NaN is not equal to itself

    @ordinary
    def refresh(self, captured: bool = False) -> None:
        """Write into the table what changed; where it is never moves, since a captured graph may read it.

        captured: whether one does, perhaps the place of a number that is a tensor by now.
        """
        values = self._now()
        if values.tobytes() != self.known:
            self.table.copy_(upload([*values, 0.0, 1.0], self.device, torch.float64), non_blocking=True)
            self.known = values.tobytes()
        self.follow(captured)

    @ordinary
    def follow(self, all_of_them: bool = False) -> None:
        """Copy tensors that the kernel cannot read where they are, from device to device."""
        for place, value in self.tensors():
            if all_of_them or not lives_on(value, self.device):
                self.table[place].copy_(value.detach().reshape(()), non_blocking=True)

    def address(self, group: int, name: str, first: bool) -> int:
        value = None if name == "first" else self.context.number(group, name)
        if lives_on(value, self.device):
            return value.data_ptr()
        return self.table.data_ptr() + 8 * (len(self.places) + first if name == "first" else self.places[group, name])


class CapturableBatch(TritonBatch):
    """The parameters of one bucket, with their 0-dim states on the device."""

    scalars_there = True

    def _plan(self) -> Any:
        self._make_tables()
        used = list(dict.fromkeys(entry.group for entry in self.entries))
        self.options = self._option_dtypes(used[0])
        scalars = scalars_kernel(self.traced, self.scalar_dtypes, self.options, self.triton, self.device)
        self.launch_rows = None if scalars is None else RowsLaunch(scalars, self.device)
        self.mirror = Mirror(self.context, used, [name for name in option_names(self.traced) if name != "first"], self.device)
        sizes = [size for entry in self.entries for size in self._sizes(entry)]
        self.sizes = upload(sizes, self.device, torch.float64)
        self.key: Key = ()
        self.order, self.count, self.pointed = b"", 0, 0
        self.results = self.addresses = self.later = upload(b"", self.device)
        self.captured: list[Any] = []
        return self._native_plan(0, (*self.dtypes, *self.scalar_dtypes), device_scalars=True)

    def _option_dtypes(self, group: int) -> tuple[torch.dtype, ...]:
        return option_dtypes(self.traced, self.context.numbers[group], self.device)

    def _reads_numbers_as_before(self) -> bool:
        return all(self._option_dtypes(group) == self.options for group in self.mirror.groups)

    def refresh(self) -> None:
        if is_capturing(self.device):
            raise RuntimeError("refresh() during a CUDA graph capture: call it before, and between replays")
        self.context.read()
        self.mirror.refresh(self.is_captured)

    @property
    def is_captured(self) -> bool:
        return bool(self.captured)

    def prepare(self) -> bool:
        """Read and check every tensor but what is on the device, and bring the tables there; nothing is written. False: the
        plan no longer fits, as where a number that was a float is a tensor on the device by now."""
        self.graph_pointers = None
        ready = self._reads_numbers_as_before()
        if ready:
            staged = self._stage()
            ready = self._gathered(staged)
            self.copies = staged
        if is_capturing(self.device):
            check_capture(self, ready)
        elif ready:
            ready = self._has_uploaded()
        return ready

    def _norms_columns(self) -> tuple[torch.Tensor | None, Sequence[float]]:
        """The scalar part reads the norm where it is."""
        return None, ()

    def renew(self) -> None:
        """As above."""

    def reads(self, value: Any) -> bool:
        return lives_on(value, self.device)

    def stays_put(self) -> bool:
        """Whether no number must be copied at each step."""
        copied = (self.is_captured or not lives_on(value, self.device) for _, value in self.mirror.tensors())
        return not any(copied)

    def bring(self) -> bool | None:
        self.context.read()
        return super().bring() if self._reads_numbers_as_before() else False

    def _changes(self) -> int:
        return super()._changes() + self.pointed

    def fills(self) -> bool:
        return False

    def prepared_launches(self) -> list[Any] | None:
        launches = self.tables.prepared(self.results, 0)
        if launches is None or not self.count or self.launch_rows is None:
            return launches
        rows = self.launch_rows.prepared(self.addresses, self.count)
        return None if rows is None else rows + launches

    def _is_measured_whole(self) -> bool:
        """The scalar part reads the norm where it is."""
        return True

    def _upload(self) -> None:
        pointers, lengths, _, states = self.native.tables()
        self.mirror.refresh(self.is_captured)
        key = self.key_of(pointers, states)
        if key != self.key:
            self._point(key, states)
        self.tables.update(pointers, self._extents(lengths), self.order)
        if self.norm is not None:
            self.norm.update(lengths)

    def key_of(self, pointers: bytes, states: bytes) -> Key:
        """What the table of addresses depends on: who has a gradient, wherever that lies; states, numbers, and `first`."""
        options = [self.mirror.address(group, name, False) for group, name in self.mirror.places]
        params = array("q", pointers)[:: self.triton.operands].tobytes()
        return params, states, options, any(self.first)

    def _run(self) -> None:
        self.launch_kernels()
        self.native.commit(array("d"))

    def launch_kernels(self) -> None:
        pointers = None
        if is_capturing(self.device):
            pointers, self.graph_pointers = self._pointers(), None
            self.mirror.follow()
            kept = () if self.norm is None else (*self.norm.read_by_graphs(), self.context.step)
            self.captured.append((self.results, self.addresses, self.sizes, self.mirror.table, self.mirror.tensors(), kept))
        if self.count and self.launch_rows is not None:
            self.launch_rows(self.addresses, self.count, self.results, self.sizes, self.mirror.table)
        self.tables.run(self.results, pointers)

    @ordinary
    def _point(self, key: Key, states: bytes) -> None:
        """Where each row finds its inputs and leaves its results: one row for each parameter with a gradient."""
        active = [index for index, *_ in self.native.active()]
        shape = max(1, len(active)), self.triton.columns
        columns = torch.zeros(shape, dtype=self.triton.scalar, device=self.device)
        addresses = upload(self._rows(active, states, columns, self.first), self.device)
        later = addresses
        if self.traced.reads_first and any(self.first):  # a capture may follow, during which nothing can be uploaded
            later = upload(self._rows(active, states, columns, [False] * len(self.first)), self.device)
        # Together, and after everything that asks for memory: else the next step would trust what is not there.
        self.addresses, self.later, self.results, self.key = addresses, later, columns, key
        self.pointed += 1
        self.count, self.order = len(active), array("q", range(len(active))).tobytes()

    def _rows(self, active: Sequence[int], states: bytes, columns: torch.Tensor, first: Sequence[bool]) -> list[int]:
        names, sizes, found = self.traced.scalar_names, self.traced.scalars.size_names, iter(array("q", states))
        addresses: list[int] = []
        for row, index in enumerate(active):
            own = dict(zip(names, [next(found) for _ in names], strict=True))
            own |= {name: self.sizes.data_ptr() + 8 * (index * len(sizes) + place) for place, name in enumerate(sizes)}
            for node in self.traced.program.scalars:
                known = own.get(node.name)
                group = self.entries[index].group
                addresses.append(self.mirror.address(group, node.name, first[index]) if known is None else known)
            start = columns.data_ptr() + row * columns.stride(0) * columns.element_size()
            addresses += [start + j * columns.element_size() for j in range(self.triton.columns)]
        return addresses

    def launch(self) -> None:
        self._run()
        self.copies = None
        if any(self.first):
            self.first = [False] * len(self.entries)
            self.addresses, self.key = self.later, (*self.key[:-1], False)


def check_capture(batch: CapturableBatch, ready: bool) -> None:
    """Refuse a capture that would not replay rightly. ready: whether the plan fits.

    Raises: RuntimeError with the mend, before anything is recorded.
    """
    missing = sum(entry.param.grad is None for entry in batch.entries)
    if missing:
        raise RuntimeError(
            f"CUDA graph capture of step() with {missing} gradients that are None, which a replay would leave out for "
            "ever: run backward inside the capture, or give these parameters gradients of zeros"
        )
    if not batch.key or any(batch.first):
        raise RuntimeError(FIRST)
    if ready:
        pointers, lengths, _, states = batch.native.tables()
        key = batch.key_of(pointers, states)
        if key[2] == batch.key[2] and batch.mirror.stale():
            raise RuntimeError(STALE)
        if key == batch.key and not batch.tables.unfit(pointers, batch._extents(lengths)):
            return
    raise RuntimeError(OTHERS)
