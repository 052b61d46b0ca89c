"""Products of matrices that round once, one by one, in stacks, and where the sum stands; and functions of whole matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiledopt.rules.pieces import Runner, run_by, runner
from compiledopt.torch_private import stacked_again, unstacked

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

    def __call__(self, x: Any, *arguments: Any, room: Room | None = None, by: Runner | None = None) -> Any:
        """by: who may write the products whose results are symmetric, where there is room for them."""
        if hasattr(x, "tracer"):
            return x.tracer.whole(self, x, arguments)
        stack, level = unstacked(x)  # once, and not at each of its products: eight times as fast on 8 × 8 matrices
        with run_by(by):
            return stacked_again(self.function(stack, *arguments, room), level)


def whole_matrices(
    shapes: Callable[[int, int], Sequence[tuple[int, int]]],
) -> Callable[[Callable[..., Tensor]], WholeMatrices]:
    """Make a function of whole matrices of a function (x, *arguments, room); see `WholeMatrices`."""
    return lambda function: WholeMatrices(function, shapes)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left·right, of matrices or of stacks of them. out: where a stack goes."""
    if out is not None:
        return torch.bmm(left, right, out=out)
    one = runner()
    found = one.product(left, right) if one is not None and isinstance(left, Tensor) and isinstance(right, Tensor) else None
    return left @ right if found is None else found


def gram_matrix(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x·xᵀ, which is symmetric. out: where a stack goes."""
    return out if out is not None and _writes(x, None, 0.0, 1.0, out) else product(x, x.mT, out)


def add_square(x: Tensor, beta: Any, alpha: Any, out: Tensor | None = None) -> Tensor:
    """β·x + α·x·x of a symmetric x, which is symmetric; rounded as by `add_product`. out: where a stack goes."""
    return out if out is not None and _writes(x, x, beta, alpha, out) else add_product(x, x, x, beta, alpha, out)


def _writes(x: Tensor, total: Tensor | None, beta: Any, alpha: Any, out: Tensor) -> bool:
    one = runner()
    return one is not None and one.write_symmetric(x, total, beta, alpha, out)


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
    (home, level), *factors = map(unstacked, (total, left, right))
    if any(other != level or factor.dim() != home.dim() for factor, other in factors):
        return beta * total + alpha * (left @ right)  # type: ignore[no-any-return]
    function = torch.addmm if home.dim() == 2 else torch.baddbmm
    return stacked_again(function(home, *(factor for factor, _ in factors), beta=beta, alpha=alpha), level)
