"""Pieces of rules that are not elementwise, each one pass over memory (rules/pieces.py)."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compiledopt.backends.cpp import kernels
from compiledopt.backends.eager.in_place import InPlace, as_number
from compiledopt.backends.layout import is_dense, same_layout
from compiledopt.errors import CompileError
from compiledopt.rules.pieces import Numbers, Piece
from compiledopt.rules.program import Program
from compiledopt.rules.scalars import scalar_function
from compiledopt.torch_private import stacked_again, unstacked

MOST = 16  # operands: kMostPieceOperands in pieces.cpp
Dtypes = tuple[torch.dtype, ...]


@dataclass(frozen=True)
class Made:
    """The kernel of a piece under its flags, for tensors of these dtypes. sizes: bytes of an element, of each operand."""

    program: Program
    kernel: kernels.Kernel
    sizes: array[int]
    scalars: Any

    def columns(self, numbers: Numbers) -> list[float]:
        found = {f"{name}[{i}]": one for name, many in numbers.items() if isinstance(many, tuple) for i, one in enumerate(many)}
        known = {**numbers, **found}
        return self.scalars(*[as_number(known[node.name]) for node in self.program.scalars])[0]  # type: ignore[no-any-return]


_made: dict[tuple[Program, Dtypes], Made] = {}


def make(piece: Piece, numbers: Numbers, dtypes: Dtypes) -> Made:
    """From memory, from disk, or compiled now. dtypes: of the arguments. Raises: CompileError."""
    program = piece.program(numbers)
    key = program, dtypes
    if key not in _made:
        every = (*dtypes, *(dtypes[max(0, place)] for place in piece.places))
        if len(every) > MOST:
            raise CompileError(f"{piece.name} reads and writes {len(every)} tensors, and at most {MOST} are possible")
        kernels.pieces_driver()
        kernel = kernels.kernel(program, every)
        _made[key] = Made(program, kernel, array("q", [dtype.itemsize for dtype in every]), scalar_function(program))
    return _made[key]


def known(piece: Piece, numbers: Numbers, dtypes: Dtypes) -> Made | None:
    """The kernel of a piece, where it was made. dtypes: of the arguments."""
    return _made.get((piece.program(numbers), dtypes))


class Compiled(InPlace):
    """Runs pieces by their kernels, where those were made, and tensors are of one shape."""

    has_kernels = True

    def run(self, piece: Piece, tensors: Sequence[Tensor], numbers: Numbers) -> tuple[Any, ...] | None:
        stacks, levels = zip(*map(unstacked, tensors), strict=True)
        shape, level = stacks[0].shape, levels[0]
        count = 1 if level is None else shape[0]
        made = known(piece, numbers, tuple(stack.dtype for stack in stacks))
        rows = None if made is None else _rows(made, numbers, count)
        alike = all(stack.shape == shape for stack in stacks) and all(other == level for other in levels)
        owned = [self.owns(stack) for stack in stacks]
        like = self._one(stacks[owned.index(True) if any(owned) else 0], level)
        if made is None or rows is None or not alike or not is_dense(like):
            return super().run(piece, tensors, numbers)
        given = [self._laid_like(like, stack, level) for stack in stacks]
        results = []
        for place in piece.places:
            there = place >= 0 and owned[place] and given[place] is stacks[place]
            results.append(given[place] if there else _new(like, given[max(0, place)].dtype, None if level is None else count))
        every = [self._addresses(stack, level) for stack in (*given, *results)]
        run(made, every, rows, like.numel())
        written = [one for result in results for one in self.parts(result) or (result,)]
        torch.autograd.graph.increment_version(written)
        self.written.update(map(id, results))
        return tuple(stacked_again(result, level) for result in results)

    def _one(self, stack: Tensor, level: int | None) -> Tensor:
        """The first tensor of a stack."""
        parts = None if level is None else self.parts(stack)
        return stack if level is None else stack[0] if parts is None else parts[0]

    def _laid_like(self, like: Tensor, stack: Tensor, level: int | None) -> Tensor:
        """A stack of tensors that lie in memory as one does."""
        parts = self.parts(stack)
        if all(same_layout(like, one) for one in parts or (self._one(stack, level),)):
            return stack
        source = stack if parts is None else torch.stack(list(parts))
        return _new(like, stack.dtype, None if level is None else len(stack)).copy_(source)

    def _addresses(self, stack: Tensor, level: int | None) -> list[int]:
        if (parts := self.parts(stack)) is not None:
            return [tensor.data_ptr() for tensor in parts]
        start = stack.data_ptr()
        if level is None:
            return [start]
        step = stack.stride(0) * stack.element_size()
        return [start + i * step for i in range(len(stack))]


def _new(like: Tensor, dtype: torch.dtype, count: int | None) -> Tensor:
    """Room for a tensor that lies in memory as one does, or for a stack of such."""
    if count is None:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty_strided((count, *like.shape), (like.numel(), *like.stride()), dtype=dtype, device=like.device)


def _rows(made: Made, numbers: Numbers, count: int) -> list[list[float]] | None:
    """The columns, in a row for each of a stack where a number is another for each; None for what is no number."""
    parted: dict[str, list[float]] = {}
    plain = dict(numbers)
    for name, value in numbers.items():
        if isinstance(value, Tensor):
            stack, level = unstacked(value)
            if stack.numel() != (1 if level is None else count):
                return None
            if level is not None:
                parted[name] = stack.flatten().tolist()
            else:
                plain[name] = stack.item()
    if not parted:
        return [made.columns(plain)]
    return [made.columns({**plain, **{name: values[i] for name, values in parted.items()}}) for i in range(count)]


def run(made: Made, addresses: Sequence[list[int]], rows: list[list[float]], length: int) -> None:
    """Run a kernel on tensors of this length, with a row of columns for each of a stack, or one for all."""
    count, width = len(addresses[0]), len(rows[0]) if len(rows) > 1 else 0
    pointers = array("Q", [address for each in zip(*addresses, strict=True) for address in each])
    table = array("d", [value for row in rows for value in row] or [0.0])
    where, sizes, columns = (ctypes.c_void_p(one.buffer_info()[0]) for one in (pointers, made.sizes, table))
    numbers = map(ctypes.c_int64, (len(addresses), count, length))
    more = map(ctypes.c_int64, (width, torch.get_num_threads()))
    kernels.pieces_driver().library.pieces_run(ctypes.c_void_p(made.kernel.address), where, sizes, *numbers, columns, *more)
