"""Block size and warps of a kernel: measured on the GPU at hand, once per kernel and kind of GPU, and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

import torch

from compiledopt.backends import cache
from compiledopt.backends.triton import kernels as triton

Config = tuple[int, int]  # elements per block, warps
DEFAULT: Config = (1024, 4)
CANDIDATES: tuple[Config, ...] = (DEFAULT, (512, 4), (1024, 8), (2048, 8), (4096, 8), (2048, 4))
ROUNDS = 3  # over all candidates: the first one warms the clocks, and what is compiled then is not timed
_known: dict[tuple[str, str], Config] = {}


def config(kernel: triton.TritonKernel, device: torch.device, timer: Callable[[], Callable[[Config], float]]) -> Config:
    """The fastest of CANDIDATES on this device; the default where there is no GPU, or COMPILEDOPT_TUNE=0.

    timer: makes a function from a candidate to milliseconds.
    """
    if device.type != "cuda" or os.environ.get("COMPILEDOPT_TUNE") == "0":
        return DEFAULT
    name = cache.key("tuned", kernel.source, torch.cuda.get_device_name(device), CANDIDATES)
    if (name, kernel.source) not in _known:
        content = cache.load(f"{name}.json")
        if content is None:
            try:
                chosen = best(timer())
            except torch.OutOfMemoryError:  # no room to try in: another time
                chosen = None
            if chosen is None:
                return DEFAULT
            cache.store(f"{name}.json", json.dumps(chosen).encode())
        else:
            chosen = tuple(json.loads(content))
        _known[name, kernel.source] = chosen
    return _known[name, kernel.source]


def best(milliseconds: Callable[[Config], float], candidates: Sequence[Config] = CANDIDATES) -> Config | None:
    """The candidate with the least time, in turns; one that cannot run (too little memory, too many registers) is passed over.
    None where none can."""
    times: dict[Config, float] = {}
    for number in range(ROUNDS):
        for candidate in candidates if number == 0 else tuple(times):
            try:
                found = milliseconds(candidate)
            except Exception:  # triton's OutOfResources is nothing narrower; what cannot run at all says so in `ready`
                times.pop(candidate, None)
                continue
            times[candidate] = found if number < 2 else min(found, times[candidate])
    return min(times, key=times.__getitem__) if times else None
