"""The compiled executor of GPUs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Description, Entry, bytes_moved, spread_of
from compiledopt.backends.cpp.kernels import launcher, platform_reason
from compiledopt.backends.gathered import GatheredBackend, bucket_of, too_many
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.backends.triton import kernels
from compiledopt.backends.triton.batch import TritonBatch, ready
from compiledopt.backends.triton.capturable import CapturableBatch, check_scalars, is_on_device, option_dtypes
from compiledopt.errors import CompileError
from compiledopt.rules.scalars import scalar_source


class TritonBackend(GatheredBackend):
    """One Triton kernel over a whole model; the scalar part on the device too, where `capturable` or a state asks for it."""

    numbers_on_host = False

    def serves(self, device: torch.device) -> bool:
        """COMPILEDOPT_TRITON_ON_CPU=1, with TRITON_INTERPRET=1: Triton's interpreter runs the kernels on CPU tensors."""
        return device.type in ("cuda", "xpu") or (device.type == "cpu" and os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1")

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else kernels.missing() or platform_reason()

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        return f"{entry.traced.rule.name} reduces, and such rules are compiled for the CPU alone"

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        traced, param = entry.traced, entry.param
        if (reason := too_many(entry)) is not None:
            return reason
        if traced.measures or traced.rule.shared:
            return f"{traced.rule.name} sums over all parameters, or they share a state, and there is no Triton kernel for that"
        if traced.scalars.size_names and is_on_device(traced, group, param, entry.state):
            return f"{traced.rule.name} reads {traced.scalars.size_names[0]}, which a table on the device has not"
        if traced.program.is_random:
            return "values are rounded with random bits, which the Triton kernel does not have"
        if traced.program.blocks:
            return "states are kept in blocks, which the Triton kernel does not have"
        dtypes = kernel_dtypes(entry.dtypes())
        try:
            kernel = kernels.kernel(traced.program, dtypes)
            ready(kernel, dtypes, param.device)
            if is_on_device(traced, group, param, entry.state):
                check_scalars(traced, group, param, entry.state, kernel)
            launcher()
        except CompileError as error:
            return str(error)
        return None

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        spread = spread_of(entry) if entry.traced.is_clipped else None
        if not is_on_device(entry.traced, context.groups[entry.group], entry.param, entry.state):
            return (TritonBatch, None, spread, *bucket_of(entry))
        options = option_dtypes(entry.traced, context.numbers[entry.group], entry.param.device)
        return (CapturableBatch, options, spread, *bucket_of(entry))

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        first = entries[0]
        there = is_on_device(first.traced, context.groups[first.group], first.param, first.state)
        return CapturableBatch(entries, context) if there else TritonBatch(entries, context)

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        """One launch, and one more where the scalar part is on the device."""
        first = entries[0]
        program = first.traced.program
        kernel, scalars = kernels.kernel(program, kernel_dtypes(first.dtypes())), scalar_source(program)
        calls = 1 + is_on_device(first.traced, group, first.param, first.state)
        return Description(calls, 1, 1, *bytes_moved(first), program, lambda: f"{scalars}\n\n{kernel.source}")
