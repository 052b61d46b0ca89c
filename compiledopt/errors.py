"""Why something cannot be compiled, and how a warning finds the user's line."""

import os
import sys
import warnings

import torch

NOT_THE_USERS = tuple(os.path.dirname(os.path.realpath(file)) + os.sep for file in (__file__, torch.__file__))


class CompileError(RuntimeError):
    """The compiled executor cannot be had here; the message is the reason, which a fallback shows to the user."""


def warn(message: str) -> None:
    """A UserWarning at the innermost line that is neither ours nor torch's: hooks, schedulers and profilers stand between a
    step and its caller, so no fixed number of frames is right."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and os.path.realpath(frame.f_code.co_filename).startswith(NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
