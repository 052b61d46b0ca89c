"""What parameters share (Schedule-Free's weights, Prodigy's guess of the distance) where no number is read on the host: its new
values follow from numbers alone, by one launch after all others, with a row for each group that has some of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Context, Sharing
from compiledopt.backends.devices import is_capturing, upload
from compiledopt.backends.triton.capturable import (
    OTHERS,
    STALE,
    Mirror,
    RowsLaunch,
    launches_of,
    lives_on,
    number_dtypes,
    rows_ready,
)
from compiledopt.rules.traced import Traced


class DeviceSharing(Sharing):
    """Of groups whose rule is one program. groups: their indices."""

    def __init__(self, traced: Traced, groups: Sequence[int], context: Context, device: torch.device) -> None:
        self.context, self.groups, self.device = context, groups, device
        self.part = traced.program.shared_part
        self.names = [node.name for node in self.part.scalars]
        self.dtypes = self._dtypes(groups[0])
        self.rows = RowsLaunch(rows_ready(self.part, self.dtypes, device), device)
        self.mirror = Mirror(context, groups, self.names, device)
        self.known: list[int] = []
        self.addresses = upload(b"", device)
        self.captured: list[Any] = []

    def _dtypes(self, group: int) -> tuple[torch.dtype, ...]:
        return number_dtypes(self.names, self.context.numbers[group], self.device)

    def prepare(self) -> bool:
        """Bring numbers, and where they are, to the device; nothing is written. False: some are of other dtypes than before."""
        if any(self._dtypes(group) != self.dtypes for group in self.groups):
            return False
        addresses = [self.mirror.address(group, name, False) for group in self.groups for name in self.names]
        if is_capturing(self.device):
            if addresses != self.known or self.mirror.stale():
                raise RuntimeError(STALE if addresses == self.known else OTHERS)
            return True
        self.refresh()
        if addresses != self.known:
            self.addresses, self.known = upload(addresses, self.device), addresses
        return True

    def refresh(self) -> None:
        self.mirror.refresh(self.is_captured)

    @property
    def is_captured(self) -> bool:
        return bool(self.captured)

    def launch(self) -> None:
        if is_capturing(self.device):
            self.mirror.follow()
            self.captured.append((self.addresses, self.mirror.table, self.mirror.tensors()))
        self.rows(self.addresses, len(self.groups), self.mirror.table)


def sharing_of(traced: Traced, groups: Sequence[int], context: Context, device: torch.device) -> DeviceSharing | None:
    """None where a shared state is not on the device. Raises: CompileError."""
    values = [context.groups[group].get(name) for group in groups for name in traced.rule.shared]
    return DeviceSharing(traced, groups, context, device) if all(lives_on(value, device) for value in values) else None


def check_shared(traced: Traced, group: Mapping[str, Any], device: torch.device) -> None:
    """Make the kernel that a group will need. Raises: CompileError."""
    if launches_of(traced, group):
        part = traced.program.shared_part
        numbers = traced.rule.read(group).numbers
        rows_ready(part, number_dtypes([node.name for node in part.scalars], numbers, device), device)
