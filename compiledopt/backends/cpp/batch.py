"""One native call over all tensors that share a program and dtypes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compiledopt.around.clipping import Measured, over_processes
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.entries import Entry
from compiledopt.rules.traced import Traced, Variant
from compiledopt.step.choose import same_layout

READY, REGROUP = 0, 1
MOST_TENSORS = 16  # of a parameter, its gradient and its states: kMaxOperands in launcher.cpp

Groups = Sequence[Mapping[str, Any]]
Row = tuple[int, float, tuple[float, ...]]  # index of the group, first, 0-dim states


def needs_staging(param: torch.Tensor, grad: torch.Tensor) -> bool:
    """Whether a gradient must be brought into its parameter's layout first."""
    return not same_layout(param, grad) or grad.is_conj() or grad.is_neg() or grad.is_inference()


Bucket = tuple[Traced | Variant, tuple[torch.dtype, ...], tuple[torch.dtype, ...], bool, torch.device]


def bucket_of(entry: Entry) -> Bucket:
    """What the parameters of one launch have in common."""
    param = entry.param
    grad = param if param.grad is None else param.grad
    scalars = tuple(entry.state[name].dtype for name in entry.traced.scalar_names)
    return entry.runs, entry.dtypes(), scalars, needs_staging(param, grad), param.device


def kernel_dtypes(dtypes: Sequence[torch.dtype]) -> tuple[torch.dtype, ...]:
    """The dtypes that a kernel sees: complex numbers are two reals."""
    return tuple(dtype.to_real() for dtype in dtypes)


class CompiledBatch(Measured):
    """The parameters of one bucket, and the table of scalars their kernel reads: one row per (group, first, step)."""

    executor = "compiled"

    def __init__(self, entries: list[Entry], groups: Groups) -> None:
        self.entries = entries
        self.groups = groups
        self.traced = entries[0].runs
        self.device = entries[0].param.device
        _, self.dtypes, self.scalar_dtypes, self.staged, _ = bucket_of(entries[0])
        self.rounded = any(dtype == torch.float32 for dtype in self.scalar_dtypes)
        self.first = [entry.first for entry in entries]
        self.rows: list[Row] = []
        self.fresh: list[tuple[float, ...]] = []
        self.table = array("d")
        self.native = self._plan()

    def _plan(self) -> Any:
        self.kernel = cpp.kernel(self.traced.program, kernel_dtypes(self.dtypes))
        if self.is_clipped:
            self.squared = cpp.squares_kernel(self.dtypes[1].to_real())
        return self._native_plan(self.kernel.address, self.dtypes)

    def _native_plan(self, address: int, dtypes: Sequence[torch.dtype], device_scalars: bool = False) -> Any:
        """The native gather. dtypes: of the operands, and of the 0-dim states where they live on the device."""
        with torch.inference_mode(False):
            examples = tuple(torch.empty(0, dtype=dtype, device=self.device) for dtype in dtypes)
        return cpp.launcher().Plan(
            address,
            len(self.traced.program.columns),
            2 if self.entries[0].param.is_complex() else 1,
            device_scalars,
            [entry.param for entry in self.entries],
            [entry.state for entry in self.entries],
            self.traced.state_names,
            self.traced.scalar_names,
            examples,
            self.traced.axes,
            self.traced.order,
        )

    def prepare(self) -> bool:
        """Read and check every tensor, and fill the table; nothing is written. False: the plan no longer fits."""
        threads = torch.get_num_threads()
        staged = self._stage()
        status = REGROUP
        if self.rows:
            self._fill_table() if not self.is_clipped else self._expect()
            status = self.native.gather(self.table, threads, staged)
        if status == REGROUP:
            status = self.native.gather(None, threads, staged)
            if status == READY:
                self._regroup()
                self._fill_table()
                status = self.native.gather(self.table, threads, staged)
        # The launch holds references to the tensors, so the copies may go when it is over.
        self.copies = staged
        return bool(status == READY)

    @property
    def is_clipped(self) -> bool:
        return self.traced.is_clipped

    def squares(self) -> torch.Tensor | float:
        return over_processes(float(self.native.sum(self.squared.address, torch.get_num_threads())), self.entries[0])

    def renew(self) -> None:
        self._fill_table()

    def _stage(self) -> list[torch.Tensor | None] | None:
        """What stands in for the gradients, or None where they can be read as they are."""
        return [_staged(entry.param) for entry in self.entries] if self.staged else None

    def _regroup(self) -> None:
        """Give each parameter the row of its group and its 0-dim states; parameters in step share one."""
        rows: dict[Row, int] = {}
        self.native.forget_rows()
        for index, *states in self.native.active():
            first = 1.0 if self.first[index] and self.traced.reads_first else 0.0
            row = (self.entries[index].group, first, tuple(states))
            self.native.set_row(index, rows.setdefault(row, len(rows)))
        self.rows = list(rows)

    def _fill_table(self) -> None:
        values: list[float] = []
        self.fresh = []
        for group, first, states in self.rows:
            columns, fresh = self.traced.scalars(self.groups[group], (first, *states))
            if self.rounded:
                fresh = list(array("f", fresh))
            self.fresh.append(tuple(fresh))
            values += columns
            values += states
            values += fresh
        self.table = array("d", values)

    def _expect(self) -> None:
        """The table with nothing but the states that must be found: the columns follow when the norm is known (`renew`)."""
        values: list[float] = []
        for _, _, states in self.rows:
            values += [0.0] * len(self.traced.program.columns)
            values += states
            values += states
        self.table = array("d", values)

    @property
    def is_captured(self) -> bool:
        """Whether a CUDA graph reads its tables."""
        return False

    def refresh(self) -> None:
        """Nothing is on the device."""

    def launch(self) -> None:
        self._run()
        self.copies = None
        if any(row[1] for row in self.rows):
            self.first = [False] * len(self.entries)
            self.rows = []
        else:
            self.rows = [(g, first, fresh) for (g, first, _), fresh in zip(self.rows, self.fresh, strict=True)]

    def _run(self) -> None:
        self.native.launch(self.table, torch.get_num_threads())


def _staged(param: torch.Tensor) -> torch.Tensor | None:
    grad = param.grad
    if grad is None or not needs_staging(param, grad):
        return grad
    return torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)
