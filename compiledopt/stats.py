"""What the compiler has done in this process: counts and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from compiledopt.depth import deep


@dataclass
class Stats:
    programs_traced: int = 0
    kernels_lowered: int = 0  # Inductor turned a program into source
    kernels_compiled: int = 0  # a C++ compiler ran
    kernels_with_torch_headers: int = 0  # of those, with functions that our own header lacks: 5 s each
    launchers_compiled: int = 0
    disk_hits: int = 0
    memory_hits: int = 0
    fallbacks: int = 0
    plans_built: int = 0
    seconds_tracing: float = 0.0
    seconds_lowering: float = 0.0
    seconds_compiling: float = 0.0


STATS = Stats()


def compile_stats() -> dict[str, float]:
    """What was traced, lowered and compiled in this process so far, with seconds. A copy: changing it changes nothing.

    `kernels_lowered` and `kernels_compiled` stay as they are while lr, betas, weight_decay, None gradients, groups and
    loaded states change: a recompilation shows here.
    """
    return asdict(STATS)


@contextmanager
def timed(field: str) -> Iterator[None]:
    """Of tracing, lowering and compiling, which get room on Python's stack besides."""
    start = time.perf_counter()
    try:
        with deep():
            yield
    finally:
        setattr(STATS, field, getattr(STATS, field) + time.perf_counter() - start)
