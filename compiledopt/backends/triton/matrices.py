"""Rules with a function of whole matrices, on a GPU (backends/matrices.py): products by cuBLAS, or by a kernel where half of a
symmetric result is faster."""

from __future__ import annotations

from functools import partial

from compiledopt.backends.matrices import MatrixBatch, MatrixWave
from compiledopt.backends.triton.symmetric import SymmetricProducts, is_possible
from compiledopt.rules.pieces import Runner


class DeviceWave(MatrixWave):
    def who_multiplies(self) -> Runner | None:
        if not is_possible(self.more.device, self.more.dtype):
            return None
        products, program = SymmetricProducts(), self.program
        for stack in self.stacks:
            stack.fit(stack.count, program.function, self.more)
            if stack.active:
                matrices, room = stack.run
                products.decide(partial(program.function, matrices, *program.arguments, room=room))
        return products


class DeviceMatrices(MatrixBatch):
    wave = DeviceWave
