"""Block size and warps of a kernel: measured on the GPU at hand, once per kernel and kind of GPU, and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from compiledopt.backends import cache
from compiledopt.backends.devices import on_device
from compiledopt.backends.triton import kernels as triton

C = TypeVar("C", bound=tuple[int, ...])
Config = tuple[int, int]  # elements per block, warps
DEFAULT: Config = (1024, 4)
CANDIDATES: tuple[Config, ...] = (DEFAULT, (512, 4), (1024, 8), (2048, 8), (4096, 8), (2048, 4))
# Of two bytes an element. AdamW's kernel for sm_90, by ptxas of triton 3.7: (1024, 4) takes 53 registers, so that 9 blocks of
# 8 KB of loads are on a processor at once, (2048, 4) 96, 5 blocks of 16 KB; float32 at (1024, 4) 62, 8 blocks of 16 KB. Split
# masters, whose other half is int16, take 111 at (2048, 4): a processor holds less of everything than at (1024, 4). None of
# them was timed on a GPU.
HALF: tuple[Config, ...] = ((2048, 4), DEFAULT, (1024, 8), (2048, 8), (4096, 8), (4096, 4))
# Of values in blocks (perf/results/occupancy.csv): with 8 elements a thread int8 takes 119 registers on sm_90, with 4 of them
# 64 at most, so that a processor holds as many elements, 4096, and twice the warps, 32. With (1024, 8) ptxas keeps to 64
# registers and lets int4 and float8 spill 16 and 8 bytes, with (512, 4) nothing is spilled.
BLOCKED: tuple[Config, ...] = ((512, 4), (1024, 8), DEFAULT, (512, 2), (2048, 4), (2048, 8))
ALL = tuple(dict.fromkeys((*CANDIDATES, *HALF, *BLOCKED)))
RUNS = 20  # launches between two events
ROUNDS = 4  # over all candidates: in the first one each is compiled, in the second the clocks rise, the least time counts
_known: dict[tuple[str, str], Any] = {}


def candidates_for(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype]) -> tuple[Config, ...]:
    """The default first. dtypes: of the operands."""
    if kernel.block:
        return BLOCKED
    return HALF if all(dtype.itemsize == 2 and dtype.is_floating_point for dtype in dtypes) else CANDIDATES


def config(
    source: str,
    device: torch.device,
    timer: Callable[[], Callable[[Any], float]],
    candidates: Sequence[C] = CANDIDATES,  # type: ignore[assignment]
) -> C:
    """The fastest candidate on this device; the first where there is no GPU, or COMPILEDOPT_TUNE=0.

    source: of what is timed; timer: makes a function from a candidate to milliseconds.
    """
    if device.type != "cuda" or os.environ.get("COMPILEDOPT_TUNE") == "0":
        return candidates[0]
    of = source, torch.cuda.get_device_name(device), triton.version(), tuple(candidates), ROUNDS
    name = cache.key("tuned", *of)
    if (name, source) not in _known:
        content = cache.load(f"{name}.json")
        if content is None:
            try:
                chosen: Any = best(timer(), candidates)
            except torch.OutOfMemoryError:  # no room to try in: another time
                chosen = None
            if chosen is None:
                return candidates[0]
            cache.store(f"{name}.json", json.dumps(chosen).encode())
        else:
            chosen = tuple(json.loads(content))
        _known[name, source] = chosen
    found: C = _known[name, source]
    return found


def best(
    milliseconds: Callable[[Any], float],
    candidates: Sequence[C] = CANDIDATES,  # type: ignore[assignment]
) -> C | None:
    """The candidate with the least time, in turns; one that cannot run (too little memory, too many registers) is passed over.
    None where none can."""
    times: dict[C, float] = {}
    for number in range(ROUNDS):
        for candidate in candidates if number == 0 else tuple(times):
            try:
                found = milliseconds(candidate)
            except Exception:  # triton's OutOfResources is nothing narrower; what cannot run at all says so in `ready`
                times.pop(candidate, None)
                continue
            times[candidate] = found if number < 2 else min(found, times[candidate])
    return min(times, key=times.__getitem__) if times else None


def elapsed(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a run on the device, among RUNS: an event for each would count the host's time too, while the device
    waits for it."""
    with on_device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        run()
        start.record()
        for _ in range(RUNS):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / RUNS
