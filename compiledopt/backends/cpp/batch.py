"""One native call over all tensors that share a program and dtypes, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiledopt.backends.batch import Standing, Steady, Value, over_processes
from compiledopt.backends.cpp import kernels
from compiledopt.backends.cpp.steady import steady
from compiledopt.backends.gathered import GatheredBatch
from compiledopt.backends.layout import kernel_dtypes


class CppBatch(GatheredBatch):
    """The parameters of one bucket, updated by one C++ kernel."""

    def _plan(self) -> Any:
        self.kernel = kernels.kernel(self.traced.program, kernel_dtypes(self.dtypes))
        if self.is_clipped:
            self.squared = kernels.squares_kernel(self.dtypes[1].to_real())
        return self._native_plan(self.kernel.address, self.dtypes)

    @property
    def steady(self) -> Callable[[Standing], Steady | None] | None:
        return steady

    def squares(self) -> Value:
        return over_processes(float(self.native.sum(self.squared.address, torch.get_num_threads())), self.entries[0])

    def _run(self) -> None:
        self.native.launch(self.table, torch.get_num_threads())
