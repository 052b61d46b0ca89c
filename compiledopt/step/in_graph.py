"""The step as one operator of a graph, for torch.compile(fullgraph=True).

Without fullgraph a step breaks the graph and runs as it is: at 300 tensors that costs a sixth of what the operator does, with
two guarded inputs for each of them (perf/around.py, the lines "compile").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import is_
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Stepper(Protocol):
    """An optimizer."""

    param_groups: list[dict[str, Any]]
    _traceable: list[Tensor]

    def _update(self) -> None: ...


_numbers = itertools.count()
_known: WeakValueDictionary[int, Any] = WeakValueDictionary()


def register(optimizer: Stepper) -> int:
    """A number by which the operator finds the optimizer; it keeps nothing alive."""
    number = next(_numbers)
    _known[number] = optimizer
    return number


def _step(optimizer: int, params: Sequence[Tensor], grads: Sequence[Tensor], where: Sequence[int]) -> None:
    """params: those with gradients, at the places `where` among all; a graph may give copies, and takes them back."""
    stepper = _known[optimizer]
    every = [param for group in stepper.param_groups for param in group["params"]]
    if len(every) != len(stepper._traceable) or not all(map(is_, every, stepper._traceable)):
        raise RuntimeError(
            "parameters of the optimizer were exchanged since its step was compiled into a graph; add them with "
            "add_param_group, or call torch.compiler.reset() and optimizer.load_state_dict(optimizer.state_dict())"
        )
    kept = [param.grad for param in every]
    own = [every[place] for place in where]
    given = [(mine, other) for mine, other in zip(own, params, strict=True) if mine.data_ptr() != other.data_ptr()]
    try:
        for param in every:
            param.grad = None
        for param, grad in zip(own, grads, strict=True):
            param.grad = grad
        _copy(given)
        stepper._update()
        _copy([(other, mine) for mine, other in given])
    finally:
        for param, grad in zip(every, kept, strict=True):
            param.grad = grad


@torch.no_grad()
def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source)


def _nothing(optimizer: int, params: Sequence[Tensor], grads: Sequence[Tensor], where: Sequence[int]) -> None:
    """What the operator does to tensors without data."""


_operator = torch.library.custom_op(
    "compiledopt::step",
    _step,
    mutates_args=("params",),
    schema="(int optimizer, Tensor(a!)[] params, Tensor[] grads, int[] where) -> ()",
    # mode="reduce-overhead" must leave it out of its graphs: what a step keeps from one call to the next (states, tables)
    # would lie in their memory, which torch refuses, and numbers would be those of the recording.
    tags=(torch.Tag.cudagraph_unsafe,),
)
_operator.register_fake(_nothing)


def step_in_graph(every: Sequence[Tensor], number: int) -> None:
    """Record the step of a registered optimizer with these parameters in the graph that is being traced."""
    where = [place for place, param in enumerate(every) if param.grad is not None]
    params = [every[place] for place in where]
    torch.ops.compiledopt.step(number, params, [param.grad for param in params], where)
