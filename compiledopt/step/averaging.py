"""Running averages of parameters by the executors of the optimizers: one fused call over a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Choice, Context, Entry
from compiledopt.backends.layout import tensor_reason
from compiledopt.backends.registry import compiled_for
from compiledopt.errors import CompileError
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import traced


class Averages:
    """target ← rule(target, source) over lists of tensors, for as long as they are the same tensors.

    reason: why it cannot be had (a device, dtype or layout), or None.
    """

    def __init__(self, rule: Rule, targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
        self.targets = list(targets)
        self.group: dict[str, Any] = {"weight": 0.0}
        self.reason = next((reason for t in self.targets if (reason := _reason(t)) is not None), None)
        buckets: dict[Any, list[int]] = {}
        for index, (target, source) in enumerate(zip(targets, sources, strict=True)):
            buckets.setdefault((target.device, target.dtype, source.dtype), []).append(index)
        self.parts: list[tuple[list[int], Batch]] = []
        if self.reason is not None or any(target != source for _, target, source in buckets):
            self.reason = self.reason or "the average and the model differ in dtype"
            return
        program = traced(rule, self.group)
        self.context = Context("AveragedModel", [self.group], [rule])
        self.context.read()
        try:
            for (device, *_), indices in buckets.items():
                backend = compiled_for(device)
                assert backend is not None
                entries = [Entry(self.targets[i], {}, 0, program, Choice("compiled", "averaging")) for i in indices]
                self.parts.append((indices, backend.batch(entries, self.context)))
        except CompileError as error:
            self.reason = str(error)

    def run(self, sources: Sequence[torch.Tensor], weight: float) -> bool:
        """Update every target. False, with nothing written: they do not fit their sources any more."""
        self.group["weight"] = weight
        self.context.read()
        for indices, batch in self.parts:
            batch.sources = [sources[i] for i in indices]
        if not all(batch.prepare() for _, batch in self.parts):
            return False
        for _, batch in self.parts:
            batch.launch()
            batch.sources = None
        return True


def _reason(tensor: torch.Tensor) -> str | None:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return f"{tensor.dtype} has no kernel"
    backend = compiled_for(tensor.device)
    if backend is None or not backend.takes_sources:
        return f"there is no compiled executor for averages on {tensor.device.type}"
    return backend.missing(tensor.device) or tensor_reason(tensor)
