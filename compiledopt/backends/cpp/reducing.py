"""Rules that reduce, on the CPU: one native call runs their passes over all parameters, in place (rules/reductions.py)."""

from __future__ import annotations

import ctypes
from array import array

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import CppBatch
from compiledopt.backends.inductor import compute_dtype
from compiledopt.rules.program import REDUCTIONS
from compiledopt.rules.traced import Variant


def kernel(variant: Variant, dtypes: tuple[torch.dtype, ...]) -> cpp.Kernel:
    """The functions of a variant's passes. Raises: CompileError."""
    cpp.passes_driver()
    return cpp.passes_kernel(variant.passes, dtypes)


def described(variant: Variant, dtypes: tuple[torch.dtype, ...], functions: cpp.Kernel) -> array[int]:
    """The passes as passes.cpp reads them."""
    passes, wide = variant.passes, compute_dtype(dtypes)
    words = [wide.itemsize, len(dtypes), passes.columns, passes.numbers, len(passes.buffers), *passes.buffers]
    words.append(len(passes.sweeps))
    for index, sweep in enumerate(passes.sweeps):
        words += [functions.pass_address(index), sweep.axes, len(sweep.operands)]
        for operand, dtype in zip(sweep.operands, sweep.dtypes(dtypes, wide), strict=True):
            words += [operand.kind, operand.index, operand.axes, dtype.itemsize]
        words += [len(sweep.columns), *sweep.columns, len(sweep.reductions)]
        for reduction in sweep.reductions:
            target = reduction.target
            words += [REDUCTIONS.index(reduction.op), reduction.source, target.kind, target.index, target.axes]
    return array("q", words)


class ReducingBatch(CppBatch):
    """Parameters that share a variant of a rule and dtypes."""

    def _plan(self) -> object:
        assert isinstance(self.traced, Variant)
        self.kernel = kernel(self.traced, self.dtypes)
        if self.is_clipped:
            self.squared = cpp.squares_kernel(self.dtypes[1])
        self.driver = cpp.passes_driver()
        self.described = described(self.traced, self.dtypes, self.kernel)
        self.known: tuple[bytes, int] = (b"", 0)  # the shapes and threads that `room` was taken for
        self.room = torch.empty(0, dtype=torch.int64, device="cpu")
        return self._native_plan(0, self.dtypes)

    def prepare(self) -> bool:
        """Read and check every tensor, and take the memory for what is kept between passes; nothing is written."""
        if not super().prepare():
            return False
        known = (self.native.shapes(), torch.get_num_threads())
        if known != self.known:
            words = (self._call("passes_room", known) + 127) // 8
            self.room = torch.empty(words, dtype=torch.int64, device="cpu")
            self.known = known
        return True

    def _call(self, name: str, known: tuple[bytes, int], *more: object) -> int:
        function, (shapes, threads) = getattr(self.driver.library, name), known
        function.restype = ctypes.c_int64
        numbers = ctypes.c_int64(len(shapes) // 24), shapes, ctypes.c_int64(threads)
        result: int = function(_address(self.described), *numbers, *more)
        if result < 0:
            raise MemoryError(f"no memory for what is kept between the passes of {self.traced.rule.name}")
        return result

    def _run(self) -> None:
        # Another thread may take gradients away while the call lets the GIL go.
        held = [entry.param.grad for entry in self.entries]
        pointers, _, rows, _ = self.native.tables()
        width = ctypes.c_int64(len(self.table) // max(1, len(self.rows)))
        room = ctypes.c_void_p((self.room.data_ptr() + 63) // 64 * 64)
        self._call("run_passes", self.known, pointers, _address(self.table), width, rows, room)
        self.native.commit(self.table)
        del held


def _address(numbers: array[float] | array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(numbers.buffer_info()[0])
