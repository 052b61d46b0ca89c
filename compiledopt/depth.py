"""Room on Python's stack for what goes deep: tracing a rule, and Inductor's lowering."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

FRAMES = 1000  # Inductor takes some 120 beyond those of its caller, and more at its import
_lock = Lock()
_within, _before = 0, 0  # how many are within, all threads together, and the limit before


@contextmanager
def deep() -> Iterator[None]:
    """Within, the limit of recursion is higher: it may be low, or most of it taken by who calls a step, which fits in."""
    global _within, _before
    with _lock:
        if not _within:
            _before = sys.getrecursionlimit()
            sys.setrecursionlimit(_before + FRAMES)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within and sys.getrecursionlimit() == _before + FRAMES:
                sys.setrecursionlimit(_before)
