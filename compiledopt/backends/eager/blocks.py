"""Tensors as blocks of neighbours along the last dimension, for programs that keep values in blocks (storage/)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compiledopt.errors import CompileError
from compiledopt.rules.program import BLOCKS


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
