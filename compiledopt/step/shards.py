"""Distributed parameters (DTensor, as FSDP2 makes them): elementwise rules run on the local shards, by any executor; rules that
need whole matrices gather them."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.backends.entries import Entry
from compiledopt.torch_private import local_part


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; their module, which takes a second to import, is loaded where there is one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def reason_against(param: torch.Tensor) -> str | None:
    """Why an update of the shards is not one of the whole, or None."""
    odd = [str(p) for p in param.placements if not (p.is_shard() or p.is_replicate())]  # type: ignore[attr-defined]
    return f"a distributed parameter is placed as {odd[0]}" if odd else None


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of a distributed tensor; any other as it is."""
    return local_part(tensor) if is_distributed(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A distributed tensor gathered from all processes; any other as it is."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write the whole value into a distributed tensor: each process its own shard, without communication."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    shard = distribute_tensor(value, mesh, placements, src_data_rank=None)
    local(target).copy_(local(shard))


def summed(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A sum over the shards of tensors placed like `like`, from the sums of the processes."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    part = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64, device=local(like).device)
    placements = [Partial() if p.is_shard() else Replicate() for p in like.placements]  # type: ignore[attr-defined]
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False).full_tensor()  # type: ignore[attr-defined]


def placed(entry: Entry) -> tuple[Any, ...] | None:
    """The mesh and the placements of an entry's parameter, where it is distributed."""
    param = entry.param if entry.whole is None else entry.whole
    return (param.device_mesh, tuple(param.placements)) if is_distributed(param) else None  # type: ignore[attr-defined]


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


class Shards:
    """The distributed parameters of a plan."""

    def __init__(self) -> None:
        self.known: list[Shard] = []
        self.lent = False  # whether the shards have their gradients

    def localize(self, entry: Entry) -> None:
        """Let an entry stand for the local shard, with the shards of its states."""
        tensors = {name: value for name, value in entry.state.items() if isinstance(value, torch.Tensor)}
        states = [(name, value, local(value)) for name, value in tensors.items() if is_distributed(value)]
        scalars = [(name, value) for name, value in tensors.items() if not is_distributed(value)]
        shard = Shard(entry.param, local(entry.param), entry.state, states, scalars)
        self.known.append(shard)
        entry.whole, entry.param = entry.param, shard.part
        entry.state = {name: local(value) for name, value in tensors.items()}
        shard.part.grad = _gradient(shard.param)
        self.lent = True

    def lend(self) -> bool:
        """Give every shard its gradient for this step. False: parameters or states are others than before."""
        if self.lent:
            return True
        if not all(shard.is_as_before() for shard in self.known):
            return False
        self.lent = True
        for shard in self.known:
            shard.part.grad = _gradient(shard.param)
        return True

    def take_back(self) -> None:
        self.lent = False
        for shard in self.known:
            shard.part.grad = None
