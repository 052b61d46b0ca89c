"""`max_grad_norm`: the norm over all gradients, and what each group multiplies its own by; nothing is read on the host
where the gradients are elsewhere."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from compiledopt.compiler.derive import CLIP
from compiledopt.compiler.rule import as_float
from compiledopt.executors.entries import as_real

Groups = Sequence[Mapping[str, Any]]
EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


def coefficient(norm: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """What gradients of this norm are multiplied by, so that it is at most `most`."""
    return (most / (norm + EPSILON)).clamp(max=1.0)


def sum_of_squares(gradients: Iterable[torch.Tensor | None]) -> torch.Tensor | float:
    """Over all elements, in float64; where the gradients are on a device, it stays there."""
    given = [as_real(grad) for grad in gradients if grad is not None]
    if not given:
        return 0.0
    wide = torch.float64 if any(grad.dtype is torch.float64 for grad in given) else torch.float32
    norms = [norm.to(given[0].device, non_blocking=True) for norm in torch._foreach_norm(given, 2, wide)]
    return torch.stack(norms).double().square().sum()


class Measured(Protocol):
    """A batch whose gradients can be measured."""

    @property
    def is_clipped(self) -> bool: ...

    def squares(self) -> torch.Tensor | float: ...

    def renew(self) -> None: ...


class Clipping:
    """The norm, and a coefficient for each group on each device of an optimizer. Where they are never moves, so that a
    captured graph may read them."""

    def __init__(self) -> None:
        self.norm: torch.Tensor | None = None
        self.values: dict[torch.device, torch.Tensor] = {}
        self.most: dict[torch.device, torch.Tensor] = {}
        self.limits: list[float] = []

    def on(self, device: torch.device, count: int) -> torch.Tensor:
        if device not in self.values or self.values[device].numel() != count:
            self.values[device] = torch.ones(count, dtype=torch.float64, device=device)
            self.most[device] = torch.ones(count, dtype=torch.float64, device=device)
            self.limits = []
        return self.values[device]

    def views(self, groups: Groups, device: torch.device) -> list[Mapping[str, Any]]:
        """The groups, as if their coefficient were an option of theirs."""
        values = self.on(device, len(groups)).unbind()
        return [ChainMap({"clip": value}, group) for value, group in zip(values, groups, strict=True)]  # type: ignore[dict-item,arg-type,list-item]

    def refresh(self, groups: Groups) -> None:
        """Bring the bounds to the devices, where they changed."""
        limits = [float("inf") if group.get(CLIP) is None else as_float(group[CLIP]) for group in groups]
        if limits != self.limits:
            self.limits = limits
            for device, most in self.most.items():
                given = torch.tensor(limits, dtype=torch.float64)
                most.copy_(given if device.type == "cpu" else given.pin_memory(), non_blocking=True)

    @torch.no_grad()
    def measure(self, batches: Sequence[Measured], groups: Groups, grad_scale: torch.Tensor | None) -> None:
        """Measure the gradients that were gathered, and set every coefficient. grad_scale: what they were multiplied by."""
        self.refresh(groups)
        clipped = [batch for batch in batches if batch.is_clipped]
        norm = _root([batch.squares() for batch in clipped])
        if grad_scale is not None:
            norm = norm / grad_scale.to(norm.device, torch.float64, non_blocking=True).reshape(())
        if self.norm is None or self.norm.device != norm.device:
            self.norm = torch.zeros((), dtype=torch.float64, device=norm.device)
        self.norm.copy_(norm)
        for device, values in self.values.items():
            values.copy_(coefficient(norm.to(device, non_blocking=True), self.most[device]))
        for batch in clipped:
            batch.renew()


def _root(squares: Sequence[torch.Tensor | float]) -> torch.Tensor:
    """√Σ, on the device of the first that is a tensor."""
    tensors = [value for value in squares if isinstance(value, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    total = torch.full((), sum(v for v in squares if isinstance(v, float)), dtype=torch.float64, device=device)
    for value in tensors:
        total = total + value.to(device, non_blocking=True)
    return total.sqrt()
