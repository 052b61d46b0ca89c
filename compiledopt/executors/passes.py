"""Rules that reduce, on the CPU: one native call runs their passes over all parameters, in place (compiler/passes.py)."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compiledopt.compiler import cpp
from compiledopt.compiler.inductor import compute_dtype
from compiledopt.compiler.program import REDUCTIONS
from compiledopt.compiler.programs import Variant
from compiledopt.executors.clipping import Measured
from compiledopt.executors.entries import Entry, check_gradient, check_state

Groups = Sequence[Mapping[str, Any]]
Row = tuple[int, float, tuple[float, ...]]  # index of the group, first, 0-dim states


def dtypes_of(entry: Entry, variant: Variant) -> tuple[torch.dtype, ...]:
    """Of the operands of a parameter's update, as they are or will be."""
    param = entry.param
    grad = param if param.grad is None else param.grad
    states = (entry.state.get(name) for name in variant.states)
    return (param.dtype, grad.dtype, *(param.dtype if state is None else state.dtype for state in states))


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


def shape_of(param: torch.Tensor, flat: bool) -> tuple[int, int, int]:
    """A parameter as matrices of rows and columns; flat: as one row."""
    if flat or param.dim() < 2:
        return 1, 1, param.numel()
    return param.shape[:-2].numel(), param.shape[-2], param.shape[-1]


class PassesBatch(Measured):
    """Parameters that share a variant of a rule and dtypes."""

    executor = "compiled"

    def __init__(self, entries: list[Entry], groups: Groups, owner: str) -> None:
        self.entries, self.groups, self.owner = entries, groups, owner
        variant = entries[0].traced.variant(entries[0].param)
        assert isinstance(variant, Variant)
        self.variant = variant
        self.dtypes = dtypes_of(entries[0], variant)
        self.flat = variant.passes.is_flat
        self.kernel = kernel(variant, self.dtypes)
        self.driver = cpp.passes_driver()
        self.plan = described(variant, self.dtypes, self.kernel)
        self.known: tuple[array[int], int] = (array("q"), 0)  # the shapes and threads that `room` was taken for
        self.room = torch.empty(0, dtype=torch.int64)

    def prepare(self) -> bool:
        """Read and check every tensor; nothing is written. False: the plan no longer fits."""
        self.active: list[Entry] = []
        self.work: list[list[torch.Tensor]] = []
        self.copied: list[list[torch.Tensor]] = []
        rows: dict[Row, int] = {}
        self.indices = array("q")
        for entry in self.entries:
            param, grad, state = entry.param, entry.param.grad, entry.state
            if grad is None:
                continue
            check_gradient(entry.traced, param, grad, self.owner)
            check_state(entry, self.owner)
            tensors = [param, grad, *[state[name] for name in self.variant.states]]
            if tuple([tensor.dtype for tensor in tensors]) != self.dtypes or any(one.is_inference() for one in tensors):
                return False
            values = tuple([float(state[name]) for name in entry.traced.scalar_names])
            row = (entry.group, float(entry.first), values)
            self.indices.append(rows.setdefault(row, len(rows)))
            self.active.append(entry)
            self.work.append(tensors)
            self.copied.append([tensor if is_plain(tensor) else plain(tensor) for tensor in tensors])
        self.rows = list(rows)
        self.renew()
        self._take_room()
        return True

    def _take_room(self) -> None:
        """The memory for what is kept between passes, before anything is written."""
        self.filled = [i for i, entry in enumerate(self.active) if entry.param.numel()]
        shapes = array("q", [size for i in self.filled for size in shape_of(self.active[i].param, self.flat)])
        if (shapes, torch.get_num_threads()) != self.known:
            self.known = (shapes, torch.get_num_threads())
            self.room = torch.empty((self._call("passes_room") + 127) // 8, dtype=torch.int64)

    def _call(self, name: str, *more: ctypes.c_void_p) -> int:
        function, (shapes, threads) = getattr(self.driver.library, name), self.known
        function.restype = ctypes.c_int64
        numbers = ctypes.c_int64(len(shapes) // 3), _address(shapes), ctypes.c_int64(threads)
        result: int = function(_address(self.plan), *numbers, *more)
        if result < 0:
            raise MemoryError(f"{self.owner}: no memory for what is kept between the passes of {self.variant.program.rule}")
        return result

    def renew(self) -> None:
        self.table = array("d")
        self.fresh: list[list[float]] = []
        for group, first, states in self.rows:
            columns, fresh = self.variant.scalars(self.groups[group], (first, *states))
            self.table.extend(columns)
            self.fresh.append(fresh)

    def refresh(self) -> None:
        """Nothing is on the device."""

    def launch(self) -> None:
        pointers = array("q", [tensor.data_ptr() for i in self.filled for tensor in self.copied[i]])
        indices = array("q", [self.indices[i] for i in self.filled])
        room = ctypes.c_void_p((self.room.data_ptr() + 63) // 64 * 64)
        self._call("run_passes", _address(pointers), _address(self.table), _address(indices), room)
        self._commit()

    def _commit(self) -> None:
        """Bring copies home, sign what was written to, and write the new 0-dim states."""
        program = self.variant.program
        written = [i for i, node in enumerate(program.tensors) if node.name in program.tensor_outputs]
        torch.autograd.graph.increment_version([tensors[i] for tensors in self.work for i in written])
        with torch.no_grad():
            for tensors, copies in zip(self.work, self.copied, strict=True):
                for i in written:
                    if copies[i] is not tensors[i]:
                        tensors[i].copy_(copies[i])
            for entry, index in zip(self.active, self.indices, strict=True):
                entry.first = False
                for name, value in zip(entry.traced.scalar_names, self.fresh[index], strict=True):
                    entry.state[name].fill_(value)
        self.work, self.copied = [], []


def is_plain(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_neg()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy laid out row after row."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor.detach())


def _address(numbers: array[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(numbers.buffer_info()[0])
