"""Devices, streams and captures: what a kernel that torch does not launch must tell torch, and memory for its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Outside of inference mode: later steps write to the tensors that are made here."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):  # as within another: 3 µs less
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return called


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def synchronize(device: torch.device) -> None:
    """Let what a kernel did wrong show now."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def is_lost(device: torch.device) -> bool:
    """Whether every call of this process fails there, as after an address that is not its own or a failed assertion, whosever
    kernel that was."""
    try:
        synchronize(device)
    except RuntimeError:
        return True
    return False


@contextmanager
def waiting(device: torch.device) -> Iterator[None]:
    """While the host waits for a device on purpose, once for a kernel: set_sync_debug_mode looks for what waits in steps."""
    before = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if before == 0:  # to set it would warn of it
        yield
        return
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A guard, where another device is the current one."""
    if device.type == "cpu" or device.index in (None, torch.accelerator.current_device_index()):
        return nullcontext()
    return torch.accelerator.device_index(device.index)


class Streams:
    """Tells torch's allocator who reads a tensor, as soon as steps come on one stream after the other: it frees a tensor in the
    order of the stream that it was made on. What a graph reads is kept by who captures it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first: torch.Stream | None = None
        self.many = False

    def read(self, *tensors: torch.Tensor) -> None:
        """Called where tensors are read, which were made on a stream of an earlier call or on this one."""
        if self.device.type == "cpu" or is_capturing(self.device):
            return
        stream = torch.accelerator.current_stream(self.device)
        self.first = self.first or stream
        self.many = self.many or stream != self.first
        if self.many:
            for tensor in tensors:
                tensor.record_stream(stream)


def as_numbers(content: bytes) -> torch.Tensor:
    """int64 on the host, whatever set_default_device says."""
    if not content:  # frombuffer refuses it
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.int64)


def reserved(count: int, device: torch.device) -> torch.Tensor:
    """Pinned memory for int64 numbers, which cannot be had during a capture."""
    return torch.empty(count, dtype=torch.int64, device="cpu", pin_memory=device.type != "cpu")


@ordinary
def upload(
    content: bytes | torch.Tensor | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Host → device without waiting: from pinned memory, which torch's allocator keeps until the copy is over."""
    if isinstance(content, bytes):
        content = as_numbers(content)
    tensor = content if isinstance(content, torch.Tensor) else torch.tensor(content, dtype=dtype, device="cpu")
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
