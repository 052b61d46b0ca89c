"""Rules with a function of whole matrices, on the CPU: kernels in passes before it and after it, on stacks that stay where they
are (backends/matrices.py)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from compiledopt.backends.batch import Batch, Context, Description, Entry, Value, operand_dtypes
from compiledopt.backends.cpp.reducing import ReducingBatch, kernel, lies_otherwise
from compiledopt.backends.gathered import bucket_of, relay, too_many
from compiledopt.backends.matrices import MatrixBatch, MatrixWave, matrix_parts, products, program_of, told
from compiledopt.errors import CompileError
from compiledopt.rules.scalars import scalar_source
from compiledopt.rules.traced import Variant

# Bytes of matrices that are multiplied as one stack: more leave the cache, fewer waste calls.
TOGETHER = 2**20


def _together(elements: int, dtype: torch.dtype) -> int:
    """How many matrices of so many elements are multiplied as one stack."""
    return max(1, TOGETHER // (elements * dtype.itemsize))


class HostWave(MatrixWave):
    """On the CPU large matrices are multiplied one by one."""

    def multiply(self, matrices: torch.Tensor, room: Sequence[torch.Tensor]) -> None:
        step = _together(matrices[0].numel(), matrices.dtype)
        for begin in range(0, len(matrices), step):
            some = matrices[begin : begin + step]
            super().multiply(some, [memory[: len(some)] for memory in room])


class HostMatrices(MatrixBatch):
    """Of matrices on the CPU. It is told of as foreach: the function in its middle is torch's products."""

    executor = "foreach"
    goes_beside = True
    falls_back = False
    wave = HostWave
    most = 2**22  # elements: what the kernels write, the products find in the last cache

    def squares(self) -> Value:
        return sum((wave.measures.squares() for wave in self.waves), 0.0)


def bucket(entry: Entry) -> Hashable | None:
    """What entries of one `batch` have in common; None for one that has no programs around a function."""
    program = program_of(entry)
    if program is None or refusal(entry) is not None:
        return None
    return program, *map(bucket_of, matrix_parts(entry, program))


def refusal(entry: Entry) -> str | None:
    """Why there are no kernels for an entry that has such programs, or None. They are compiled here."""
    program = program_of(entry)
    assert program is not None
    for part in matrix_parts(entry, program):
        if (reason := too_many(part) or lies_otherwise(part.runs, part.param)) is not None:
            return reason
        try:
            kernel(part.runs, operand_dtypes(part))  # type: ignore[arg-type]
        except CompileError as error:
            return str(error)
    return None


def batch(entries: list[Entry], context: Context) -> Batch | None:
    """Of entries of one bucket; None where the launcher does not take their tensors."""
    program = program_of(entries[0])
    assert program is not None
    for entry in entries:
        relay(entry.traced, entry.param, entry.state)
    made = HostMatrices(entries, context, program, ReducingBatch)
    return made if made.prepare() else None


def described(entries: Sequence[Entry]) -> Description:
    """What a batch of these entries does."""
    program = program_of(entries[0])
    assert program is not None
    parts = [(part.runs, operand_dtypes(part)) for part in matrix_parts(entries[0], program)]
    variants = [(runs, dtypes) for runs, dtypes in parts if isinstance(runs, Variant)]
    shapes = [entry.param.shape for entry in entries]
    count, found = products(program, shapes, HostMatrices.most, lambda elements: _together(elements, program.dtype))
    moved = [runs.passes.bytes_per_element(dtypes) for runs, dtypes in variants]
    return Description(
        calls=count * len(parts) + sum(sum(each.values()) for each in found.values()),
        kernels=len(parts),
        passes=sum(len(runs.passes.sweeps) for runs, _ in variants),
        read=sum(read for read, _ in moved),
        written=sum(written for _, written in moved),
        program=program.whole,
        source=lambda: "\n\n".join(
            f"{scalar_source(runs.program)}\n\n{kernel(runs, dtypes).source}" for runs, dtypes in variants
        ),
        products=told(program, found),
        norms=1,
    )
