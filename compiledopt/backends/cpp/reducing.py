"""Rules that reduce, on the CPU: one native call runs their passes over all parameters, in place (rules/reductions.py)."""

from __future__ import annotations

import ctypes
from array import array

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import CppBatch, squares_kernel, totals_kernel
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.rules.program import REDUCTIONS
from compiledopt.rules.traced import Variant


def kernel(variant: Variant, dtypes: tuple[torch.dtype, ...]) -> cpp.Kernel:
    """The functions of a variant's passes. Raises: CompileError."""
    cpp.passes_driver()
    return cpp.passes_kernel(variant.passes, kernel_dtypes(dtypes))


def described(variant: Variant, dtypes: tuple[torch.dtype, ...], functions: cpp.Kernel) -> array[int]:
    """The passes as passes/rule.h reads them."""
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


def passes(rule: array[int]) -> tuple[int, int, int, int, bytes]:
    """What a plan of the launcher runs in a kernel's place: the addresses of passes.cpp's functions, and the rule. Raises:
    CompileError."""
    library = cpp.passes_driver().library
    make, room, run, free = (
        ctypes.cast(getattr(library, f"passes_{name}"), ctypes.c_void_p).value or 0 for name in ("make", "room", "run", "free")
    )
    return make, room, run, free, rule.tobytes()


class ReducingBatch(CppBatch):
    """Parameters that share a variant of a rule and dtypes."""

    def _plan(self) -> object:
        assert isinstance(self.traced, Variant)
        self.kernel = kernel(self.traced, self.dtypes)
        if self.is_clipped:
            self.squared = squares_kernel(self.dtypes[1])
        self.summing = [totals_kernel(measure, self.dtypes) for measure in self.traced.measures]
        return self._native_plan(0, self.dtypes, passes=passes(described(self.traced, self.dtypes, self.kernel)))
