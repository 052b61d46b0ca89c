"""The peak of memory that steps take on top of what is there: parameters, gradients, states.

Linux resets the peak on request. Freed memory goes back to the system at once (MALLOC_MMAP_THRESHOLD_), so that a temporary
cannot hide in what another one left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def environment() -> dict[str, str]:
    """For a process that measures: the C library reads these at its start."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def extra_mib(step: Callable[[], Any], count: int = 3) -> float:
    """MiB by which `count` steps raise the peak over what is resident before. Raises: OSError where Linux cannot tell."""
    step()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(count):
        step()
    return _status("VmHWM") - before
