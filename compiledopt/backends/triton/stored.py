"""Rules that reduce, with states in blocks: one launch decodes the states into memory that is kept, the passes run on that, and
one more launch encodes them; in waves, so that what is decoded at once does not grow with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.devices import ordinary
from compiledopt.backends.waves import MakeBatch, Wave, WavedBatch, padded, waves
from compiledopt.rules.program import OUTER
from compiledopt.rules.traced import Traced, Variant, traced


@dataclass(frozen=True, eq=False)
class StoredProgram:
    """inner: the rule on values; decode, encode: what makes them, and codes of them; values: {state: that of its values}."""

    decode: Traced
    inner: Traced
    encode: Traced
    values: dict[str, str]


def stored_of(entry: Entry) -> StoredProgram | None:
    """What runs for an entry of a rule that reduces and has states in blocks."""
    known = entry.traced
    if StoredProgram not in known.made:
        known.made[StoredProgram] = _made(known)
    found: StoredProgram | None = known.made[StoredProgram]
    variant = None if found is None else found.inner.variant(entry.param)
    return found if isinstance(variant, Variant) and not variant.order >> OUTER and not variant.fed else None


def _made(known: Traced) -> StoredProgram | None:
    apart, group = known.rule.apart, known.options
    if known.elementwise or apart is None or apart.function is not known.rule.function:
        return None
    decode, inner, encode = (traced(rule, group) for rule in (apart.decode, apart.inner, apart.encode))
    usable = decode.elementwise and encode.elementwise and not inner.elementwise
    return StoredProgram(decode, inner, encode, dict(apart.values)) if usable else None


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


def _own(part: Traced, state: dict[str, Any]) -> dict[str, Any]:
    names = (*part.state_names, *part.scalar_names)
    return {name: state[name] for name in names if name in state}


class StoredWave(Wave):
    """Entries whose states are decoded together. memory: for the values, of each state a row."""

    def __init__(self, entries: list[Entry], context: Context, program: StoredProgram, make: MakeBatch, memory: Any) -> None:
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
        self.batches = [make(list(members), context) for members in zip(*parts, strict=True)]
        self.measures = self.batches[1]

    def prepare(self) -> bool:
        for theirs, mine, names in self.states:
            for name in names:
                if theirs.get(name) is not mine[name]:
                    mine[name] = theirs[name]
        return all(batch.prepare() for batch in self.batches)

    def launch(self) -> None:
        for batch in self.batches:
            batch.launch()
        for entry in self.entries:
            entry.first = entry.first and entry.param.grad is None


class StoredBatch(WavedBatch):
    """Of a rule that reduces and has states in blocks."""

    def __init__(self, entries: list[Entry], context: Context, program: StoredProgram, make: MakeBatch) -> None:
        super().__init__(entries, context)
        pieces = [entries[begin:end] for begin, end in waves(sizes_of(entries, program))]
        size = max(sum(padded(entry.param.numel()) for entry in piece) for piece in pieces)
        dtype = torch.promote_types(entries[0].param.dtype, torch.float32)
        self.memory = (self._reserve(len(program.values), size, dtype),)
        self.waves = [StoredWave(piece, context, program, make, self.memory[0]) for piece in pieces]

    @ordinary
    def _reserve(self, count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(count, size, dtype=dtype, device=self.device)


def sizes_of(entries: Sequence[Entry], program: StoredProgram) -> list[int]:
    """Elements that each of them has in a wave."""
    return [entry.param.numel() * len(program.values) for entry in entries]
