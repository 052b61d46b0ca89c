"""Rules that reduce, on the CPU: one native call runs their passes over all parameters, in place (rules/reductions.py)."""

from __future__ import annotations

import ctypes
from array import array

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import CppBatch
from compiledopt.backends.distributed import local
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.rules.program import REDUCTIONS
from compiledopt.rules.traced import Traced, Variant


def kernel(variant: Variant, dtypes: tuple[torch.dtype, ...]) -> cpp.Kernel:
    """The functions of a variant's passes. Raises: CompileError."""
    cpp.passes_driver()
    return cpp.passes_kernel(variant.passes, kernel_dtypes(dtypes))


def lies_otherwise(runs: Traced | Variant, param: torch.Tensor) -> str | None:
    """Why passes over blocks of rows do not go over a parameter as it lies in memory, or None."""
    if not isinstance(runs, Variant) or not runs.program.blocks or local(param).is_contiguous():
        return None
    return f"{runs.told}, its states are in blocks of a row, and a parameter does not lie row after row"


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

    def _kernel_plan(self) -> object:
        assert isinstance(self.traced, Variant)
        self.kernel = kernel(self.traced, self.dtypes)
        return self._native_plan(0, self.dtypes, passes=passes(described(self.traced, self.dtypes, self.kernel)))
