"""One Triton launch over all tensors of a device that share a program and dtypes.

A few numbers per row change at every step: arguments of the kernel where all tensors share one row, else a table.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.gathered import GatheredBatch
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.devices import is_capturing, on_device, ordinary, synchronize, upload
from compiledopt.backends.triton.tables import Scalars, Tables
from compiledopt.backends.triton.tuning import Config, config
from compiledopt.errors import CompileError
from compiledopt.rules.options import as_float
from compiledopt.rules.program import depends_on, value_of

# What a kernel is timed on: far more than the caches hold, and longer on the device than a launch takes on the host.
SCRATCH = 1 << 29  # bytes, of all tensors together
RUNS = 20
FIRST = "CUDA graph capture of a first step(): run step() once before, to have kernels and states"


def timer(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Callable[[Config], float]:
    """Times a kernel on aligned scratch tensors: milliseconds of one launch among RUNS.

    The launches are all between two events: an event for each would count the host's time too, while the device waits for it.
    The values are like a model's: the square root of zero takes another path.
    """
    length = SCRATCH // sum(dtype.itemsize for dtype in dtypes) // triton.ALIGNMENT * triton.ALIGNMENT
    tensors = [torch.empty(length, dtype=dtype, device=device) for dtype in dtypes]
    row = [1.0] * kernel.columns
    numbers = [array("q", values).tobytes() for values in ([t.data_ptr() for t in tensors], [length], [0])]

    def milliseconds(candidate: Config) -> float:
        tables = Tables(kernel, device, candidate)
        tables.update(*numbers)
        for tensor in tensors:
            tensor.uniform_(0.5, 1.0)
        with on_device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            tables.run(row)
            start.record()
            for _ in range(RUNS):
                tables.run(row)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / RUNS

    return milliseconds


_ready: dict[tuple[str, torch.device], Any] = {}  # what `make` gave, or the CompileError


def ready(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Config:
    """The block size and warps of a kernel that runs on a device: compiled and loaded there, in both variants, and run on
    nothing, so that no launch fails while others have written. Raises: CompileError."""

    def make() -> Config:
        chosen = config(kernel, device, lambda: timer(kernel, dtypes, device))
        _run_on_nothing(kernel, device, chosen)
        return chosen

    chosen: Config = made_ready(kernel, device, make)
    return chosen


@ordinary
def made_ready(kernel: triton.TritonKernel, device: torch.device, make: Callable[[], Any]) -> Any:
    """What `make` gives, which runs a kernel for the first time; asked once. Raises: CompileError where it cannot run, and
    whatever says that memory is short, which is no property of the kernel."""
    key = (kernel.source, device)
    if key not in _ready:
        if is_capturing(device):
            raise RuntimeError(FIRST)
        try:
            _ready[key] = make()
        # Triton's errors (OutOfResources, PTXASError, CompilationError) and subprocess's, from gcc, have only this in common.
        except Exception as error:
            if isinstance(error, MemoryError) or "out of memory" in str(error):
                raise
            _ready[key] = CompileError(f"the kernel cannot run on {device}: {type(error).__name__}: {error}")
    known = _ready[key]
    if isinstance(known, CompileError):
        raise known
    return known


def _run_on_nothing(kernel: triton.TritonKernel, device: torch.device, chosen: Config) -> None:
    """Launch a kernel, with one row of scalars and with a table of them, on a tensor without elements."""
    scratch = torch.zeros(2 * triton.ALIGNMENT, dtype=torch.float64, device=device)
    tables = Tables(kernel, device, chosen)
    tables.update(*(array("q", n).tobytes() for n in ([scratch.data_ptr()] * kernel.operands, [0], [0])))
    tables.blocks = torch.zeros(1, 2, dtype=torch.int32, device=device)
    row = [1.0] * kernel.columns
    tables.run(row)
    tables.run(tables.fill(row))
    synchronize(device)


class TritonBatch(GatheredBatch):
    """The parameters of one bucket on one device. The 0-dim states are on the host, as torch's without capturable."""

    def _plan(self) -> Any:
        self._make_tables()
        return self._native_plan(0, self.dtypes)

    def _make_tables(self) -> None:
        if is_capturing(self.device):
            raise RuntimeError(FIRST)
        dtypes = kernel_dtypes(self.dtypes)
        self.triton = triton.kernel(self.traced.program, dtypes)
        self.tables = Tables(self.triton, self.device, ready(self.triton, dtypes, self.device))

    def prepare(self) -> bool:
        """Read and check every tensor, and bring the tables to the device; nothing is written. False: the plan does not fit."""
        if is_capturing(self.device):
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an optimizer with capturable=False. "
                "Pass capturable=True, so that nothing is read on the host."
            )
        if not super().prepare():
            return False
        pointers, lengths, rows, _ = self.native.tables()
        self.tables.update(pointers, lengths, rows)
        if not self.is_clipped:
            self.columns = self._columns()
        return True

    def renew(self) -> None:
        self._fill_table()
        self.columns = upload(self._rows_of_columns(), self.device, self.triton.scalar)
        self._clip(self.columns.view(len(self.rows), self.triton.columns))

    def _step_numbers(self) -> Mapping[str, Any]:
        """The host does not know the norm, so it fills in another."""
        return {**self.context.step, "grad_norm": 1.0} if self.is_clipped else self.context.step

    def _columns(self) -> Scalars:
        """What the kernel reads of the table: the only row, or all of them on the device."""
        return self.table[: self.triton.columns] if len(self.rows) == 1 else self.tables.fill(self._rows_of_columns())

    def _rows_of_columns(self) -> list[float]:
        count, width = self.triton.columns, len(self.table) // max(1, len(self.rows))
        return [self.table[row * width + i] for row in range(len(self.rows)) for i in range(count)]

    @torch.no_grad()
    def _clip(self, table: torch.Tensor) -> None:
        """Put what depends on the norm, which only the device knows, into its column."""
        for column, node in enumerate(self.traced.program.columns):
            if depends_on(node, "grad_norm"):
                bounds = [as_float(self.context.number(group, "max_grad_norm")) for group, *_ in self.rows]
                norm = self.context.step["grad_norm"]
                given = {"max_grad_norm": upload(bounds, self.device, torch.float64), "grad_norm": norm}
                table[:, column].copy_(value_of(node, given), non_blocking=True)

    def _run(self) -> None:
        self.tables.run(self.columns)
        self.native.commit(self.table)
