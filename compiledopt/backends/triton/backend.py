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
from compiledopt.backends.triton.batch import TritonBatch, check_norm
from compiledopt.backends.triton.capturable import CapturableBatch, check_scalars, is_on_device, option_dtypes
from compiledopt.backends.triton.kernels import missing
from compiledopt.backends.triton.matrices import MatrixBatch, parts_of, products, program_of, told
from compiledopt.backends.triton.readiness import check_on_device, kernel_of
from compiledopt.errors import CompileError
from compiledopt.rules.matrix_program import MatrixProgram
from compiledopt.rules.scalars import scalar_source


class TritonBackend(GatheredBackend):
    """One Triton kernel over a whole model; the scalar part on the device too, where `capturable` or a state asks for it."""

    numbers_on_host = False

    def serves(self, device: torch.device) -> bool:
        """COMPILEDOPT_TRITON_ON_CPU=1, with TRITON_INTERPRET=1: Triton's interpreter runs the kernels on CPU tensors."""
        return device.type in ("cuda", "xpu") or (device.type == "cpu" and os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1")

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else missing() or platform_reason()

    def objection(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        found = super().objection(entry, group)
        if found is None or program_of(entry) is None:
            return found
        return f"{entry.traced.rule.name} needs whole matrices, and a parameter is distributed" if _is_spread(entry) else None

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        return f"{entry.traced.rule.name} reduces, and a parameter is distributed" if _is_spread(entry) else None

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        there, program = is_on_device(entry.traced, group, entry.param, entry.state), program_of(entry)
        parts = (entry,) if program is None else parts_of(entry, program)
        return next((reason for part in parts if (reason := _refusal(part, group, there)) is not None), None)

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        there = is_on_device(entry.traced, context.groups[entry.group], entry.param, entry.state)
        spread, program = spread_of(entry) if entry.traced.is_clipped else None, program_of(entry)
        parts = (entry,) if program is None else parts_of(entry, program)
        numbers = context.numbers[entry.group]
        options = [option_dtypes(part.runs, numbers, entry.param.device) if there else None for part in parts]
        return (there, program, spread, *options, *map(bucket_of, parts))

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        first = entries[0]
        there = is_on_device(first.traced, context.groups[first.group], first.param, first.state)
        kind, program = CapturableBatch if there else TritonBatch, program_of(first)
        return kind(entries, context) if program is None else MatrixBatch(entries, context, program, kind)

    def kind(self, entry: Entry) -> Hashable:
        return program_of(entry) or entry.runs

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        """One launch, of a rule that reduces a few, and one more where the scalar part is on the device."""
        first = entries[0]
        program = program_of(first)
        if program is not None:
            return self._described_matrices(entries, program, group)
        runs, dtypes = first.runs, first.dtypes()
        kernel, scalars = kernel_of(runs, dtypes), scalar_source(runs.program)
        passes = getattr(runs, "passes", None)
        launches = kernel.launches
        moved: tuple[float, float] = passes.bytes_per_element(dtypes) if passes else bytes_moved(first)
        calls = launches + is_on_device(runs, group, first.param, first.state)
        return Description(calls, launches, launches, *moved, runs.program, lambda: f"{scalars}\n\n{kernel.source}")

    def _described_matrices(self, entries: Sequence[Entry], program: MatrixProgram, group: Mapping[str, Any]) -> Description:
        first = entries[0]
        there = is_on_device(first.traced, group, first.param, first.state)
        count, found = products(program, [entry.param.shape for entry in entries])
        parts = [self.describe([part], group) for part in parts_of(first, program)]
        kernels = sum(part.kernels for part in parts)
        rows = sum(bool(part.only.program.scalars) for part in (program.before, program.after)) if there else 0
        return Description(
            calls=count * (kernels + rows) + sum(sum(each.values()) for each in found.values()),
            kernels=kernels,
            passes=kernels,
            read=sum(part.read for part in parts),
            written=sum(part.written for part in parts),
            program=program.whole,
            source=lambda: "\n\n".join(part.source() for part in parts),
            products=told(program, found),
        )


def _is_spread(entry: Entry) -> bool:
    return is_distributed(entry.param)


def _refusal(entry: Entry, group: Mapping[str, Any], there: bool) -> str | None:
    """Make ready what one program over a parameter needs; why that cannot be, or None. there: whether the scalar part is on the
    device."""
    runs, param = entry.runs, entry.param
    if (reason := too_many(entry)) is not None:
        return reason
    if runs.measures or runs.rule.shared:
        return f"{runs.rule.name} sums over all parameters, or they share a state, and there is no Triton kernel for that"
    if not entry.traced.elementwise and (runs.program.is_random or runs.program.blocks):
        what = "reads random bits" if runs.program.is_random else "has states in blocks"
        return f"{runs.rule.name} reduces and {what}, and there is no Triton kernel for that"
    if runs.program.blocks and not local(param).is_contiguous():
        return "its states are kept in blocks of a row, and a parameter does not lie in memory row after row"
    try:
        kernel = kernel_of(runs, entry.dtypes())
        check_on_device(runs, param, entry.dtypes())
        if runs.is_clipped:
            check_norm(runs, entry.dtypes(), kernel, param.device, there)
        if there:
            check_scalars(runs, group, param, entry.state, kernel)
        launcher()
    except CompileError as error:
        return str(error)
    return None
