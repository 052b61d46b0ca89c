"""Kernels that a device can run: made, tuned, compiled, loaded and tried before any step depends on them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch

from compiledopt.backends.devices import is_capturing, is_lost, ordinary, synchronize, waiting
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import passes_ready
from compiledopt.backends.triton.proof import WRONG, proved
from compiledopt.backends.triton.reducing import ReducingKernel, reducing_kernel
from compiledopt.backends.triton.tables import Tables
from compiledopt.backends.triton.tuning import Config, candidates_for, config, elapsed
from compiledopt.errors import CompileError
from compiledopt.rules.traced import Traced, Variant

AnyKernel = triton.TritonKernel | ReducingKernel

# What a kernel is timed on: far more than the caches hold, and longer on the device than a launch takes on the host.
SCRATCH = 1 << 29  # bytes, of all tensors together
ROUND = 4096  # elements: whole blocks of whatever size
FIRST = "CUDA graph capture of a first step(): run step() once before, to have kernels and states"


def timer(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Callable[[Config], float]:
    """Times a kernel on aligned scratch tensors: milliseconds of one launch.

    The values are like a model's: the square root of zero takes another path.
    """
    length = SCRATCH // sum(dtype.itemsize for dtype in dtypes) // ROUND * ROUND
    tensors = [torch.empty(length, dtype=dtype, device=device) for dtype in dtypes]
    row = [1.0] * kernel.columns
    extents = (length, length, 0, 0)[: kernel.extents]
    numbers = [array("q", values).tobytes() for values in ([t.data_ptr() for t in tensors], extents, [0])]

    def milliseconds(candidate: Config) -> float:
        tables = Tables(kernel, device, candidate)
        tables.update(*numbers)
        tables.fill(row)
        for tensor in tensors:
            tensor.uniform_(0.5, 1.0) if tensor.is_floating_point() else tensor.random_(1, 100)
        return elapsed(lambda: tables.run(row), device)

    return milliseconds


_ready: dict[tuple[str, torch.device], Any] = {}  # what `make` gave, or the CompileError


def ready(kernel: triton.TritonKernel, runs: Traced | Variant, dtypes: Sequence[torch.dtype], device: torch.device) -> Config:
    """The block size and warps of a kernel that runs on a device: compiled and loaded there, in both variants, and run on
    nothing, so that no launch fails while others have written. Raises: CompileError."""

    def make() -> Config:
        chosen = config(kernel.source, device, lambda: timer(kernel, dtypes, device), candidates_for(kernel, dtypes))
        _run_on_nothing(kernel, device, chosen)
        if (wrong := proved(kernel, runs.program, dtypes, device, chosen)) is not None:
            raise CompileError(f"{WRONG}: {wrong}")
        return chosen

    chosen: Config = made_ready(kernel.source, device, make)
    return chosen


@ordinary
def made_ready(source: str, device: torch.device, make: Callable[[], Any]) -> Any:
    """What `make` gives, which runs a kernel for the first time; asked once. source: of the kernel.

    Raises: CompileError where it cannot run, and whatever says that memory is short or that the device is lost, which are no
    properties of the kernel.
    """
    key = (source, device)
    if key not in _ready:
        if is_capturing(device):
            raise RuntimeError(FIRST)
        try:
            with waiting(device):
                _ready[key] = make()
        # Triton's errors (OutOfResources, PTXASError, CompilationError) and subprocess's, from gcc, have only this in common.
        except Exception as error:
            if isinstance(error, MemoryError) or "out of memory" in str(error) or is_lost(device):
                raise
            _ready[key] = CompileError(f"the kernel cannot run on {device}: {type(error).__name__}: {error}")
    known = _ready[key]
    if isinstance(known, CompileError):
        raise known
    return known


def _run_on_nothing(kernel: triton.TritonKernel, device: torch.device, chosen: Config) -> None:
    """Launch a kernel, with one row of scalars, with a few and with a table of them, on a tensor without elements."""
    scratch = torch.zeros(2 * triton.ALIGNMENT, dtype=torch.float64, device=device)
    tables = Tables(kernel, device, chosen)
    extents = (0, 1, 0, 0)[: kernel.extents]
    tables.update(*(array("q", n).tobytes() for n in ([scratch.data_ptr()] * kernel.operands, extents, [0])))
    tables.blocks = torch.zeros(1, 2, dtype=torch.int32, device=device)
    row = [1.0] * kernel.columns
    table = tables.fill(row)
    for scalars in (row, row * triton.FEW, table):
        tables.run(scalars)
    synchronize(device)


def kernel_of(runs: Traced | Variant, dtypes: tuple[torch.dtype, ...]) -> AnyKernel:
    """dtypes: of its operands. Raises: CompileError."""
    if isinstance(runs, Variant):
        return reducing_kernel(runs.passes, dtypes)
    return triton.kernel(runs.program, kernel_dtypes(dtypes))


def check_on_device(runs: Traced | Variant, param: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Compile and load what a parameter needs. Raises: CompileError."""
    kernel, device = kernel_of(runs, dtypes), param.device
    if isinstance(kernel, ReducingKernel):
        made_ready(kernel.source, device, lambda: passes_ready.run_for(kernel, param, runs.order))
    else:
        ready(kernel, runs, kernel_dtypes(dtypes), device)


def tables_for(runs: Traced | Variant, dtypes: tuple[torch.dtype, ...], device: torch.device) -> tuple[AnyKernel, Tables]:
    """The kernel of what runs, which has run on this device, and its tables; they raise CompileError when they are given tiles
    that it is wrong for. Raises: CompileError."""
    kernel = kernel_of(runs, dtypes)
    if isinstance(kernel, ReducingKernel):
        return kernel, passes_ready.tables_of(kernel, runs.program, dtypes, device)
    return kernel, Tables(kernel, device, ready(kernel, runs, kernel_dtypes(dtypes), device))
