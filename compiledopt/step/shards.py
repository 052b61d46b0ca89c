"""Distributed parameters (DTensor, as FSDP2 makes them): elementwise rules run on the local shards, by any executor; rules that
need whole matrices gather them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.backends.batch import Entry
from compiledopt.backends.distributed import is_distributed, local, reason_against
from compiledopt.torch_private import first_row, local_part


def _gradient(param: torch.Tensor) -> torch.Tensor | None:
    """The local part of a gradient, brought to where its parameter's is."""
    grad = param.grad
    if grad is None or not is_distributed(grad):
        return grad
    wanted, found = param.placements, grad.placements  # type: ignore[attr-defined]
    if found is not wanted and found != wanted:
        with torch.no_grad():
            grad = grad.redistribute(placements=wanted)  # type: ignore[attr-defined]
    return local_part(grad)


@dataclass
class Shard:
    """A distributed parameter and its states, with the local parts that stand for them."""

    param: torch.Tensor
    part: torch.Tensor
    state: MutableMapping[str, Any]
    states: list[tuple[str, torch.Tensor, torch.Tensor]]  # (name, distributed, local)
    scalars: list[tuple[str, torch.Tensor]]

    def is_as_before(self) -> bool:
        if local_part(self.param) is not self.part:
            return False
        get = self.state.get
        for name, value, part in self.states:
            if get(name) is not value or local_part(value) is not part:
                return False
        return all(get(name) is value for name, value in self.scalars)


def runs_on_shards(entry: Entry, group: Mapping[str, Any]) -> bool:
    """Whether a parameter is distributed, and what happens to the local shards happens to the whole."""
    if not is_distributed(entry.param) or not entry.traced.elementwise or group.get("differentiable"):
        return False
    return reason_against(entry.param) is None


class Shards:
    """The distributed parameters of a plan."""

    def __init__(self) -> None:
        self.parameters: list[Shard] = []
        self.have_gradients = False  # whether the shards have their gradients

    def localize(self, entry: Entry) -> None:
        """Let an entry stand for the local shard, with the shards of its states."""
        tensors = {name: value for name, value in entry.state.items() if isinstance(value, torch.Tensor)}
        states = [(name, value, local(value)) for name, value in tensors.items() if is_distributed(value)]
        scalars = [(name, value) for name, value in tensors.items() if not is_distributed(value)]
        shard = Shard(entry.param, local(entry.param), entry.state, states, scalars)
        self.parameters.append(shard)
        rows = entry.param.shape[0] if entry.param.dim() else 1
        entry.offset = first_row(entry.param) * (entry.param.numel() // max(1, rows))
        entry.whole, entry.param = entry.param, shard.part
        entry.state = {name: local(value) for name, value in tensors.items()}
        shard.part.grad = _gradient(shard.param)
        self.have_gradients = True

    def read_gradients(self) -> bool:
        """Give every shard its gradient for this step. False: parameters or states are others than before."""
        if self.have_gradients:
            return True
        if not all(shard.is_as_before() for shard in self.parameters):
            return False
        self.have_gradients = True
        for shard in self.parameters:
            shard.part.grad = _gradient(shard.param)
        return True

    def drop_gradients(self) -> None:
        self.have_gradients = False
        for shard in self.parameters:
            shard.part.grad = None
