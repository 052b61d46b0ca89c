"""Why something cannot be compiled, and how a warning finds the user's line."""

import math
import os
import sys
import time
import warnings

import torch

NOT_THE_USERS = tuple(os.path.dirname(os.path.realpath(file)) + os.sep for file in (__file__, torch.__file__))


RETRY_AFTER = 600.0  # seconds


class CompileError(RuntimeError):
    """The compiled executor cannot be had here; the message is the reason, which a fallback shows to the user."""

    until = math.inf  # on the clock of time.monotonic: how long it is remembered


class PassingCompileError(CompileError):
    """One that may be over by another try: the machine was too busy, or had no memory or no room."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Optimizers made in {RETRY_AFTER / 60:.0f} minutes or later try it again")
        self.until = time.monotonic() + RETRY_AFTER


def warn(message: str) -> None:
    """A UserWarning at the innermost line that is neither ours nor torch's: hooks, schedulers and profilers stand between a
    step and its caller, so no fixed number of frames is right."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and os.path.realpath(frame.f_code.co_filename).startswith(NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
