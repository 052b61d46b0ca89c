"""What a tracer does with reductions: over which dimensions they are taken, and how what they give is shaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.rules.author import NotElementwise, TraceError, author_line, not_compiled
from compiledopt.rules.composed import random_bits
from compiledopt.rules.noise import Noise
from compiledopt.rules.options import STEP
from compiledopt.rules.program import ELEMENTS, MATRICES, NUMBER, REDUCTIONS, SIZES, Argument, Node
from compiledopt.rules.reduced import REDUCED
from compiledopt.rules.spellings import unknown
from compiledopt.rules.symbol import Symbol
from compiledopt.rules.views import Frame, View, broadcast, dims_of, places_of, reduced


@dataclass(frozen=True)
class Shape:
    """What a rule that reduces is told of its parameter. frame: how it is seen; views: (state, how that is shaped) of those of
    its states that are not 0-dim; fed: its 0-dim states that follow from tensors."""

    frame: Frame
    dtype: torch.dtype
    views: tuple[tuple[str, View], ...]
    fed: frozenset[str] = frozenset()


class FedByTensors(NotElementwise):
    """A 0-dim state follows from tensors. name: whose."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Reducer:
    """frame: how the parameter is seen, where the rule may reduce; None where it may not. views: how its states are shaped."""

    def __init__(self, shape: Shape | None = None) -> None:
        self.frame = None if shape is None else shape.frame
        self.views: dict[str, View] = {} if shape is None else dict(shape.views)
        self.known: dict[tuple[Any, ...], Node] = {}
        self.sizes: dict[str, Node] = {}

    def record(self, op: str, args: tuple[Argument, ...]) -> Symbol:
        raise NotImplementedError

    def number(self, node: Node) -> Node:
        raise NotImplementedError

    def shape_of(self, name: str, known: View | None) -> View:
        """How an argument of the rule is shaped. known: where it is 0-dim."""
        return () if self.frame is None else known if known is not None else self.views.get(name, self.frame.whole)

    def axes_of(self, shaped: View) -> int | None:
        return ELEMENTS if self.frame is None else self.frame.axes(dims_of(shaped))

    def shaped_like(self, result: Symbol, args: Sequence[Any]) -> Symbol:
        """The result of a pointwise operation, shaped as its arguments are together."""
        if self.frame is not None:
            result.shaped = broadcast([arg.shaped for arg in args if isinstance(arg, Symbol)])
        return result

    def noise(self, given: Callable[[], tuple[Any, Symbol]]) -> Noise:
        """Random numbers for each element, from (seed, step). Where they are drawn, raises: TraceError."""

        def bits() -> Symbol:
            seed, step = given()
            if not step.node.scalar:
                raise TraceError(f"{author_line()}: noise is a function of the state {STEP!r}, which follows from tensors here")
            drawn: Symbol = random_bits(seed, step)
            drawn.shaped = () if self.frame is None else self.frame.whole
            return drawn

        return Noise(bits)

    def is_reduction(self, name: str) -> bool:
        return name in REDUCTIONS

    def spelled(self, name: str) -> Callable[..., Any] | None:
        """The function that spells a name of torch by reductions."""
        return REDUCED.get(name)

    def reduce(self, op: str, *args: Any, **kwargs: Any) -> Symbol:
        return self._reduce(op, *args, **_of_reduction(op, kwargs))

    def _reduce(self, op: str, value: Symbol, dim: Any = None, keepdim: bool = False) -> Symbol:
        """A sum or the like over dimensions of a value. Raises: NotElementwise where no pass has those."""
        frame = self.frame
        if frame is None or not value.shaped:
            raise not_compiled(unknown(op))
        node, places = self.number(value.node), places_of(value.shaped, dim)
        gone = dims_of(tuple(value.shaped[place] for place in places))
        has = frame.dims_of(node.axes)
        axes = frame.axes(has - gone)
        if axes == NUMBER and keepdim and node.axes not in (NUMBER, ELEMENTS) and frame.is_matrix:
            axes = MATRICES  # of what has rows or columns, as of several matrices: one kernel for both
        if axes is None:
            raise not_compiled(
                f"{op} over {dim} is not one over all, over rows or columns, or over all but the first dimensions"
            )
        result = self._reduced(op, node, axes) if axes != node.axes else node
        if op == "sum" and gone - has:  # the same value, so many times
            result = self.record("mul", (result, self.size(gone - has).node)).node
        return Symbol(self, result, shaped=reduced(value.shaped, places, keepdim))

    def of_all(self, node: Node) -> Node:
        """What the only matrix has, as a number of the parameter."""
        is_such = self.frame is not None and self.frame.is_matrix and node.axes == MATRICES
        return self._reduced("amax", self.number(node), NUMBER) if is_such else node

    def _reduced(self, op: str, node: Node, axes: int) -> Node:
        key = (op, node, axes)
        if key not in self.known:
            self.known[key] = Node(op, (node,), False, line=author_line(), axes=axes)
        return self.known[key]

    def size(self, dims: frozenset[int] | int | None = None) -> Symbol:
        """How many elements the parameter has, or one of its dimensions, or several: an entry of the table."""
        if isinstance(dims, frozenset):
            if self.frame is None or len(dims) == self.frame.dims:
                return self.size()
            if len(dims) != 1:
                return math.prod(self.size(dim) for dim in sorted(dims))  # type: ignore[return-value,arg-type]
            (dims,) = dims
        name = SIZES[0] if dims is None else f"{SIZES[1]}[{dims}]"
        return Symbol(self, self.sizes.setdefault(name, Node("input", (), True, name, axes=NUMBER)))

    def count(self, value: Symbol, dim: Any) -> Any:
        """How many elements of a value a reduction takes together."""
        if self.frame is None or not value.shaped:
            raise not_compiled(unknown("var"))
        places = places_of(value.shaped, dim)
        return self.size(dims_of(tuple(value.shaped[place] for place in places)))


def _of_reduction(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a sum, norm or the like that say what is to be done. The dtype does not: sums are taken in float64."""
    kwargs = {"dim" if key == "axis" else key: value for key, value in kwargs.items() if value is not None or key == "dim"}
    dtype = kwargs.pop("dtype", None)
    extra = sorted(set(kwargs) - {"input", "dim", "keepdim"})
    if dtype not in (None, torch.float32, torch.float64):
        extra.append(f"dtype={dtype}")
    if extra:
        raise TraceError(f"{author_line()}: {name} with {', '.join(extra)} is not supported in a rule; leave it out")
    if "input" in kwargs:
        kwargs["value"] = kwargs.pop("input")
    return kwargs
