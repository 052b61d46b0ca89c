"""`max_grad_norm`: the norm over all gradients, which the rule's transformation clips with (around/derive.py). It is not
read on the host where the gradients are on a device."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.entries import Entry, as_real
from compiledopt.rules.rule import as_float
from compiledopt.step import choose
from compiledopt.step.shards import local, placed, summed

Groups = Sequence[Mapping[str, Any]]
Value = torch.Tensor | float


def sum_of_squares(entries: Iterable[Entry]) -> Value:
    """Of the gradients that are clipped, over all elements, in float64; where they are on a device, it stays there."""
    spread: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.traced.is_clipped and entry.param.grad is not None:
            spread.setdefault(placed(entry), []).append(entry)
    return sum((over_processes(_local_sum(members), members[0]) for members in spread.values()), 0.0)


def over_processes(value: Value, entry: Entry) -> Value:
    """The sum over all shards, from that of this process, where parameters like this entry's are distributed."""
    return value if placed(entry) is None else summed(value, entry.param if entry.whole is None else entry.whole)


def _local_sum(entries: Sequence[Entry]) -> Value:
    given = [as_real(local(entry.param.grad)) for entry in entries if entry.param.grad is not None]
    wide = torch.float64 if any(grad.dtype is torch.float64 for grad in given) else torch.float32
    norms = [norm.to(given[0].device, non_blocking=True) for norm in torch._foreach_norm(given, 2, wide)]
    return torch.stack(norms).double().square().sum()


class Measured:
    """A batch whose gradients can be measured."""

    entries: list[Entry]

    @property
    def is_clipped(self) -> bool:
        return any(entry.traced.is_clipped for entry in self.entries)

    def squares(self) -> Value:
        """The sum of squares of the gradients that `prepare` read."""
        return sum_of_squares(self.entries)

    def renew(self) -> None:
        """Read the numbers of the groups again, now that the norm is known."""
        raise NotImplementedError


class Clipping:
    """The norm, for each device of an optimizer: a number on the host, elsewhere a tensor that never moves, so that a
    captured graph may read it. norm: that of the gradients themselves, after GradScaler's scale is taken out of it."""

    def __init__(self, on_host: bool = True) -> None:
        """on_host: whether a norm may be read on the host, where the gradients are there."""
        self.norm: Value | None = None
        self.on_host = on_host
        self.given: dict[torch.device, dict[str, Any]] = {}

    def views(self, groups: Groups, device: torch.device) -> list[Mapping[str, Any]]:
        """The groups, as if the norm were an option of theirs."""
        if device not in self.given:
            on_host = self.on_host and choose.backend(device) == "cpp"
            with torch.inference_mode(False):  # later steps write to it
                value = 0.0 if on_host else torch.zeros((), dtype=torch.float64, device=device)
            self.given[device] = {"grad_norm": value}
        return [ChainMap(self.given[device], group) for group in groups]  # type: ignore[arg-type]

    @torch.no_grad()
    def measure(self, batches: Sequence[Measured], grad_scale: torch.Tensor | None, again: bool = False) -> None:
        """Measure the gradients that were gathered. grad_scale: what they were multiplied by. again: those of parameters that
        are listed twice, which were measured before."""
        clipped = [batch for batch in batches if batch.is_clipped]
        if not again:
            self._set(_root([batch.squares() for batch in clipped]), grad_scale)
        for batch in clipped:
            batch.renew()

    def _set(self, norm: Value, grad_scale: torch.Tensor | None) -> None:
        for device, given in self.given.items():
            if isinstance(given["grad_norm"], float):
                given["grad_norm"] = as_float(norm)
            else:
                given["grad_norm"].copy_(_on(norm, device))
        if grad_scale is not None:
            norm = norm / (as_float(grad_scale) if isinstance(norm, float) else _on(grad_scale.reshape(()), norm.device))
        self.norm = norm


def _on(value: Value, device: torch.device) -> torch.Tensor:
    """A 0-dim float64 tensor on a device, without waiting for another one."""
    if isinstance(value, float):
        return torch.full((), value, dtype=torch.float64, device=device)
    return value.to(device, torch.float64, non_blocking=True)


def _root(squares: Sequence[Value]) -> Value:
    """√Σ, on the host where all of it is there, else on the device of the first that is not."""
    known = math.fsum(value for value in squares if isinstance(value, float))
    tensors = [value for value in squares if isinstance(value, torch.Tensor)]
    if not tensors:
        return math.sqrt(known)
    total = tensors[0] + known
    for value in tensors[1:]:
        total = total + _on(value, total.device)
    return total.sqrt()
