"""Rules that reduce, on the CPU: one native call runs their passes over all parameters, in place (rules/reductions.py)."""

from __future__ import annotations

import ctypes
import weakref
from array import array

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import CppBatch, squares_kernel
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.rules.program import REDUCTIONS
from compiledopt.rules.traced import Variant

DONE, NO_MEMORY = 0, -1  # what passes.cpp returns: Outcome in shared.h


def kernel(variant: Variant, dtypes: tuple[torch.dtype, ...]) -> cpp.Kernel:
    """The functions of a variant's passes. Raises: CompileError."""
    cpp.passes_driver()
    return cpp.passes_kernel(variant.passes, kernel_dtypes(dtypes))


def described(variant: Variant, dtypes: tuple[torch.dtype, ...], functions: cpp.Kernel) -> array[int]:
    """The passes as passes.cpp reads them."""
    passes, wide = variant.passes, compute_dtype(dtypes)
    words = [wide.itemsize, len(dtypes), passes.columns, passes.numbers, len(passes.buffers), *passes.buffers]
    words.append(len(passes.sweeps))
    for index, sweep in enumerate(passes.sweeps):
        words += [functions.pass_address(index), sweep.axes, len(sweep.operands)]
        for operand, dtype in zip(sweep.operands, sweep.dtypes(dtypes, wide), strict=True):
            words += [operand.kind, operand.index, operand.axes, dtype.itemsize, operand.size]
        words += [len(sweep.columns), *sweep.columns, len(sweep.reductions)]
        for reduction in sweep.reductions:
            target = reduction.target
            words += [REDUCTIONS.index(reduction.op), reduction.source, target.kind, target.index, target.axes]
    return array("q", words)


class Work:
    """The passes over parameters of known shapes: who runs which, and the memory for what is kept between passes."""

    def __init__(self, driver: cpp.Kernel, rule: array[int], shapes: bytes, places: bytes, threads: int) -> None:
        """shapes: (matrices, rows, columns, elements that no block reaches across) of each parameter, places: (number, offset),
        as int64. Raises: MemoryError, RuntimeError."""
        self.library = driver.library
        self.handle = made(driver, rule, shapes, places, threads)
        weakref.finalize(self, self.library.passes_free, self.handle).atexit = False
        size = self.library.passes_room
        size.restype = ctypes.c_int64
        self.bytes: int = size(self.handle)
        # Aligned to 64, wherever the memory begins.
        self.room = torch.empty((self.bytes + 127) // 8, dtype=torch.int64, device="cpu")

    def run(self, pointers: bytes, table: array[float], width: int, rows: bytes) -> None:
        """pointers: of each parameter's tensors; rows: of the table, one for each. Mutates: those tensors."""
        room = ctypes.c_void_p((self.room.data_ptr() + 63) // 64 * 64)
        self.library.passes_run(self.handle, pointers, _address(table), ctypes.c_int64(width), rows, room)


def made(driver: cpp.Kernel, rule: array[int], shapes: bytes, places: bytes, threads: int) -> ctypes.c_void_p:
    """passes.cpp's side of a Work, which passes_free frees. Raises: MemoryError, RuntimeError."""
    handle = ctypes.c_void_p()
    count, most = ctypes.c_int64(len(shapes) // 32), ctypes.c_int64(threads)
    outcome = driver.library.passes_make(_address(rule), count, shapes, places, most, ctypes.byref(handle))
    if outcome == NO_MEMORY:
        raise MemoryError("no memory for what the passes of a rule keep")
    if outcome != DONE:
        raise RuntimeError(f"the passes of a rule could not be laid out (outcome {outcome})")
    return handle


class ReducingBatch(CppBatch):
    """Parameters that share a variant of a rule and dtypes."""

    def _plan(self) -> object:
        assert isinstance(self.traced, Variant)
        self.kernel = kernel(self.traced, self.dtypes)
        if self.is_clipped:
            self.squared = squares_kernel(self.dtypes[1])
        self.driver = cpp.passes_driver()
        self.described = described(self.traced, self.dtypes, self.kernel)
        self.known: tuple[bytes, bytes, int] = (b"", b"", 0)  # the shapes, places and threads that `work` is for
        return self._native_plan(0, self.dtypes)

    @property
    def steady(self) -> None:
        return None

    def prepare(self) -> bool:
        """Read and check every tensor, and take the memory for what is kept between passes; nothing is written."""
        if not super().prepare():
            return False
        known = (self.native.shapes(), self.native.places(), torch.get_num_threads())
        if known != self.known:
            self.work, self.known = Work(self.driver, self.described, *known), known
        self.pointers, _, self.row_of, _ = self.native.tables()
        return True

    def _run(self) -> None:
        self.native.hold()  # the call lets the GIL go
        self.work.run(self.pointers, self.table, len(self.table) // max(1, len(self.rows)), self.row_of)
        self.native.commit(self.table)


def _address(numbers: array[float] | array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(numbers.buffer_info()[0])
