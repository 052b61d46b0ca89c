"""One native call over all tensors that share a program and dtypes, on the CPU."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Standing, Steady, TotalOf, Value, over_processes, total_of
from compiledopt.backends.cpp import kernels
from compiledopt.backends.cpp.steady import steady
from compiledopt.backends.gathered import GatheredBatch
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.rules.program import ANY_ORDER
from compiledopt.rules.scalar_part import Measurement
from compiledopt.rules.totals import SQUARES
from compiledopt.rules.traced import Variant

GRAD = 1  # among the operands


def squares_kernel(dtype: torch.dtype) -> kernels.Kernel:
    """The kernel that sums the squares of a gradient of this dtype. Raises: CompileError with the reason."""
    return kernels.totals_kernel(SQUARES, (dtype,))


def totals_kernel(measure: Measurement, dtypes: Sequence[torch.dtype]) -> kernels.Kernel:
    """What sums for a measurement, given the dtypes of all operands. Raises: CompileError."""
    return kernels.totals_kernel(measure.program, kernel_dtypes([dtypes[index] for index in measure.reads]))


class CppBatch(GatheredBatch):
    """The parameters of one bucket, updated by one C++ kernel."""

    def _plan(self) -> Any:
        if self.is_clipped:
            self.squared = squares_kernel(self.dtypes[GRAD].to_real())
        self.summing = [totals_kernel(measure, self.dtypes) for measure in self.traced.measures]
        return self._kernel_plan()

    def _kernel_plan(self) -> Any:
        """Take the kernel, and make the native gather."""
        self.kernel = kernels.kernel(self.traced.program, kernel_dtypes(self.dtypes))
        return self._native_plan(self.kernel.address, self.dtypes)

    @property
    def order_in_memory(self) -> int:
        """Any: what has blocks of rows and lies otherwise is brought into that order tile by tile (launcher/tiles.h)."""
        return self.traced.order if isinstance(self.traced, Variant) else ANY_ORDER

    @property
    def steady(self) -> Callable[[Standing], Steady | None] | None:
        return steady

    def squares(self) -> Value:
        (squares,) = self.native.sums(self.squared.address, (GRAD,), 1, None, 0, torch.get_num_threads())
        return over_processes(squares, self.entries[0])

    def totals(self, round: int) -> dict[TotalOf, Value]:
        measure = self.traced.measures[round]
        table, step = array("d"), self.context.step
        for group, first, states, sizes in self.rows:
            table.extend(measure.scalars(self.context.numbers[group], step, (first, *states, *sizes))[0])
        width, count = len(measure.program.columns), len(measure.totals)
        where = measure.reads, count, table, width, torch.get_num_threads()
        sums = self.native.sums(self.summing[round].address, *where) if self.rows else []
        found: dict[TotalOf, float] = {}
        for row, (group, *_) in enumerate(self.rows):
            for node, value in zip(measure.totals, sums[row * count : (row + 1) * count], strict=True):
                key = total_of(node, group)
                found[key] = found.get(key, 0.0) + value
        return {key: over_processes(value, self.entries[0]) for key, value in found.items()}

    def _run(self) -> None:
        self.native.launch(self.table, torch.get_num_threads())
