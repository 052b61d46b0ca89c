"""SM3."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _along(index: int) -> Callable[[Tensor], Tensor | None]:
    """A state of one number for each index of a dimension; dimension 0 of a number is the number."""

    def make(param: Tensor) -> Tensor | None:
        shape = [size if dim == index else 1 for dim, size in enumerate(param.shape)]
        return param.new_zeros(shape) if index < max(param.dim(), 1) else None

    return make


@rule(
    optional={"momentum_buffer": "momentum"},
    initial={f"accumulator_{index}": _along(index) for index in range(4)},
    branches=("momentum", "beta"),
    elementwise=False,
)
@with_maximize
def sm3(param, grad, momentum_buffer, accumulator_0, accumulator_1, accumulator_2, accumulator_3, *, lr, momentum, beta, eps):
    kept = [one for one in (accumulator_0, accumulator_1, accumulator_2, accumulator_3) if one is not None]
    bound = functools.reduce(torch.minimum, kept)
    bound = (beta * bound if beta != 0 else bound) + (1 - beta) * grad * grad
    update = grad * (bound + eps).rsqrt()
    if momentum != 0:
        update = momentum_buffer = momentum_buffer.lerp(update, 1 - momentum)
    for index, old in enumerate(kept):
        others = tuple(dim for dim in range(param.ndim) if dim != index)
        largest = bound.amax(dim=others, keepdim=True) if others else bound
        kept[index] = torch.maximum(old, largest) if beta != 0 else largest
    return param - lr * update, momentum_buffer, *kept, *(None,) * (4 - len(kept))


class SM3(Optimizer):
    """SM3: Adagrad with one sum of squares for each row and each column, and so for every dimension.

        ν = min over dimensions of their accumulators + g², or with beta  β·min + (1 − β)·g²;  u = g / √(ν + ε)
        accumulator of a dimension ← max of ν over all others (and of its old value, with beta);  θ ← θ − γ·u
        with momentum  b ← μ·b + (1 − μ)·u;  θ ← θ − γ·b

    beta (β): float; 0 is Adagrad's sum.
    State: `accumulator_0` and so on, one number for each index of each dimension, and `momentum_buffer` (b), like the
        parameter, where momentum is not 0. Parameters of up to 4 dimensions.
    Good for: embeddings and language models where even a momentum is too much memory.
    Start: lr 0.1 with a warm-up, momentum 0.9 where there is room.
    Names: pytorch_optimizer's, which are those of Enealor/PyTorch-SM3.
    Source: Anil et al. 2019, arXiv:1901.11150.
    """

    rule = sm3
    bounds = (*BOUNDS, *(Bound(name, f"Invalid {name} value", below=1.0) for name in ("momentum", "beta")))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-1,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = 1e-30,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for param in group["params"]:
            if param.ndim > 4:
                raise ValueError(f"SM3 takes parameters of up to 4 dimensions, got one of size {tuple(param.shape)}")
