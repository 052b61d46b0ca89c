"""Of what programs an update of a parameter is made, and what runs them."""

from __future__ import annotations

from collections.abc import Hashable

from compiledopt.backends.batch import Batch, Context, Entry, bytes_moved
from compiledopt.backends.matrices import program_of
from compiledopt.backends.triton.matrices import DeviceMatrices
from compiledopt.backends.triton.stored import StoredBatch, inner_parts, moved_alone, stored_of, stored_parts
from compiledopt.backends.triton.summed import SummedBatch, in_common, summed_of, summed_parts
from compiledopt.backends.waves import MakeBatch
from compiledopt.errors import CompileError


def several_of(entry: Entry) -> Hashable | None:
    """What runs for an entry whose rule is more than one program, or None."""
    return stored_of(entry) or program_of(entry) or summed_of(entry.traced, entry.param)


def objection_to(entry: Entry) -> str | None:
    """Why what its parameters have in common keeps a rule from having kernels, or None."""
    return in_common(entry.traced, entry.param)


def check(entry: Entry) -> None:
    """Raises: CompileError, where there is such an objection."""
    if (reason := objection_to(entry)) is not None:
        raise CompileError(reason)


def inner_of(entry: Entry) -> Entry:
    """The rule on values."""
    stored = stored_of(entry)
    return entry if stored is None else stored_parts(entry, stored)[1]


def calls_of(entry: Entry) -> int:
    """Of torch, between the programs, but for products."""
    summed = None if stored_of(entry) else summed_of(entry.traced, entry.param)
    return summed.calls if summed else 0


def moved_of(part: Entry) -> tuple[float, float]:
    """Bytes per element, read and written, by one program that is elementwise."""
    return bytes_moved(part) if part.traced.measures else moved_alone(part)


def parts_of(entry: Entry) -> tuple[Entry, ...]:
    """An entry for each of the programs that run for it, one after the other."""
    stored = stored_of(entry)
    if (summed := None if stored else summed_of(entry.traced, entry.param)) is not None:
        return summed_parts(entry, summed)
    if stored is None:
        return inner_parts(entry)
    decode, inner, encode = stored_parts(entry, stored)
    return (decode, *inner_parts(inner), encode)


def batch_of(entries: list[Entry], context: Context, make: MakeBatch) -> Batch:
    """make: of the entries of one program, what runs it."""
    stored = stored_of(entries[0])
    if stored is not None:
        return StoredBatch(entries, context, stored, make)
    if (summed := summed_of(entries[0].traced, entries[0].param)) is not None:
        return SummedBatch(entries, context, summed, make)
    matrices = program_of(entries[0])
    return make(entries, context) if matrices is None else DeviceMatrices(entries, context, matrices, make)
