"""Distributed tensors (DTensor, as FSDP2 makes them): their local parts, and what is summed over processes."""

from __future__ import annotations

import sys
from typing import Any

import torch

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


def placed(param: torch.Tensor) -> tuple[Any, ...] | None:
    """The mesh and the placements of a parameter, where it is distributed."""
    return (param.device_mesh, tuple(param.placements)) if is_distributed(param) else None  # type: ignore[attr-defined]


def placed_like(param: torch.Tensor, part: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A tensor with as many rows as `param`, placed as it is. part: what this process has of it; shape: of the whole."""
    from torch.distributed.tensor import DTensor

    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)
