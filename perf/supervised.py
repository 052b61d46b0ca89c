"""A process that may die, begun again where it died. It notes each case before it begins with it (`note`), and leaves out what
it finds noted (`noted`); so a crash, an error that the device does not recover from, or a case that never ends costs that case.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

LOST = 75  # the exit status of a process that asks to be begun again: its device is of no more use
GRACE = 20.0  # seconds that a case may take beyond the end
POLL = 0.1


def note(journal: Path, case: str) -> None:
    with journal.open("a") as handle:
        handle.write(case + "\n")


def noted(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


def supervise(command: Sequence[str], journal: Path, end: float, patience: float) -> int:
    """The exit status of the last process, 1 where an earlier one died. end: by time.monotonic(), when all must be over;
    patience: seconds for a case."""
    died = 0
    while True:
        before = noted(journal)
        code, why = _run(command, journal, end, patience)
        begun = noted(journal)
        if code in (0, 1, 2):  # done, with failures, or called in a wrong way
            return max(died, code)
        print(f"{begun[-1] if begun else 'the start'} ended the process: {why}", file=sys.stderr, flush=True)
        if begun == before or time.monotonic() > end:
            return 1
        died = 1


def _run(command: Sequence[str], journal: Path, end: float, patience: float) -> tuple[int, str]:
    """(exit status, in words)"""
    child = subprocess.Popen(command)

    def leave(number: int, frame: FrameType | None) -> None:
        child.kill()
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    count, since = len(noted(journal)), time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(POLL)
            now, known = time.monotonic(), len(noted(journal))
            if known != count:
                count, since = known, now
            if now > min(since + patience, end + GRACE):
                child.kill()
                child.wait()
                return -signal.SIGKILL, f"it took {now - since:.0f} s"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = child.returncode
    return code, "the device is lost" if code == LOST else f"signal {-code}" if code < 0 else f"exit status {code}"
