"""A program by torch's operators on one parameter, in blocks and with random bits where it has those (storage/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Entry
from compiledopt.backends.distributed import is_distributed
from compiledopt.backends.inductor import Bits, compute_dtype, evaluate
from compiledopt.backends.layout import as_real, is_dense
from compiledopt.errors import CompileError
from compiledopt.rules.options import STEP
from compiledopt.rules.program import BLOCKS, ELEMENTS
from compiledopt.rules.random import bits_at, key


class Blocks:
    """How a parameter is cut: its rows, all dimensions but the first, one after the other, each filled up with zeros."""

    def __init__(self, param: torch.Tensor, sizes: Sequence[int]) -> None:
        if len(sizes) != 1:
            raise CompileError(f"values are kept in blocks of {' and of '.join(map(str, sizes))}, and one size is possible")
        self.size, self.shape, self.rows = sizes[0], param.shape, param.shape[0]
        self.row = param.numel() // max(1, self.rows)
        self.count = -(-self.row // self.size)

    def into(self, tensor: torch.Tensor, axes: int) -> torch.Tensor:
        """(rows, blocks, elements of a block); scales have one element for each block."""
        if axes == BLOCKS:
            return tensor.reshape(self.rows, self.count, 1)
        rows = tensor.reshape(self.rows, self.row)
        filled = torch.nn.functional.pad(rows, (0, self.count * self.size - self.row))
        return filled.reshape(self.rows, self.count, self.size)

    def back(self, value: torch.Tensor, axes: int) -> torch.Tensor:
        if axes == BLOCKS:
            return value.reshape(self.rows, self.count)
        return value.reshape(self.rows, self.count * self.size)[:, : self.row].reshape(self.shape)


def new_values(entry: Entry, tensors: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What an elementwise rule writes, in the order of its program. tensors: its operands; numbers: its columns, float64."""
    program = entry.traced.program
    wide = compute_dtype([tensor.dtype for tensor in tensors])
    given, columns = [tensor.to(wide, copy=True) for tensor in tensors], [number.to(wide) for number in numbers]
    cut = Blocks(entry.param, program.blocks) if program.blocks else None
    if cut is None:
        return evaluate(program, given, columns, False, bits_of(entry))
    given = [cut.into(tensor, node.axes) for node, tensor in zip(program.tensors, given, strict=True)]
    found = evaluate(program, given, columns, False, bits_of(entry, cut))
    return [cut.back(value, node.axes) for node, value in zip(program.tensor_outputs.values(), found, strict=True)]


def noise_bits(entry: Entry, seed: Any) -> torch.Tensor:
    """32 random bits for each element of a parameter at its next update, for rules that are called on tensors."""
    device = entry.param.device
    given = [value if isinstance(value, torch.Tensor) else torch.full((), value) for value in (seed, entry.state[STEP])]
    bits = bits_of(entry)(*(value.reshape(()).to(device, torch.float64) for value in given))
    return bits.reshape(1) if bits.dim() == 0 else bits  # as the operands


def bits_of(entry: Entry, cut: Blocks | None = None) -> Bits:
    """The random bits of a parameter, or of the part of it that is here."""

    def bits(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        param, device = as_real(entry.param), entry.param.device
        number = torch.full((), entry.number, dtype=torch.int64, device=device)
        element = torch.arange(param.numel(), dtype=torch.int32, device=device) + entry.offset
        if not is_distributed(param) and is_dense(param):  # in the order of memory, as kernels count them
            element = element.as_strided(param.shape, param.stride())
        element = element.reshape(param.shape)
        element = element if cut is None else cut.into(element, ELEMENTS)
        return bits_at(key(seed.to(torch.int64), step.to(torch.int64), number), element)

    return bits
