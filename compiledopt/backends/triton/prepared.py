"""Launches that native code makes by the driver alone (cpp/launcher/driver.h): what Triton's own launcher hands to it, which is
known once that has launched a kernel."""

from __future__ import annotations

import ctypes
import re
from array import array
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch

from compiledopt.backends.devices import is_capturing, upload, waiting

# (cuLaunchKernel, function, blocks, threads, shared memory, types, values, first of the numbers of a step, rows of them).
Launch = tuple[int, int, int, int, int, str, tuple[Any, ...], int, int]
TYPES = {"i32": "i", "fp32": "f", "fp64": "d"}  # of a signature, beside pointers; as driver.h has them
SIZES = {"P": 8, "i": 4, "f": 4, "d": 8}
SCRATCH = "PP"  # Triton's own last parameters: memory of all blocks, and of its profiler
PLAIN = {"num_ctas": 1, "launch_cooperative_grid": False, "launch_pdl": False, "global_scratch_size": 0}
PLAIN |= {"profile_scratch_size": 0}
PARAMETER = re.compile(r"\.param\s+\.[a-z]+(\d+)\s[^,)]*_param_\d+")


@cache
def driver(name: str = "cuLaunchKernel") -> int | None:
    """The address of a function of CUDA's driver, or None where there is none."""
    try:
        function = getattr(ctypes.CDLL("libcuda.so.1"), name)
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def copying(device: torch.device) -> int | None:
    """The address of what copies to the device, asynchronously, and was found to; None where that is not known."""
    call, where = driver("cuMemcpyHtoDAsync_v2"), current(device)
    return None if call is None or where is None or not _copies(call, device, where[3]) else call


@lru_cache
def _copies(call: int, device: torch.device, stream: int) -> bool:
    """Whether the driver copies as it should, tried once on a stream: a wrong pointer would be no error."""
    numbers, there = array("q", range(1, 65)), upload(bytes(8 * 64), device)
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)(call)
    done = function(there.data_ptr(), numbers.buffer_info()[0], 8 * len(numbers), stream)
    with waiting(device):
        return done == 0 and there.tolist() == numbers.tolist()


def types_of(made: Any) -> str | None:
    """The parameters of a kernel that Triton compiled, which its PTX must have too; None of one that asks for more than a
    launch."""
    metadata = made.metadata
    if metadata.target.backend != "cuda" or any(getattr(metadata, name, value) != value for name, value in PLAIN.items()):
        return None
    given = [kind for kind in made.src.signature.values() if kind != "constexpr"]
    types = ["P" if str(kind).startswith("*") else TYPES.get(kind) for kind in given]
    if None in types:
        return None
    found = "".join(types) + SCRATCH  # type: ignore[arg-type]
    entry = made.asm["ptx"].partition(".entry")[2].partition("{")[0]
    bits = [int(each) for each in PARAMETER.findall(entry)]
    return found if bits == [8 * SIZES[each] for each in found] else None


def launch_of(made: Any, count: int, tensors: Sequence[torch.Tensor], numbers: Sequence[float], rows: int = 0) -> Launch | None:
    """A launch of `count` blocks. rows: how many rows of the numbers are those of a step, which native code fills in."""
    call, types = driver(), types_of(made)
    if call is None or types is None or not count:
        return None
    values = (*[tensor.data_ptr() for tensor in tensors], *numbers, *[0] * len(SCRATCH))
    metadata = made.metadata
    threads = metadata.num_warps * metadata.target.warp_size
    return call, made.function, count, threads, metadata.shared, types, values, len(tensors), rows


def current(device: torch.device) -> Any | None:
    """Where the driver would launch now: (function, device, function of that, stream, who watches launches); None where a
    launch needs more: on another device than the current one, in a capture, or while somebody watches."""
    from triton import knobs
    from triton.runtime import driver as active

    at = active.active.get_current_device()
    if is_capturing(device) or (device.type != "cpu" and device.index not in (None, at)):
        return None
    watchers = []
    for name in ("launch_enter_hook", "launch_exit_hook"):
        hook = getattr(knobs.runtime, name)
        calls = getattr(hook, "calls", None)  # of Triton's own, which is a chain of functions
        if hook is not None and calls != []:
            return None
        watchers.append((knobs.runtime, name, hook, calls))
    stream_of = active.active.get_current_stream
    return active.active.get_current_device, at, stream_of, stream_of(at), watchers
