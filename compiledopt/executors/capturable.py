"""capturable=True: the scalar part runs on the device too, one row per parameter, so that nothing is read on the host.

Numbers of the groups are mirrored into a table on the device when they change; numbers that are tensors on the device are
read where they are. So a captured graph follows tensors changed in place, and floats after `Optimizer.refresh()`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from compiledopt.compiler import triton
from compiledopt.compiler.program import scalar_program
from compiledopt.compiler.rule import as_float, option
from compiledopt.executors.compiled import READY
from compiledopt.executors.device import TritonBatch, is_capturing, on_device, upload, used_on_this_stream
from compiledopt.executors.entries import Entry

ROWS = 128  # rows per block of the scalar kernel
Key = tuple[Any, ...]


def lives_on(value: Any, device: torch.device) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.device == device and value.dtype in triton.NAMES


def option_dtypes(entry: Entry, group: Mapping[str, Any]) -> tuple[torch.dtype, ...]:
    """The dtypes in which a scalar kernel finds the numbers of a group: those of tensors on the device, float64 mirrored."""
    names = [node.name for node in entry.traced.program.scalars if node.name not in entry.traced.scalar_names]
    values = [None if name == "first" else option(group, name) for name in names]
    return tuple(v.dtype if lives_on(v, entry.param.device) else torch.float64 for v in values)


class Mirror:
    """The numbers of the groups that are not on the device already, and the two constants that `first` points to."""

    def __init__(self, groups: Any, names: list[str], device: torch.device) -> None:
        self.groups, self.names, self.device = groups, names, device
        self.values: list[float] = []
        self.table = torch.zeros(len(groups) * len(names) + 2, dtype=torch.float64, device=device)

    def _now(self) -> list[float]:
        return [self._value(option(group, name)) for group in self.groups for name in self.names]

    def stale(self) -> bool:
        return self._now() != self.values

    def refresh(self) -> None:
        """Write into the table what changed; where it is never moves, since a captured graph may read it."""
        values = self._now()
        if values != self.values:
            self.values = values
            self.table.copy_(upload(torch.tensor([*values, 0.0, 1.0], dtype=torch.float64), self.device), non_blocking=True)

    def _value(self, value: Any) -> float:
        return 0.0 if lives_on(value, self.device) else as_float(value)

    def address(self, group: int, name: str, first: bool) -> int:
        place = len(self.values) + first if name == "first" else group * len(self.names) + self.names.index(name)
        value = None if name == "first" else option(self.groups[group], name)
        if lives_on(value, self.device):
            return value.data_ptr()
        return self.table.data_ptr() + 8 * place


class CapturableBatch(TritonBatch):
    """The parameters of one bucket, with their 0-dim states on the device."""

    def _plan(self) -> Any:
        self._make_tables()
        self.scalars = scalar_program(self.traced.program)
        entry = self.entries[0]
        states, options = iter(self.scalar_dtypes), iter(option_dtypes(entry, self.groups[entry.group]))
        inputs = [node.name for node in self.traced.program.scalars]
        dtypes = [next(states if name in self.traced.scalar_names else options) for name in inputs]
        dtypes += [self.triton.scalar] * self.triton.columns
        self.rows_kernel = triton.rows_kernel(self.scalars, dtypes)
        self._launch_rows(torch.zeros(1, dtype=torch.int64, device=self.device), 0)  # compiled and loaded before a write
        names = [name for name in inputs if name not in self.traced.scalar_names and name != "first"]
        self.mirror = Mirror(self.groups, names, self.device)
        self.key: Key = ()
        self.captured: list[Any] = []
        return self._native_plan(0, (*self.dtypes, *self.scalar_dtypes), device_scalars=True)

    def refresh(self) -> None:
        self.mirror.refresh()

    @property
    def is_captured(self) -> bool:
        return bool(self.captured)

    def prepare(self) -> bool:
        """Read and check every tensor but what is on the device; nothing is written. False: the plan no longer fits."""
        staged = self._stage()
        ready = self.native.gather(None, torch.get_num_threads(), staged) == READY
        self.copies = staged
        if ready and is_capturing(self.device):
            check_capture(self)
        return bool(ready)

    def renew(self) -> None:
        """The norm is read where it is."""

    def _run(self) -> None:
        pointers, lengths, _, states = self.native.tables()
        self.mirror.refresh()
        options = [self.mirror.address(g, name, False) for g in range(len(self.groups)) for name in self.mirror.names]
        params = array("q", pointers)[:: self.triton.operands].tobytes()  # who has a gradient, wherever that lies
        key = (params, states, options, any(self.first))
        if key != self.key:
            self._point(states)
            self.key = key
        self.tables.update(pointers, lengths, self.order)
        used_on_this_stream(self.columns, self.mirror.table)
        self._launch_rows(self.addresses, self.count)
        self.tables.run(self.columns)
        if is_capturing(self.device):
            self.captured.append((self.columns, self.addresses, self.mirror.table))
        self.native.commit(array("d"))

    def _launch_rows(self, addresses: torch.Tensor, count: int) -> None:
        with on_device(self.device):
            used_on_this_stream(addresses)
            self.rows_kernel.function[(max(1, -(-count // ROWS)),)](addresses, count, XBLOCK=ROWS)

    def _point(self, states: bytes) -> None:
        """Where each row finds its inputs and leaves its results: one row for each parameter with a gradient."""
        active = [index for index, *_ in self.native.active()]
        names, found, width = self.traced.scalar_names, iter(array("q", states)), self.triton.columns
        addresses: list[int] = []
        columns = torch.zeros(max(1, len(active)) * width, dtype=self.triton.scalar, device=self.device)
        base, size = columns.data_ptr(), columns.element_size()
        for row, index in enumerate(active):
            own = dict(zip(names, [next(found) for _ in names], strict=True))
            group, first = self.entries[index].group, self.first[index]
            for node in self.traced.program.scalars:
                known = own.get(node.name)
                addresses.append(self.mirror.address(group, node.name, first) if known is None else known)
            addresses += [base + (row * width + j) * size for j in range(width)]
        self.count, self.order = len(active), array("q", range(len(active))).tobytes()
        self.columns, self.addresses = columns, upload(torch.tensor(addresses, dtype=torch.int64), self.device)

    def launch(self) -> None:
        self._run()
        self.copies = None
        self.first = [False] * len(self.entries) if any(self.first) else self.first


def check_capture(batch: CapturableBatch) -> None:
    """Refuse a capture that would not replay rightly. Raises: RuntimeError with the mend, before anything is recorded."""
    missing = sum(entry.param.grad is None for entry in batch.entries)
    if missing:
        raise RuntimeError(
            f"CUDA graph capture of step() with {missing} gradients that are None, which a replay would leave out for "
            "ever: run backward inside the capture, or give these parameters gradients of zeros"
        )
    if not batch.key or any(batch.first):
        raise RuntimeError("CUDA graph capture of a first step(): run step() once before, to have kernels and states")
    if batch.mirror.stale():
        raise RuntimeError("CUDA graph capture with numbers that changed since the last step(): call refresh() first")
    pointers, lengths, _, states = batch.native.tables()
    if batch.tables.unfit(pointers, lengths) or states != batch.key[1]:
        raise RuntimeError(
            "CUDA graph capture with other parameters, states or sizes than in the last step(): run step() with them before"
        )
