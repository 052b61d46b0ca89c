"""Ctrl-C waits until what is being written is whole."""

from __future__ import annotations

# Those of the module `signal` make enumerations of what they return, which takes 7 µs a pair instead of ½.
from _signal import getsignal, signal  # type: ignore[import-not-found]
from signal import SIGINT
from threading import get_ident, main_thread
from types import FrameType
from typing import Any


class Whole:
    """Within, the handler of SIGINT waits: whoever catches KeyboardInterrupt and saves what there is saves whole steps.

    Python runs handlers in the main thread alone, between any two lines of it. A second Ctrl-C within adds nothing.
    """

    def __enter__(self) -> None:
        self.handler: Any = None
        self.waiting: list[FrameType | None] = []
        if get_ident() == main_thread().ident and callable(handler := getsignal(SIGINT)):
            self.handler = handler  # before it is exchanged: an interruption here leaves nothing to be put back
            signal(SIGINT, self._wait)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self.waiting.append(frame)

    def __exit__(self, *error: object) -> None:
        if self.handler is None:
            return
        signal(SIGINT, self.handler)
        if self.waiting:
            self.handler(int(SIGINT), self.waiting[0])
