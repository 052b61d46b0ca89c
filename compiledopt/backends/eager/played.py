"""What was written down of a rule (tape.py), done again: pieces by their kernels, products one by one, and torch's operations
on stacks of what stands in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compiledopt.backends.cpp import pieces
from compiledopt.rules.pieces import Piece


class Parts:
    """A tensor for each parameter: each of them, or the stack that they stand in, and the other made of that when it is asked
    for."""

    def __init__(self, each: Sequence[Tensor] | None = None, stack: Tensor | None = None) -> None:
        self._each, self._stack = each, stack

    @property
    def each(self) -> Sequence[Tensor]:
        if self._each is None:
            assert self._stack is not None
            self._each = self._stack.unbind()
        return self._each

    @property
    def stack(self) -> Tensor | None:
        """None where there is none."""
        if self._stack is None and self._each is not None and len(self._each) == 1:
            self._stack = self._each[0].unsqueeze(0)
        return self._stack

    def seen(self, shape: tuple[int, ...], stride: tuple[int, ...]) -> Parts:
        return Parts([one.as_strided(shape, stride) for one in self.each])


@dataclass(frozen=True)
class Seen:
    """A tensor by its place on a tape; as: (shape, stride) where it is seen in another way."""

    place: int
    way: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def of(self, tensors: Sequence[Parts]) -> Parts:
        found = tensors[self.place]
        return found if self.way is None else found.seen(*self.way)


class Number(int):
    """A place among the numbers of a tape."""


@dataclass(frozen=True)
class Operation:
    """One of torch's. args, named: its arguments, with `Seen` for those of its tensors (by their number among them), and
    `Number`; shape, stride, dtype: of the result for one parameter; pointwise: or a reduction, whose dimensions are counted
    from the last."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    pointwise: bool

    @cached_property
    def is_contiguous(self) -> bool:
        return torch.empty_strided(self.shape, self.stride, device="meta").is_contiguous()

    def lies_otherwise(self, stack: Tensor) -> bool:
        """Whether the tensors of a stack lie in memory in another way than the result."""
        strides = zip(self.shape, stack.stride()[1:], self.stride, strict=True)
        return any(size != 1 and now != then for size, now, then in strides)

    def run(self, tensors: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
        def value(one: Any) -> Any:
            return tensors[one.place] if isinstance(one, Seen) else numbers[one] if isinstance(one, Number) else one

        return self.function(*map(value, self.args), **{name: value(one) for name, one in self.named.items()})

    def aligned(self, stack: Tensor) -> Tensor:
        """A stack for a pointwise operation, with as many dimensions as the result. What is one number for each parameter has
        no say in the dtype of the result, and is of many elements in a stack."""
        if not self.pointwise:
            return stack
        missing = 1 + len(self.shape) - stack.dim()
        if stack.dim() == 1 and stack.is_floating_point() and self.dtype.is_floating_point:
            stack = stack.to(self.dtype)
        return stack.reshape(len(stack), *(1,) * missing, *stack.shape[1:]) if missing > 0 else stack


@dataclass
class Call:
    """piece: or None, for a product, or an operation; given: its tensors, of a sum with a product (total, left, right);
    numbers: by name, places among the numbers of the tape (or a tuple of those), tensors of one element, and flags; results:
    their places; shape: of a product."""

    piece: Piece | None
    given: tuple[Seen, ...]
    numbers: dict[str, Any]
    results: tuple[int, ...]
    shape: tuple[int, ...] = ()
    dtypes: pieces.Dtypes = ()
    operation: Operation | None = None
    made: pieces.Made | None = None

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum with a product."""
        return self.piece is None and self.operation is None and len(self.given) == 3

    @property
    def reads(self) -> tuple[Seen, ...]:
        return *self.given, *(one for one in self.numbers.values() if isinstance(one, Seen))


class Played:
    """names: of the operands, which have the first places; layouts: their strides; inputs: of the scalar part; nodes: the
    numbers that it computes; counted: the new 0-dim states among them; there: (result → the operand in whose place it is
    written); drops: of each call, the places that no later one reads; ends: what becomes of each operand; count: of the
    places."""

    names: list[str]
    layouts: list[Any]
    calls: list[Call]
    inputs: Mapping[str, Any]
    nodes: Mapping[Any, Number]
    scalars: Callable[..., Any]
    counted: dict[str, Any]
    there: dict[int, int]
    drops: list[list[int]]
    ends: dict[str, Seen]
    count: int

    def fits(self, columns: Mapping[str, Sequence[Tensor]]) -> bool:
        """Whether tensors lie in memory as those did that it was written with, and the kernels are there."""
        for call in self.calls:
            if call.piece is not None and call.made is None:
                like = [0.0] * len(self.nodes)  # numbers that are any select no other kernel
                call.made = pieces.known(call.piece, {k: _valued(v, like) for k, v in call.numbers.items()}, call.dtypes)
                if call.made is None:
                    return False
        return all(
            one.stride() == stride for name, stride in zip(self.names, self.layouts, strict=True) for one in columns[name]
        )

    def play(self, columns: Mapping[str, Sequence[Tensor]], numbers: Mapping[str, float]) -> dict[str, float]:
        """Do it again, on several of each operand. Mutates: those that have new values. Returns: the new 0-dim states."""
        values = self.scalars(*[numbers[name] for name in self.inputs])[1]
        tensors: list[Any] = [Parts(columns[name]) for name in self.names]
        tensors += [None] * (self.count - len(tensors))
        wide: list[Tensor] = []
        for call, drops in zip(self.calls, self.drops, strict=True):
            for result in call.results:
                if result in self.there:
                    tensors[result] = tensors[self.there[result]]
            if call.piece is not None:
                self._play_piece(call, tensors, values)
            elif call.operation is not None:
                wide = wide or [torch.tensor(value, dtype=torch.float64, device="cpu") for value in values]
                tensors[call.results[0]] = _operated(call.operation, [seen.of(tensors) for seen in call.given], wide)
            else:
                self._multiply(call, tensors, values)
            for place in drops:
                tensors[place] = None
        for name, seen in self.ends.items():
            if seen.place >= len(self.names) and seen.place not in self.there:
                torch._foreach_copy_(list(columns[name]), list(tensors[seen.place].each))
        return {name: values[place] if isinstance(place, Number) else float(place) for name, place in self.counted.items()}

    def _play_piece(self, call: Call, tensors: list[Any], values: Sequence[float]) -> None:
        assert call.made is not None and call.piece is not None
        given = [seen.of(tensors).each for seen in call.given]
        for result, place in zip(call.results, call.piece.places, strict=True):
            if result not in self.there:
                like = given[max(0, place)]
                shape, stride = (len(like), *like[0].shape), (like[0].numel(), *like[0].stride())
                tensors[result] = Parts(stack=torch.empty_strided(shape, stride, dtype=like[0].dtype, device="cpu"))
        every = [*given, *(tensors[result].each for result in call.results)]
        rows = self._rows(call, tensors, values)
        addresses = [[one.data_ptr() for one in each] for each in every]
        pieces.run(call.made, addresses, rows, given[0][0].numel())
        written = [one for result in call.results for one in tensors[result].each]
        torch.autograd.graph.increment_version(written)

    @staticmethod
    def _rows(call: Call, tensors: Sequence[Any], values: Sequence[float]) -> list[list[float]]:
        """The columns of a piece, in a row for each parameter where a number is another for each."""
        assert call.made is not None
        plain = {name: _valued(value, values) for name, value in call.numbers.items()}
        own = {name: seen.of(tensors) for name, seen in call.numbers.items() if isinstance(seen, Seen)}
        if not own:
            return [call.made.columns(plain)]
        found = {
            name: [one.item() for one in parts.each] if parts.stack is None else parts.stack.flatten().tolist()
            for name, parts in own.items()
        }
        rows = zip(*found.values(), strict=True)
        return [call.made.columns({**plain, **dict(zip(found, row, strict=True))}) for row in rows]

    def _multiply(self, call: Call, tensors: list[Any], values: Sequence[float]) -> None:
        *total, left, right = (seen.of(tensors).each for seen in call.given)
        (result,) = call.results
        if not total:
            tensors[result] = Parts(stack=left[0].new_empty(len(left), *call.shape))
            for a, b, c in zip(left, right, tensors[result].each, strict=True):
                torch.mm(a, b, out=c)
            return
        numbers = {name: _valued(value, values) for name, value in call.numbers.items()}
        if result in self.there:
            for home, a, b in zip(*total, left, right, strict=True):
                home.addmm_(a, b, **numbers)
        else:
            tensors[result] = Parts([torch.addmm(one, a, b, **numbers) for one, a, b in zip(*total, left, right, strict=True)])


def _operated(operation: Operation, given: Sequence[Parts], numbers: Sequence[Tensor]) -> Parts:
    """By one call where all tensors stand in stacks. Each result lies in memory as the one that was written down."""
    stacks = [parts.stack for parts in given]
    if all(stack is not None for stack in stacks):
        found = operation.run([operation.aligned(stack) for stack in stacks if stack is not None], numbers)
    else:
        found = torch.stack([operation.run(each, numbers) for each in zip(*(parts.each for parts in given), strict=True)])
    if not (operation.is_contiguous and found.is_contiguous()) and operation.lies_otherwise(found):
        shape, stride = found.shape, (found[0].numel(), *operation.stride)
        found = torch.empty_strided(shape, stride, dtype=found.dtype, device="cpu").copy_(found)
    return Parts(stack=found)


def _valued(value: Any, values: Sequence[float]) -> Any:
    if isinstance(value, tuple):
        return tuple(_valued(one, values) for one in value)
    return 0.0 if isinstance(value, Seen) else values[value] if isinstance(value, Number) else value
