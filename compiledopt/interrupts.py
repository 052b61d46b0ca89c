"""Ctrl-C, and other signals whose handlers are Python's, wait until what is being written is whole."""

from __future__ import annotations

import signal as names

# Those of the module `signal` make enumerations of what they return, which takes 7 µs a pair instead of ½.
from _signal import getsignal, signal  # type: ignore[import-not-found]
from threading import get_ident, main_thread
from types import FrameType
from typing import Any

# Ctrl-C; what those who run jobs send before they end them; what timeouts send. Their handlers raise, or save what there is.
SIGNALS = [
    int(getattr(names, f"SIG{name}")) for name in ("INT", "TERM", "HUP", "USR1", "USR2", "ALRM") if hasattr(names, f"SIG{name}")
]


class Whole:
    """Within, handlers of these signals wait: whoever catches what they raise and saves what there is saves whole steps, and so
    does a handler that saves.

    Python runs handlers in the main thread alone, between any two lines of it. A second Ctrl-C within adds nothing.
    """

    def __enter__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.waiting: dict[int, FrameType | None] = {}
        self.within = True
        if get_ident() != main_thread().ident:
            return
        try:
            for number in SIGNALS:
                if callable(handler := getsignal(number)):
                    self.handlers[number] = handler  # before it is exchanged: nothing is lost by an interruption here
                    signal(number, self._wait)
        except BaseException:  # of one whose turn had not come
            self._put_back()
            raise

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if self.within:
            self.waiting.setdefault(number, frame)
        else:  # while others are put back, which raised
            self.handlers[number](number, frame)

    def _put_back(self) -> None:
        self.within = False
        for number, handler in self.handlers.items():
            signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._put_back()
        self._tell()

    def _tell(self) -> None:
        """Each handler once, though another one raises."""
        if self.waiting:
            number, frame = self.waiting.popitem()
            try:
                self.handlers[number](number, frame)
            finally:
                self._tell()
