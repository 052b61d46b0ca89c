"""Products of matrices that round once, one by one, in stacks, and where the sum stands; and functions of whole matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiledopt.rules.pieces import runner
from compiledopt.torch_private import is_stacked

Room = Sequence[Tensor]


class WholeMatrices:
    """A function of matrices that no kernel is made of, as products are: what a rule computes before it and after it may be
    compiled.

    function(x, *arguments, room): the result has the shape and dtype of x. room: None; or memory of the shapes that `shapes`
    gives for (rows, columns), and then the result is written to x. x has any number of dimensions before its rows and columns,
    and so has the memory.
    """

    def __init__(self, function: Callable[..., Tensor], shapes: Callable[[int, int], Sequence[tuple[int, int]]]) -> None:
        self.function, self.shapes = function, shapes
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, x: Any, *arguments: Any, room: Room | None = None) -> Any:
        if hasattr(x, "tracer"):
            return x.tracer.whole(self, x, arguments)
        return self.function(x, *arguments, room)


def whole_matrices(
    shapes: Callable[[int, int], Sequence[tuple[int, int]]],
) -> Callable[[Callable[..., Tensor]], WholeMatrices]:
    """Make a function of whole matrices of a function (x, *arguments, room); see `WholeMatrices`."""
    return lambda function: WholeMatrices(function, shapes)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left·right, of matrices or of stacks of them."""
    return left @ right if out is None else torch.bmm(left, right, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any, out: Tensor | None = None) -> Tensor:
    """β·total + α·left·right, rounded once where β and α are plain numbers, or who runs the rule can read them. out: where a
    stack goes, which may be that of `total`.

    torch.vmap takes addmm apart, so that it is rounded three times: twice the error of torch's Muon after five iterations in
    bfloat16, and a quarter more time.
    """
    if out is not None:
        return torch.baddbmm(total, left, right, beta=beta, alpha=alpha, out=out)
    # A transformation has a stand-in for the parameter, which may be in the gradient too.
    one, there = runner(), all(isinstance(each, Tensor) for each in (total, left, right))
    found = one.add_product(total, left, right, beta, alpha) if one is not None and there else None
    if found is not None:
        return found
    if not there or isinstance(beta, Tensor) or isinstance(alpha, Tensor):
        return beta * total + alpha * (left @ right)  # type: ignore[no-any-return]
    if not is_stacked(total):
        return torch.addmm(total, left, right, beta=beta, alpha=alpha)
    result: Tensor = _AddProduct.apply(total, left, right, beta, alpha)  # type: ignore[no-untyped-call]
    return result


class _AddProduct(torch.autograd.Function):
    """What torch.vmap makes of it is said here."""

    @staticmethod
    def forward(total: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
        product = torch.addmm if total.dim() == 2 else torch.baddbmm
        return product(total, left, right, beta=beta, alpha=alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: a step is not differentiated."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        stacks = [tensor.movedim(dim, 0) for tensor, dim in zip(given[:3], in_dims[:3], strict=True)]
        return _AddProduct.apply(*stacks, *given[3:]), 0  # type: ignore[no-untyped-call]
