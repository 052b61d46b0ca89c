"""What batches on a GPU do, told without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiledopt.backends.batch import Description, Entry, bytes_moved
from compiledopt.backends.matrices import products, program_of, told
from compiledopt.backends.triton.capturable import is_on_device
from compiledopt.backends.triton.parts import parts_of
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.stored import StoredProgram, sizes_of, stored_of
from compiledopt.backends.waves import waves
from compiledopt.rules.matrix_program import MatrixProgram
from compiledopt.rules.program import node_args
from compiledopt.rules.scalars import scalar_source


def described(entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
    """What a batch of these entries would do: one launch, of a rule that reduces a few, and one more where the scalar part is
    on the device; of a rule with products those before and after, and calls of torch."""
    first = entries[0]
    program = program_of(first)
    if program is not None:
        return _matrices(entries, program, group)
    stored = stored_of(first)
    if stored is not None:
        return _stored(entries, stored, group)
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
    parts = [described([part], group) for part in parts_of(first)]
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
        norms=count,
    )


def _stored(entries: Sequence[Entry], stored: StoredProgram, group: Mapping[str, Any]) -> Description:
    """The passes, and a launch each that decodes and encodes; for each wave."""
    count = len(waves(sizes_of(entries, stored)))
    entry_of = parts_of(entries[0])
    parts = [described([part], group) for part in entry_of]
    moved = [_moved(entry_of[0]), (parts[1].read, parts[1].written), _moved(entry_of[2])]
    there = is_on_device(entries[0].traced, group, entries[0].param, entries[0].state)
    kernels = sum(part.kernels for part in parts)
    # What has no scalar part has no launch for it.
    rows = sum(bool(part.program.scalars) for part in parts if part.program is not None) if there else 0
    return Description(
        calls=count * (kernels + rows),
        kernels=kernels,
        passes=kernels,
        read=sum(read for read, _ in moved),
        written=sum(written for _, written in moved),
        program=parts[1].program,
        source=lambda: "\n\n".join(part.source() for part in parts),
        norms=count,
    )


def _moved(entry: Entry) -> tuple[float, float]:
    """Bytes per element, read and written, of a program that leaves most of its operands alone."""
    program, sizes = entry.traced.program, entry.state_bytes()
    used = {arg for node in program.nodes for arg in node_args(node)}
    read = sum(sizes[node.name] for node in program.tensors if node in used and node.name in sizes)
    return read, sum(sizes[name] for name in program.tensor_outputs)
