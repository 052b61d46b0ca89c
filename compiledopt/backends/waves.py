"""Batches that are several launches over memory that is kept, for so many parameters at once that it does not grow with the
model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch

from compiledopt.backends.batch import Batch, Context, Entry, Unchanged
from compiledopt.backends.devices import Streams

# Elements of a wave: four matrices of 4096 × 4096, enough for products to fill any GPU, in 128 MiB of bfloat16.
WAVE = 2**26
UNIT = 64  # elements: what lies in such memory begins on a multiple of 128 bytes, for vector loads and for products

MakeBatch = Callable[[list[Entry], Context], Batch]


def padded(count: int) -> int:
    return -(-count // UNIT) * UNIT


def share(values: int) -> int:
    """Elements of parameters in a wave that keeps so many values for each: of all values there are as many as in any other."""
    return WAVE // values


def waves(sizes: Sequence[int], most: int | None = None) -> list[tuple[int, int]]:
    """(begin, end) of neighbours that go together, none of them with more than `most` (WAVE) elements, but for one alone."""
    found, begin, taken = [], 0, 0
    most = WAVE if most is None else most
    for index, size in enumerate(sizes):
        if taken and taken + size > most:
            found.append((begin, index))
            begin, taken = index, 0
        taken += size
    return [*found, (begin, len(sizes))]


class Wave(ABC):
    """Parameters that go together. batches: what runs on them; measures: which of those reads the gradients first."""

    batches: Sequence[Batch]
    measures: Batch

    @abstractmethod
    def prepare(self) -> bool:
        """As of a batch."""

    @abstractmethod
    def launch(self) -> None:
        """As of a batch."""


class WavedBatch(Batch):
    """The parameters of one bucket on one device, wave after wave. memory: what all of them work in."""

    executor = "compiled"
    falls_back = True

    waves: Sequence[Wave]
    memory: tuple[torch.Tensor, ...]

    def __init__(self, entries: list[Entry], context: Context) -> None:
        self.entries, self.context, self.device = entries, context, entries[0].param.device
        self.streams = Streams(self.device)

    def prepare(self) -> bool:
        ready = all(wave.prepare() for wave in self.waves)
        self.refused = next((batch.refused for batch in self._batches() if batch.refused is not None), None)
        return ready

    def measure_into(self, place: torch.Tensor, first: bool, last: bool) -> bool:
        ends = self.waves[0], self.waves[-1]
        return all(w.measures.measure_into(place, first and w is ends[0], last and w is ends[1]) for w in self.waves)

    def renew(self) -> None:
        for batch in self._batches():
            if batch.is_measured:
                batch.renew()

    def refresh(self) -> None:
        for batch in self._batches():
            batch.refresh()

    @property
    def is_captured(self) -> bool:
        return any(batch.is_captured for batch in self._batches())

    @property
    def unchanged(self) -> Unchanged:
        return self.waves[0].measures.unchanged

    def _batches(self) -> Iterable[Batch]:
        for wave in self.waves:
            yield from wave.batches

    def launch(self) -> None:
        with torch.no_grad():
            self.streams.read(*self.memory)
            for wave in self.waves:
                wave.launch()
