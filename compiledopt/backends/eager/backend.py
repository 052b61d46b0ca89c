"""The eager executors, by what they are chosen for."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Backend, Batch, Context, Description, Entry, bytes_moved
from compiledopt.backends.eager.direct import DirectBatch
from compiledopt.backends.eager.for_loop import ForLoopBatch
from compiledopt.backends.eager.foreach import ForeachBatch
from compiledopt.backends.eager.rows import compute_in
from compiledopt.backends.eager.sequence import eager
from compiledopt.backends.eager.sparse import SparseBatch
from compiledopt.backends.eager.stacked import OneByOneBatch, PiecedBatch, StackedBatch
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.rules.scalars import scalar_source

Kind = type[ForeachBatch | ForLoopBatch | DirectBatch | SparseBatch | StackedBatch]


class EagerBackend(Backend):
    """Torch's own operations, in batches of one kind. together: whether a list is one call."""

    def __init__(self, kind: Kind, together: bool) -> None:
        self.kind, self.together = kind, together
        self.executor = kind.executor  # type: ignore[misc]

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        return self.kind(entries, context)

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        first = entries[0]
        if not first.traced.elementwise:
            return self._described_rule(entries)
        program = first.traced.program
        if program.is_composed:
            calls = len(program.elementwise_part) * len(entries)
            return Description(calls, 0, 0, *bytes_moved(first), program, lambda: program.text)
        sequence = eager(program, foreach=self.together, compute=compute_in(kernel_dtypes(first.dtypes())))
        operations = sum("(" in line for line in sequence.source.splitlines()[1:])
        calls = operations * (1 if self.together else len(entries))
        text = f"{scalar_source(program)}\n\n{sequence.source}"
        return Description(calls, 0, 0, *bytes_moved(first), program, lambda: text)

    def _described_rule(self, entries: Sequence[Entry]) -> Description:
        """The rule itself, and at least how many calls of it a step makes."""
        rule = entries[0].traced.rule
        calls = len({entry.param.shape for entry in entries}) if self.together else len(entries)

        def source() -> str:
            try:
                return inspect.getsource(rule.function)
            except OSError:  # a function without a file
                return rule.place

        return Description(calls, 0, 0, *bytes_moved(entries[0]), None, source)


class PiecedBackend(EagerBackend):
    """Rules that are not elementwise, on the CPU: what of them is pointwise is compiled, and where it stands before and after
    one function of whole matrices, what reduces too."""

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        return PiecedBatch.refusal()

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        return None if context.groups[entry.group].get("capturable") else PiecedBatch.bucket(entry)

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        alone = self.bucket(entries[0], context) is None
        return PiecedBatch(entries, context) if alone else PiecedBatch.around(entries, context)

    def runs_for(self, entry: Entry) -> Hashable:
        return entry.traced, PiecedBatch.bucket(entry)

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        alone = group.get("capturable") or PiecedBatch.bucket(entries[0]) is None
        return super().describe(entries, group) if alone else PiecedBatch.described(entries)


# Elementwise rules and others, by the executor that was chosen.
SEQUENCES = {"foreach": EagerBackend(ForeachBatch, True), "for-loop": EagerBackend(ForLoopBatch, False)}
CALLS = {"foreach": EagerBackend(StackedBatch, True), "for-loop": EagerBackend(OneByOneBatch, False)}
PIECED = PiecedBackend(PiecedBatch, True)
DIRECT, SPARSE = EagerBackend(DirectBatch, False), EagerBackend(SparseBatch, False)
