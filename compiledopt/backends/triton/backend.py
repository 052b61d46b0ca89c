"""The compiled executor of GPUs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Description, Entry, bytes_moved, spread_of
from compiledopt.backends.cpp.kernels import launcher, platform_reason
from compiledopt.backends.distributed import is_distributed, local
from compiledopt.backends.gathered import GatheredBackend, bucket_of, too_many
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch, check_scalars, is_on_device, option_dtypes
from compiledopt.backends.triton.kernels import missing
from compiledopt.backends.triton.readiness import check_on_device, kernel_of
from compiledopt.errors import CompileError
from compiledopt.rules.scalars import scalar_source


class TritonBackend(GatheredBackend):
    """One Triton kernel over a whole model; the scalar part on the device too, where `capturable` or a state asks for it."""

    numbers_on_host = False

    def serves(self, device: torch.device) -> bool:
        """COMPILEDOPT_TRITON_ON_CPU=1, with TRITON_INTERPRET=1: Triton's interpreter runs the kernels on CPU tensors."""
        return device.type in ("cuda", "xpu") or (device.type == "cpu" and os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1")

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else missing() or platform_reason()

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        return f"{entry.traced.rule.name} reduces, and a parameter is distributed" if is_distributed(entry.param) else None

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        runs, param = entry.runs, entry.param
        if (reason := too_many(entry)) is not None:
            return reason
        if runs.measures or runs.rule.shared:
            return f"{runs.rule.name} sums over all parameters, or they share a state, and there is no Triton kernel for that"
        if runs.scalars.size_names and is_on_device(runs, group, param, entry.state):
            return f"{runs.rule.name} reads {runs.scalars.size_names[0]}, which a table on the device has not"
        if not entry.traced.elementwise and (runs.program.is_random or runs.program.blocks):
            what = "reads random bits" if runs.program.is_random else "has states in blocks"
            return f"{runs.rule.name} reduces and {what}, and there is no Triton kernel for that"
        if runs.program.blocks and not local(param).is_contiguous():
            return "its states are kept in blocks of a row, and a parameter does not lie in memory row after row"
        try:
            kernel = kernel_of(runs, entry.dtypes())
            check_on_device(runs, param, entry.dtypes())
            there = is_on_device(runs, group, param, entry.state)
            if runs.is_clipped:
                TritonBatch.check_norm(runs, entry.dtypes(), kernel, param.device, there)
            if there:
                check_scalars(runs, group, param, entry.state, kernel)
            launcher()
        except CompileError as error:
            return str(error)
        return None

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        spread = spread_of(entry) if entry.traced.is_clipped else None
        if not is_on_device(entry.traced, context.groups[entry.group], entry.param, entry.state):
            return (TritonBatch, None, spread, *bucket_of(entry))
        options = option_dtypes(entry.runs, context.numbers[entry.group], entry.param.device)
        return (CapturableBatch, options, spread, *bucket_of(entry))

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        first = entries[0]
        there = is_on_device(first.traced, context.groups[first.group], first.param, first.state)
        return CapturableBatch(entries, context) if there else TritonBatch(entries, context)

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        """One launch, of a rule that reduces a few, and one more where the scalar part is on the device."""
        first = entries[0]
        runs, dtypes = first.runs, first.dtypes()
        kernel, scalars = kernel_of(runs, dtypes), scalar_source(runs.program)
        passes = getattr(runs, "passes", None)
        launches = kernel.launches
        moved: tuple[float, float] = passes.bytes_per_element(dtypes) if passes else bytes_moved(first)
        calls = launches + is_on_device(runs, group, first.param, first.state)
        return Description(calls, launches, launches, *moved, runs.program, lambda: f"{scalars}\n\n{kernel.source}")
