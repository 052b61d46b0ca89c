"""Compilers that run, and end with this process: an optimizer that is made and never stepped leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.util import Finalize

_running: set[subprocess.Popen[str]] = set()
_watching: set[int] = set()  # processes that end theirs when they end


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int, str]:
    """(status, what it wrote as errors). Raises: OSError; subprocess.TimeoutExpired after so many seconds."""
    _watch()
    # A session of its own: a compiler is several processes, and all of them end with it.
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        _running.add(process)
        try:
            said = process.communicate(timeout=seconds)[1]
        finally:
            _running.discard(process)
            _end(process)
    return process.returncode, said


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watch() -> None:
    """At the end of this process, before the directory of its temporary files goes (cache.scratch)."""
    if os.getpid() not in _watching:
        _watching.add(os.getpid())
        Finalize(None, _end_all, exitpriority=1)


def _after_fork() -> None:
    """In a child of fork the compilers are its parent's: it waits for none, and says of none that it still runs."""
    for process in _running:
        process.returncode = 0
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _end_all() -> None:
    for process in list(_running):
        _end(process)
