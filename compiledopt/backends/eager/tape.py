"""Rules that call nothing but pieces and products, and compute numbers between: their calls are written down once, and done at
each step without the rule, which takes longer to call than to multiply small matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compiledopt.backends.cpp import pieces
from compiledopt.backends.eager.trial import ABOUT
from compiledopt.backends.layout import is_dense
from compiledopt.rules.pieces import Numbers, Piece, run_by
from compiledopt.rules.program import NUMBER, Node, Program
from compiledopt.rules.rule import Rule
from compiledopt.rules.scalars import scalar_function
from compiledopt.rules.symbol import Symbol
from compiledopt.rules.trace import Tracer


class NotTaped(TypeError):
    """A rule calls something else."""


@dataclass(frozen=True)
class Seen:
    """A tensor by its place on a tape; as: (shape, stride) where it is seen in another way."""

    place: int
    way: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def of(self, tensors: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        found = tensors[self.place]
        return found if self.way is None else [one.as_strided(*self.way) for one in found]


@dataclass
class Call:
    """piece: or None, for a product; given: its tensors, of a sum with a product (total, left, right); numbers: by name, places
    among the numbers of the tape (or a tuple of those), and flags; results: their places; shape: of a product."""

    piece: Piece | None
    given: tuple[Seen, ...]
    numbers: dict[str, Any]
    results: tuple[int, ...]
    shape: tuple[int, ...] = ()
    dtypes: pieces.Dtypes = ()
    made: pieces.Made | None = None


class Number(int):
    """A place among the numbers of a tape."""


class Tape(TorchFunctionMode):
    """What a rule calls, from when it is called on tensors without data and on symbols for numbers."""

    def __init__(self, rule: Rule, operands: Mapping[str, Tensor | None], scalars: Sequence[str]) -> None:
        super().__init__()
        self.rule, self.tracer = rule, Tracer(None, rule.name)
        self.names = [name for name, value in operands.items() if value is not None]
        self.known = [value for value in operands.values() if value is not None]  # by place; they must outlive their ids
        self.places = {id(value): place for place, value in enumerate(self.known)}
        self.layouts = [value.stride() for value in self.known]
        self.calls: list[Call] = []
        self.inputs: dict[str, Node] = {}
        self.nodes: dict[Node, Number] = {}
        self.scalar_names = tuple(scalars)
        self.inside = False

    # ---- writing it down ----

    def write(self, operands: Mapping[str, Tensor | None], options: Mapping[str, Any]) -> None:
        """Call the rule. options: as it is given them. Raises: NotTaped, or what the rule says to symbols."""
        ordered = ("param", "grad", *self.rule.states)
        given = [self._symbol(name) if name in self.scalar_names else operands[name] for name in ordered]
        symbols = {name: self._option(name, value) for name, value in options.items()}
        with torch.no_grad(), run_by(self), self:
            found = self.rule(*given, **symbols)
        results = dict(zip(("param", *self.rule.states), found if isinstance(found, tuple) else (found,), strict=True))
        self.ends = {name: self._seen(results[name]) for name in self.names if name != "grad"}
        own = {name: place for place, name in enumerate(self.names)}
        if any(seen.way or (seen.place in own.values() and seen.place != own[name]) for name, seen in self.ends.items()):
            raise NotTaped("a state in the place of another")
        self.counted = {name: self._number(results[name]) for name in self.scalar_names}
        self._settle()
        outputs = {str(place): node for node, place in self.nodes.items()}
        program = Program(self.rule.name, tuple(self.inputs.values()), outputs)
        self.scalars: Callable[..., Any] = scalar_function(program)
        self.count, self.known, self.places = len(self.known), [], {}

    def _symbol(self, name: str) -> Symbol:
        self.inputs[name] = Node("input", (), True, name, axes=NUMBER)
        return Symbol(self.tracer, self.inputs[name])

    def _option(self, name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._option(f"{name}[{i}]", one) for i, one in enumerate(value))
        return self._symbol(name) if isinstance(value, Tensor) else value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = [one for arg in args for one in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        if any(isinstance(one, Tensor) for one in flat) and not self.inside and func.__name__ not in (*ABOUT, "squeeze"):
            raise NotTaped(func.__name__)
        return func(*args, **(kwargs or {}))

    def _new(self, tensor: Tensor) -> int:
        self.places[id(tensor)] = len(self.known)
        self.known.append(tensor)
        return len(self.known) - 1

    def _seen(self, tensor: Any) -> Seen:
        if id(tensor) in self.places:
            return Seen(self.places[id(tensor)])
        whole = tensor._base if isinstance(tensor, Tensor) else None
        if whole is None or id(whole) not in self.places or whole.numel() != tensor.numel():
            raise NotTaped("another tensor")
        return Seen(self.places[id(whole)], (tuple(tensor.shape), tensor.stride()))

    def _number(self, value: Any) -> Any:
        """Where a number will be found, or what a flag is."""
        if isinstance(value, tuple):
            return tuple(map(self._number, value))
        if isinstance(value, Symbol):
            return self.nodes.setdefault(value.node, Number(len(self.nodes)))
        if isinstance(value, Tensor):
            raise NotTaped("a number of tensors")
        return value

    def run(self, piece: Piece, tensors: Sequence[Tensor], numbers: Numbers) -> tuple[Tensor, ...]:
        given, first = tuple(map(self._seen, tensors)), tensors[0]
        alike = all(one.shape == first.shape and one.stride() == first.stride() for one in tensors)
        if not (alike and is_dense(first)):
            raise NotTaped("tensors that lie in memory in several ways")
        found: tuple[Tensor, ...] = self._alone(lambda: tuple(torch.empty_like(tensors[max(0, at)]) for at in piece.places))
        kept = {name: self._number(value) for name, value in numbers.items()}
        self.calls.append(Call(piece, given, kept, tuple(map(self._new, found)), dtypes=tuple(one.dtype for one in tensors)))
        return found

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        found: Tensor = self._alone(lambda: left @ right)
        given = self._seen(left), self._seen(right)
        self.calls.append(Call(None, given, {}, (self._new(found),), tuple(found.shape)))
        return found

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any) -> Tensor:
        found: Tensor = self._alone(lambda: torch.addmm(total, left, right))
        numbers = {"beta": self._number(beta), "alpha": self._number(alpha)}
        self.calls.append(Call(None, tuple(map(self._seen, (total, left, right))), numbers, (self._new(found),)))
        return found

    def _alone(self, call: Callable[[], Any]) -> Any:
        self.inside = True
        try:
            return call()
        finally:
            self.inside = False

    def _settle(self) -> None:
        """Where results stand: (call, result) → the operand in whose place it is written, since nothing reads that later."""
        self.there: dict[int, int] = {}
        last = {seen.place: index for index, call in enumerate(self.calls) for seen in call.given}
        ends = {seen.place: self.names.index(name) for name, seen in self.ends.items()}
        for index, call in enumerate(self.calls):
            taken = call.piece.places if call.piece is not None else (0,) if len(call.given) == 3 else ()
            for result, place in zip(call.results, taken, strict=False):
                home = call.given[place] if place >= 0 else None
                others = [seen.place for at, seen in enumerate(call.given) if at != place] if call.piece is None else []
                free = home is not None and home.way is None and last[home.place] == index and home.place not in others
                if home is not None and free and ends.get(result) == home.place and self._is_last(home.place, result):
                    self.there[result] = home.place

    def _is_last(self, home: int, result: int) -> bool:
        """Whether no other result is what stood there."""
        return all(seen.place != home for seen in self.ends.values()) and result not in self.there

    # ---- doing it ----

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
        tensors: list[Any] = [columns[name] for name in self.names]
        tensors += [None] * (self.count - len(tensors))
        for call in self.calls:
            for result in call.results:
                if result in self.there:
                    tensors[result] = tensors[self.there[result]]
            self._play_piece(call, tensors, values) if call.piece is not None else self._multiply(call, tensors, values)
        for name, seen in self.ends.items():
            if seen.place >= len(self.names) and seen.place not in self.there:
                torch._foreach_copy_(list(columns[name]), list(tensors[seen.place]))
        return {name: values[place] if isinstance(place, Number) else float(place) for name, place in self.counted.items()}

    def _play_piece(self, call: Call, tensors: list[Any], values: Sequence[float]) -> None:
        assert call.made is not None and call.piece is not None
        given = [seen.of(tensors) for seen in call.given]
        for result, place in zip(call.results, call.piece.places, strict=True):
            if result not in self.there:
                tensors[result] = [torch.empty_like(one) for one in given[max(0, place)]]
        every = [*given, *(tensors[result] for result in call.results)]
        numbers = {name: _valued(value, values) for name, value in call.numbers.items()}
        addresses = [[one.data_ptr() for one in each] for each in every]
        pieces.run(call.made, addresses, [call.made.columns(numbers)], given[0][0].numel())
        written = [one for result in call.results for one in tensors[result]]
        torch.autograd.graph.increment_version(written)

    def _multiply(self, call: Call, tensors: list[Any], values: Sequence[float]) -> None:
        *total, left, right = (seen.of(tensors) for seen in call.given)
        (result,) = call.results
        if not total:
            out = tensors[result] = left[0].new_empty(len(left), *call.shape).unbind()
            for a, b, c in zip(left, right, out, strict=True):
                torch.mm(a, b, out=c)
            return
        numbers = {name: _valued(value, values) for name, value in call.numbers.items()}
        if result in self.there:
            for home, a, b in zip(*total, left, right, strict=True):
                home.addmm_(a, b, **numbers)
        else:
            tensors[result] = [torch.addmm(one, a, b, **numbers) for one, a, b in zip(*total, left, right, strict=True)]


def _valued(value: Any, values: Sequence[float]) -> Any:
    if isinstance(value, tuple):
        return tuple(_valued(one, values) for one in value)
    return values[value] if isinstance(value, Number) else value
