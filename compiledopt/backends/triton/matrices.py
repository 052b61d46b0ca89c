"""Rules with a function of whole matrices, on a GPU (backends/matrices.py): products by cuBLAS, or by a kernel where half of a
symmetric result is faster."""

from __future__ import annotations

from functools import partial

import torch

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.matrices import MatrixBatch, MatrixWave
from compiledopt.backends.triton.symmetric import SymmetricProducts, is_possible
from compiledopt.backends.waves import MakeBatch
from compiledopt.rules.matrix_program import MatrixProgram


class DeviceWave(MatrixWave):
    """Who takes the symmetric products is decided when it is made, on the memory of its stacks."""

    def __init__(
        self,
        entries: list[Entry],
        context: Context,
        program: MatrixProgram,
        make: MakeBatch,
        memory: torch.Tensor,
        more: torch.Tensor,
    ) -> None:
        super().__init__(entries, context, program, make, memory, more)
        if not is_possible(memory.device, memory.dtype):
            return
        self.by = products = SymmetricProducts()
        for stack in self.stacks:
            stack.fit(stack.count, program.function, more)
            if stack.active:
                matrices, room = stack.run
                products.decide(partial(program.function, matrices, *program.arguments, room=room))


class DeviceMatrices(MatrixBatch):
    wave = DeviceWave
