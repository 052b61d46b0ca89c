"""What batches on a GPU do, told without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compiledopt.backends.batch import Description, Entry, bytes_moved, operand_dtypes
from compiledopt.backends.matrices import products, program_of, told
from compiledopt.backends.triton.capturable import is_on_device, launches_of
from compiledopt.backends.triton.parts import calls_of, parts_of, several_of
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.reducing import ReducingKernel
from compiledopt.backends.triton.stored import moved_alone, stored_of, stored_parts
from compiledopt.backends.triton.symmetric import Told
from compiledopt.backends.waves import share, waves
from compiledopt.rules.scalars import scalar_source


def described(entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
    """What a batch of these entries would do: one launch, of a rule that reduces a few, and one more where the scalar part is
    on the device, and for what parameters share there; of a rule with products those before and after, and calls of torch."""
    first = entries[0]
    found = _alone(first, group) if several_of(first) is None else _several(entries, group)
    return replace(found, calls=found.calls + launches_of(first.traced, group))


def _alone(first: Entry, group: Mapping[str, Any]) -> Description:
    """Of one program."""
    runs, dtypes = first.runs, operand_dtypes(first)
    kernel, scalars = kernel_of(runs, dtypes), scalar_source(runs.program)
    launches = kernel.launches
    moved = kernel.bytes_per_element(dtypes) if isinstance(kernel, ReducingKernel) else bytes_moved(first)
    calls = launches + is_on_device(runs, group, first.param, first.state)
    return Description(calls, launches, launches, *moved, runs.program, lambda: f"{scalars}\n\n{kernel.source}")


def _several(entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
    """The launches of all programs, and the calls of torch between them, for each wave."""
    first = entries[0]
    stored, each = stored_of(first), parts_of(first)
    inner = first if stored is None else stored_parts(first, stored)[1]
    most, program = None if stored is None else share(len(stored.values)), program_of(inner)
    parts = [_alone(part, group) for part in each]
    ways = zip(each, parts, strict=True)
    moved = [
        moved_alone(part) if stored is not None and part.traced.elementwise else (one.read, one.written) for part, one in ways
    ]
    there = is_on_device(first.traced, group, first.param, first.state)
    kernels = sum(part.kernels for part in parts)
    # What has no scalar part has no launch for it.
    rows = sum(bool(part.program.scalars) for part in parts if part.program is not None) if there else 0
    summed = calls_of(first)
    count = 1 if summed else len(waves([entry.param.numel() for entry in entries], most))
    calls = dict[tuple[int, ...], dict[str, int]]()
    if program is not None:
        device, shapes = first.param.device, [entry.param.shape for entry in entries]
        count, calls = products(program, shapes, most, by=lambda counted: Told(device, counted))
    return Description(
        calls=count * (kernels + rows) + sum(sum(of.values()) for of in calls.values()) + summed,
        kernels=kernels,
        passes=kernels,
        read=sum(read for read, _ in moved),
        written=sum(written for _, written in moved),
        program=parts[-1 if summed else 1].program if program is None else program.whole,
        source=lambda: "\n\n".join(part.source() for part in parts),
        products=() if program is None else told(program, calls),
        norms=count,
    )
