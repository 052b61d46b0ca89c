"""Threads of OpenMP and fork: a child has none of them, and its first step, or operator of torch, that wants several would wait
for them for ever."""

from __future__ import annotations

import ctypes

SOFT = 1  # omp_pause_soft: what is wanted again is made again, in the parent as in the child


def let_threads_go() -> None:
    """End those of the thread that forks, which is the only one in the child. A runtime that lacks this (before OpenMP 5) is as
    torch leaves it."""
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if pause is not None:
        pause(SOFT)
