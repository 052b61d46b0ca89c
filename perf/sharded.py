"""A step on 200 tensors sharded over two processes (FSDP2's DTensors, gloo, one thread each), ours against torch's foreach on
the same kind of parameters, in turns: python perf/sharded.py"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from common import append, circumstances
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import compiledopt

TENSORS, SHAPES = 200, {"200 × 64×64": (64, 64), "200 × 256×256": (256, 256)}
OPTIMIZERS: dict[str, Any] = {
    "torch foreach": lambda params: torch.optim.AdamW(params, lr=1e-6, foreach=True),
    "torch fused": lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True),
    "ours": lambda params: compiledopt.AdamW(params, lr=1e-6),
}


def parameters(shape: tuple[int, ...], mesh: Any) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(distribute_tensor(torch.randn(shape), mesh, [Shard(0)])) for _ in range(TENSORS)]
    for param in made:
        param.grad = distribute_tensor(torch.randn(shape), mesh, [Shard(0)])
    return made


def work(rank: int, folder: str, rounds: int, save: bool) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    torch.set_num_threads(1)
    mesh, found = init_device_mesh("cpu", (2,)), []
    for label, shape in SHAPES.items():
        optimizers = {name: make(parameters(shape, mesh)) for name, make in OPTIMIZERS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in optimizers}
        for turn in range(rounds):
            for name, optimizer in optimizers.items():
                dist.barrier()
                for _ in range(3):
                    start = time.perf_counter()
                    optimizer.step()
                    seconds[name] += [time.perf_counter() - start] if turn else []
        medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
        for name in ("torch foreach", "torch fused"):
            row = {"shapes": label, "against": name, "their_ms": f"{medians[name]:.4g}", "our_ms": f"{medians['ours']:.4g}"}
            found.append(row | {"ratio": f"{medians[name] / medians['ours']:.2f}"} | circumstances())
    if rank == 0:
        for row in found:
            print("{shapes:16} {against:14} {their_ms:>8} ms, ours {our_ms:>8} ms, ratio {ratio}".format(**row))
        if save:
            append("sharded.csv", found)
    dist.barrier()
    os._exit(0)  # gloo's threads end a process with SIGABRT now and then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, arguments.rounds, not arguments.no_save)
        torch.multiprocessing.spawn(work, args=given, nprocs=2)


if __name__ == "__main__":
    main()
