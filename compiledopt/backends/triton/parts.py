"""Of what programs an update of a parameter is made, and what runs them."""

from __future__ import annotations

from collections.abc import Hashable

from compiledopt.backends.batch import Batch, Context, Entry
from compiledopt.backends.matrices import MatrixBatch, matrix_parts, program_of
from compiledopt.backends.triton.stored import StoredBatch, stored_of, stored_parts
from compiledopt.backends.waves import MakeBatch


def several_of(entry: Entry) -> Hashable | None:
    """What runs for an entry whose rule is more than one program, or None."""
    return stored_of(entry) or program_of(entry)


def parts_of(entry: Entry) -> tuple[Entry, ...]:
    """An entry for each of the programs that run for it, one after the other."""
    matrices, stored = program_of(entry), stored_of(entry)
    if stored is not None:
        return stored_parts(entry, stored)
    return (entry,) if matrices is None else matrix_parts(entry, matrices)


def batch_of(entries: list[Entry], context: Context, make: MakeBatch) -> Batch:
    """make: of the entries of one program, what runs it."""
    matrices, stored = program_of(entries[0]), stored_of(entries[0])
    if stored is not None:
        return StoredBatch(entries, context, stored, make)
    return make(entries, context) if matrices is None else MatrixBatch(entries, context, matrices, make)
