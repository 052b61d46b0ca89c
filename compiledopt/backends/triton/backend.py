"""The compiled executor of GPUs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Description, Entry, spread_of
from compiledopt.backends.cpp.kernels import platform_reason
from compiledopt.backends.gathered import GatheredBackend, bucket_of
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch, is_on_device, option_dtypes
from compiledopt.backends.triton.described import described
from compiledopt.backends.triton.kernels import missing
from compiledopt.backends.triton.parts import batch_of, objection_to, parts_of, several_of
from compiledopt.backends.triton.refusal import refusal_of
from compiledopt.backends.triton.shared import sharing_of


class TritonBackend(GatheredBackend):
    """One Triton kernel over a whole model; the scalar part on the device too, where `capturable` or a state asks for it."""

    numbers_on_host = False
    sharing = staticmethod(sharing_of)

    def serves(self, device: torch.device) -> bool:
        """COMPILEDOPT_TRITON_ON_CPU=1, with TRITON_INTERPRET=1: Triton's interpreter runs the kernels on CPU tensors."""
        return device.type in ("cuda", "xpu") or (device.type == "cpu" and os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1")

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else missing() or platform_reason()

    def objection(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        found = super().objection(entry, group)
        if found is None or several_of(entry) is None:
            return found
        told = f"{entry.traced.rule.name} needs whole tensors"
        return None if spread_of(entry) is None else f"{told}, and a parameter is distributed"

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any], told: str) -> str | None:
        return None if spread_of(entry) is None else f"{told}, and a parameter is distributed"

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        if (reason := objection_to(entry)) is not None:
            return reason
        there = is_on_device(entry.traced, group, entry.param, entry.state)
        return next((reason for part in parts_of(entry) if (reason := refusal_of(part, group, there)) is not None), None)

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        there = is_on_device(entry.traced, context.groups[entry.group], entry.param, entry.state)
        spread, parts = spread_of(entry) if entry.measured.is_measured else None, parts_of(entry)
        numbers = context.numbers[entry.group]
        options = [option_dtypes(part.runs, numbers, entry.param.device) if there else None for part in parts]
        return (there, several_of(entry), spread, *options, *map(bucket_of, parts))

    def batch(self, entries: list[Entry], context: Context) -> Batch:
        first = entries[0]
        there = is_on_device(first.traced, context.groups[first.group], first.param, first.state)
        return batch_of(entries, context, CapturableBatch if there else TritonBatch)

    def runs_for(self, entry: Entry) -> Hashable:
        return (several_of(entry), *(part.runs for part in parts_of(entry)))

    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        return described(entries, group)
