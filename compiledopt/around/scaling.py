"""torch.amp.GradScaler: its scale and its verdict are two more numbers of the step, read where they are."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Scaling:
    """`grad_scale` and `found_inf` on each device of an optimizer. Where they are never moves, so that a captured graph may
    read them."""

    def __init__(self) -> None:
        self.values: dict[torch.device, dict[str, torch.Tensor]] = {}
        self.last: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        if device not in self.values:
            with torch.inference_mode(False):  # later steps write to them
                made = {name: torch.ones((), dtype=torch.float32, device=device) for name in ("grad_scale", "found_inf")}
            self.values[device] = made
            self.set(*self.last)
        return self.values[device]

    def set(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Take over the scaler's tensors, without waiting for them."""
        self.last = (grad_scale, found_inf)
        for values in self.values.values():
            for name, value, without in (("grad_scale", grad_scale, 1.0), ("found_inf", found_inf, 0.0)):
                if value is None:
                    values[name].fill_(without)
                else:
                    values[name].copy_(value.reshape(()), non_blocking=True)

    def views(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> list[Mapping[str, Any]]:
        """The groups, as if these two were options of theirs."""
        return [ChainMap(self.on(device), group) for group in groups]  # type: ignore[arg-type]
