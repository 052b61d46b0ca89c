"""How a parameter is cut into blocks (storage/): its rows, which are all dimensions but the first, one after the other, each
from its beginning, so that shards of the first dimension cut no block. A vector is one row."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from compiledopt.errors import CompileError
from compiledopt.rules.program import BLOCKS, PACKED


def rows_of(shape: torch.Size) -> tuple[int, int]:
    """(rows, elements of each) of a parameter of this shape."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def scales_of(shape: torch.Size, size: int) -> tuple[int, int]:
    """The shape of the scales: rows, and blocks of each."""
    rows, row = rows_of(shape)
    return rows, -(-row // size)


def packed_shape(shape: torch.Size) -> tuple[int, int]:
    """The shape of codes of 4 bits: rows, and bytes of each."""
    rows, row = rows_of(shape)
    return rows, -(-row // 2)


class Blocks:
    """The cut of a parameter of this shape. sizes: {operand: elements of a block} of the scales and of the codes of 4 bits."""

    def __init__(self, shape: torch.Size, sizes: Mapping[str, int]) -> None:
        self.shape, self.sizes, self.size = shape, sizes, max(sizes.values())
        self.rows, self.row = rows_of(shape)
        self.count = -(-self.row // self.size)
        odd = [size for size in sizes.values() if self.size % size]
        if odd:
            raise CompileError(f"values are kept in blocks of {odd[0]} and of {self.size}, which is no multiple of it")

    def into(self, tensor: torch.Tensor, axes: int, name: str = "") -> torch.Tensor:
        """(rows, blocks, elements of a block); scales of the largest blocks have one element for each, others one for each
        element."""
        if axes == BLOCKS:
            size = self.sizes[name]
            if size == self.size:
                return tensor.reshape(self.rows, self.count, 1)
            tensor = tensor.reshape(self.rows, -(-self.row // size)).repeat_interleave(size, 1)[:, : self.row]
        elif axes == PACKED:
            tensor = self._unpacked(tensor, self.sizes[name])
        rows, lacking = tensor.reshape(self.rows, self.row), self.count * self.size - self.row
        if lacking:  # by what is there: a rule may make something large of zeros, which would count for the scale
            rows = torch.cat([rows, rows[:, -1:].expand(self.rows, lacking)], 1)
        return rows.reshape(self.rows, self.count, self.size)

    def back(self, value: torch.Tensor, axes: int, name: str = "") -> torch.Tensor:
        """The other direction. axes: of the operand that it is for."""
        if axes == BLOCKS:
            size = self.sizes[name]
            each = value.expand(self.rows, self.count, self.size)[..., ::size]
            return each.reshape(self.rows, self.count * (self.size // size))[:, : -(-self.row // size)]
        rows = value.reshape(self.rows, self.count * self.size)[:, : self.row]
        return self._packed(rows, self.sizes[name]) if axes == PACKED else rows.reshape(self.shape)

    def _unpacked(self, packed: torch.Tensor, size: int) -> torch.Tensor:
        """(rows, elements) of codes of 4 bits: a byte holds one of the first half of its block and one of the second."""
        half, whole = size // 2, self.row // size
        packed = packed.reshape(self.rows, -(-self.row // 2))
        head, tail = packed[:, : whole * half].reshape(self.rows, whole, half), packed[:, whole * half :]
        blocks = torch.cat([head & 15, head >> 4], -1).reshape(self.rows, whole * size)
        rest = self.row - whole * size
        return torch.cat([blocks, tail & 15, (tail >> 4)[:, : rest // 2]], 1)

    def _packed(self, rows: torch.Tensor, size: int) -> torch.Tensor:
        half, whole = size // 2, self.row // size
        codes = rows.to(torch.uint8)
        head, tail = codes[:, : whole * size].reshape(self.rows, whole, 2, half), codes[:, whole * size :]
        low, high = tail.tensor_split([-(-tail.shape[1] // 2)], 1)
        high = torch.nn.functional.pad(high, (0, low.shape[1] - high.shape[1]))
        return torch.cat([(head[:, :, 0] | head[:, :, 1] << 4).reshape(self.rows, whole * half), low | high << 4], 1)
