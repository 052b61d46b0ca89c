"""What batches on a GPU do, told without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiledopt.backends.batch import Description, Entry, bytes_moved
from compiledopt.backends.triton.capturable import is_on_device
from compiledopt.backends.triton.matrices import parts_of, products, program_of, told
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.rules.matrix_program import MatrixProgram
from compiledopt.rules.scalars import scalar_source


def described(entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
    """What a batch of these entries would do: one launch, of a rule that reduces a few, and one more where the scalar part is
    on the device; of a rule with products those before and after, and calls of torch."""
    first = entries[0]
    program = program_of(first)
    if program is not None:
        return _matrices(entries, program, group)
    runs, dtypes = first.runs, first.dtypes()
    kernel, scalars = kernel_of(runs, dtypes), scalar_source(runs.program)
    passes = getattr(runs, "passes", None)
    launches = kernel.launches
    moved: tuple[float, float] = passes.bytes_per_element(dtypes) if passes else bytes_moved(first)
    calls = launches + is_on_device(runs, group, first.param, first.state)
    return Description(calls, launches, launches, *moved, runs.program, lambda: f"{scalars}\n\n{kernel.source}")


def _matrices(entries: Sequence[Entry], program: MatrixProgram, group: Mapping[str, Any]) -> Description:
    first = entries[0]
    there = is_on_device(first.traced, group, first.param, first.state)
    count, found = products(program, [entry.param.shape for entry in entries])
    parts = [described([part], group) for part in parts_of(first, program)]
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
