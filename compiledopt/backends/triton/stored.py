"""Rules that reduce, or have a function of whole matrices, with states in blocks: one launch decodes the states into memory
that is kept, the rule runs on that, and one more launch encodes them; in waves, so that what is decoded at once does not grow
with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry
from compiledopt.backends.devices import ordinary
from compiledopt.backends.matrices import in_stacks, matrix_parts, program_of, reserve
from compiledopt.backends.triton.matrices import DeviceWave
from compiledopt.backends.waves import MakeBatch, Wave, WavedBatch, padded, share, waves
from compiledopt.rules.program import node_args
from compiledopt.rules.traced import Traced, traced


@dataclass(frozen=True, eq=False)
class StoredProgram:
    """inner: the rule on values; decode, encode: what makes them, and codes of them; values: {state: that of its values}."""

    decode: Traced
    inner: Traced
    encode: Traced
    values: dict[str, str]


def stored_of(entry: Entry) -> StoredProgram | None:
    """What runs for an entry whose rule is not elementwise and has states in blocks."""
    known = entry.traced
    if StoredProgram not in known.made:
        known.made[StoredProgram] = _made(known)
    found: StoredProgram | None = known.made[StoredProgram]
    return found if found is not None and _runs(replace(entry, traced=found.inner)) else None


def _made(known: Traced) -> StoredProgram | None:
    apart, group = known.rule.apart, known.options
    if known.elementwise or apart is None or apart.function is not known.rule.function:
        return None
    decode, inner, encode = (traced(rule, group) for rule in (apart.decode, apart.inner, apart.encode))
    usable = decode.elementwise and encode.elementwise and not inner.elementwise
    return StoredProgram(decode, inner, encode, dict(apart.values)) if usable else None


def _runs(inner: Entry) -> bool:
    """Whether there are kernels for a rule on values."""
    variant = inner.traced.variant(inner.param)
    return not isinstance(variant, str) or program_of(inner) is not None


def inner_parts(inner: Entry) -> tuple[Entry, ...]:
    """An entry for each of the programs of a rule on values."""
    matrices = program_of(inner)
    return (inner,) if matrices is None else matrix_parts(inner, matrices)


def stored_parts(entry: Entry, program: StoredProgram, values: dict[str, torch.Tensor] | None = None) -> tuple[Entry, ...]:
    """Entries of the three programs. values: of each state that is kept in blocks; None for some without data."""
    dtypes = program.inner.dtypes_of(entry.param)
    if values is None:
        values = {
            name: torch.empty_like(entry.param, dtype=dtypes[name], device="meta", requires_grad=False)
            for name in program.values
            if name in dtypes
        }
    codes = dict(entry.state)
    outside = {**codes, **{program.values[name]: value for name, value in values.items()}}
    states = (outside, {**codes, **values}, dict(outside))
    parts = zip((program.decode, program.inner, program.encode), states, strict=True)
    return tuple(replace(entry, traced=part, state=_own(part, state)) for part, state in parts)


def moved_alone(entry: Entry) -> tuple[float, float]:
    """Bytes per element, read and written, of a program that leaves most of its operands alone, as those do that decode and
    encode."""
    program, sizes = entry.traced.program, entry.state_bytes()
    used = {arg for node in program.nodes for arg in node_args(node)}
    read = sum(sizes[node.name] for node in program.tensors if node in used and node.name in sizes)
    return read, sum(sizes[name] for name in program.tensor_outputs)


def _own(part: Traced, state: dict[str, Any]) -> dict[str, Any]:
    names = (*part.state_names, *part.scalar_names)
    return {name: state[name] for name in names if name in state}


class StoredWave(Wave):
    """Entries whose states are decoded together. memory: for the values, of each state a row; matrices: for the stacks of a
    rule with a function of those."""

    def __init__(
        self,
        entries: list[Entry],
        context: Context,
        program: StoredProgram,
        make: MakeBatch,
        memory: torch.Tensor,
        matrices: Sequence[torch.Tensor],
    ) -> None:
        self.entries, taken = entries, 0
        parts: list[tuple[Entry, ...]] = []
        for entry in entries:
            count = entry.param.numel()
            present = [name for name in program.values if name in program.inner.dtypes_of(entry.param)]
            pieces = {name: memory[place, taken : taken + count] for place, name in enumerate(present)}
            parts.append(stored_parts(entry, program, {name: one.view(entry.param.shape) for name, one in pieces.items()}))
            taken += padded(count)
        self.states: list[tuple[Any, Any, list[str]]] = []  # theirs, ours, and what of ours is theirs
        for entry, each in zip(entries, parts, strict=True):
            for number, part in enumerate(each):
                own = program.values if number == 1 else program.values.values()
                self.states.append((entry.state, part.state, [name for name in part.state if name not in own]))
        decoding, inner, encoding = (list(members) for members in zip(*parts, strict=True))
        self.inner = _inner(inner, context, make, matrices)
        among = self.inner.batches if isinstance(self.inner, Wave) else (self.inner,)
        self.decode, self.encode = make(decoding, context), make(encoding, context)
        self.batches, self.measures = (self.decode, *among, self.encode), among[0]

    def prepare(self) -> bool:
        for theirs, mine, names in self.states:
            for name in names:
                if theirs.get(name) is not mine[name]:
                    mine[name] = theirs[name]
        return self.decode.prepare() and self.inner.prepare() and self.encode.prepare()

    def launch(self) -> None:
        for part in (self.decode, self.inner, self.encode):
            part.launch()
        for entry in self.entries:
            entry.first = entry.first and entry.param.grad is None


def _inner(entries: list[Entry], context: Context, make: MakeBatch, memory: Sequence[torch.Tensor]) -> Batch | Wave:
    """What runs the rule on values. memory: for matrices, where it has a function of those."""
    program = program_of(entries[0])
    if program is None:
        return make(entries, context)
    own, more = memory
    return DeviceWave(entries, context, program, make, own, more)


class StoredBatch(WavedBatch):
    """Of a rule that is not elementwise and has states in blocks."""

    def __init__(self, entries: list[Entry], context: Context, program: StoredProgram, make: MakeBatch) -> None:
        super().__init__(in_stacks(entries), context)
        cuts = waves([entry.param.numel() for entry in self.entries], share(len(program.values)))
        pieces = [self.entries[begin:end] for begin, end in cuts]
        size = max(sum(padded(entry.param.numel()) for entry in piece) for piece in pieces)
        dtype = torch.promote_types(entries[0].param.dtype, torch.float32)
        values = self._reserve(len(program.values), size, dtype)
        matrices = program_of(replace(entries[0], traced=program.inner))
        stacks = () if matrices is None else reserve(pieces, matrices)
        self.memory = (values, *stacks)
        self.waves = [StoredWave(piece, context, program, make, values, stacks) for piece in pieces]

    @ordinary
    def _reserve(self, count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(count, size, dtype=dtype, device=self.device)
