"""The compiled executor of the CPU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Description, Entry, bytes_moved, operand_dtypes, spread_of
from compiledopt.backends.cpp import kernels, reducing
from compiledopt.backends.cpp.batch import CppBatch, squares_kernel, totals_kernel
from compiledopt.backends.distributed import is_distributed
from compiledopt.backends.gathered import GatheredBackend, bucket_of, too_many
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.errors import CompileError
from compiledopt.rules.scalars import scalar_source
from compiledopt.rules.traced import Variant


class CppBackend(GatheredBackend):
    """Kernels in C++, and a native launcher that runs one over a whole model."""

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def begin(self) -> None:
        if kernels.platform_reason() is None:
            kernels.launcher_soon()

    def missing(self, device: torch.device) -> str | None:
        return kernels.platform_reason()

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any], told: str) -> str | None:
        if group.get("capturable"):
            return f"{told}, and such rules are not compiled with capturable=True"
        return f"{told}, and a parameter is distributed" if is_distributed(entry.param) else None

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        runs, dtypes = entry.runs, operand_dtypes(entry)
        if (reason := too_many(entry) or reducing.lies_otherwise(runs, entry.param)) is not None:
            return reason
        try:
            if runs.is_clipped:
                squares_kernel(dtypes[1].to_real())
            for measure in runs.measures:
                totals_kernel(measure, dtypes)
            if isinstance(runs, Variant):
                reducing.kernel(runs, dtypes)
            else:
                kernels.kernel(runs.program, kernel_dtypes(dtypes))
            kernels.launcher()
        except CompileError as error:
            return str(error)
        return None

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        # Norms of parameters that are spread over processes in one way are summed in one way.
        return (spread_of(entry) if entry.runs.is_measured else None, *bucket_of(entry))

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        kind = CppBatch if entries[0].traced.elementwise else reducing.ReducingBatch
        return kind(entries, context)

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        first = entries[0]
        runs, dtypes = first.runs, operand_dtypes(first)
        scalars = scalar_source(runs.program)
        if isinstance(runs, Variant):
            kernel, passes = reducing.kernel(runs, dtypes), len(runs.passes.sweeps)
            moved: tuple[float, float] = runs.passes.bytes_per_element(dtypes)
        else:
            kernel, passes, moved = kernels.kernel(runs.program, kernel_dtypes(dtypes)), 1, bytes_moved(first)
        return Description(1, 1, passes, *moved, runs.program, lambda: f"{scalars}\n\n{kernel.source}")
