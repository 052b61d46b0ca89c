"""Who compiles for which device. A backend is a folder here and an entry in COMPILED."""

from __future__ import annotations

import torch

from compiledopt.backends.batch import Backend
from compiledopt.backends.cpp.backend import CppBackend
from compiledopt.backends.triton.backend import TritonBackend

COMPILED: list[Backend] = [TritonBackend(), CppBackend()]  # the first that serves a device has it


def compiled_for(device: torch.device) -> Backend | None:
    """The backend that compiles for a device, or None."""
    return next((backend for backend in COMPILED if backend.serves(device)), None)
