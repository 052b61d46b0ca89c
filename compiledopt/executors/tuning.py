"""Block size and warps of a kernel: measured on the GPU at hand, once per kernel and kind of GPU, and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

import torch

from compiledopt.compiler import cache, triton

Config = tuple[int, int]  # elements per block, warps
DEFAULT: Config = (1024, 4)
CANDIDATES: tuple[Config, ...] = (DEFAULT, (512, 4), (1024, 8), (2048, 8), (4096, 8))
ELEMENTS = 1 << 24  # of each scratch tensor: far more than the caches hold
RUNS = 10

_known: dict[tuple[str, str], Config] = {}


def config(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Config:
    """The fastest of CANDIDATES on this device; the default where there is no GPU, or COMPILEDOPT_TUNE=0."""
    if device.type != "cuda" or os.environ.get("COMPILEDOPT_TUNE") == "0":
        return DEFAULT
    name = cache.key("tuned", kernel.source, torch.cuda.get_device_name(device), CANDIDATES)
    if (name, kernel.source) not in _known:
        content = cache.load(f"{name}.json")
        if content is None:
            chosen = best(_timer(kernel, dtypes, device))
            cache.store(f"{name}.json", json.dumps(chosen).encode())
        else:
            chosen = tuple(json.loads(content))
        _known[name, kernel.source] = chosen
    return _known[name, kernel.source]


def best(milliseconds: Callable[[Config], float], candidates: Sequence[Config] = CANDIDATES) -> Config:
    """The candidate with the least time; one that cannot run (too little memory, too many registers) is passed over."""
    times: dict[Config, float] = {}
    for candidate in candidates:
        try:
            times[candidate] = milliseconds(candidate)
        except (RuntimeError, MemoryError):  # triton's OutOfResources and torch's out-of-memory among them
            continue
    return min(times, key=times.__getitem__) if times else DEFAULT


def _timer(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Callable[[Config], float]:
    """Times the aligned variant on scratch tensors: the median of RUNS."""
    from compiledopt.executors.device import Tables

    tensors = [torch.zeros(ELEMENTS, dtype=dtype, device=device) for dtype in dtypes]
    table = torch.ones(max(1, kernel.columns), dtype=kernel.scalar, device=device)
    numbers = [torch.tensor(values, dtype=torch.int64).numpy().tobytes() for values in _tables(tensors)]

    def milliseconds(candidate: Config) -> float:
        tables = Tables(kernel, device, candidate)
        tables.update(*numbers)
        found = []
        for _ in range(RUNS + 2):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()  # type: ignore[no-untyped-call]
            tables.run(table)
            end.record()  # type: ignore[no-untyped-call]
            end.synchronize()  # type: ignore[no-untyped-call]
            found.append(start.elapsed_time(end))  # type: ignore[no-untyped-call]
        return float(sorted(found[2:])[RUNS // 2])

    return milliseconds


def _tables(tensors: Sequence[torch.Tensor]) -> tuple[list[int], list[int], list[int]]:
    return [tensor.data_ptr() for tensor in tensors], [tensors[0].numel()], [0]
