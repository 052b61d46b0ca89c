"""Rules that call pieces and products, and compute numbers and take norms and the like between: their calls are written down
once, and done at each step without the rule (played.py), which takes longer to call than to multiply small matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compiledopt.backends.eager.played import Call, Number, Operation, Played, Seen
from compiledopt.backends.eager.trial import ABOUT
from compiledopt.backends.layout import HALF, is_dense
from compiledopt.rules.pieces import Numbers, Piece, Runner, run_by
from compiledopt.rules.program import NUMBER, Node, Program
from compiledopt.rules.rule import Rule
from compiledopt.rules.scalars import scalar_function
from compiledopt.rules.symbol import Symbol
from compiledopt.rules.trace import Tracer


class NotTaped(TypeError):
    """A rule calls something else."""


class Between(Tracer):
    """Computes numbers as any tracer, and hands on what is done to a number and a tensor."""

    def apply(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if any(isinstance(one, Tensor) for one in (*args, *kwargs.values())):
            return getattr(torch, name)(*args, **kwargs)
        return super().apply(name, args, kwargs)


# What gives the same of a stack as of each of its tensors, where shapes are aligned from the right.
POINTWISE = frozenset(
    [
        "abs",
        "add",
        "clamp",
        "clamp_max",
        "clamp_min",
        "div",
        "divide",
        "double",
        "eq",
        "exp",
        "exp2",
        "expm1",
        "float",
        "ge",
        "gt",
        "isfinite",
        "isnan",
        "le",
        "lerp",
        "log",
        "log1p",
        "log2",
        "lt",
        "maximum",
        "minimum",
        "mul",
        "multiply",
        "ne",
        "neg",
        "pow",
        "reciprocal",
        "rsqrt",
        "rsub",
        "sigmoid",
        "sign",
        "sqrt",
        "square",
        "sub",
        "subtract",
        "tanh",
        "to",
        "true_divide",
        "where",
        "__pow__",
        "__rpow__",
        "__rsub__",
        "__rdiv__",
        "__rtruediv__",
        "__truediv__",
    ]
)
# And along which dimensions, as the argument of that number says.
REDUCTIONS = {"sum": 1, "mean": 1, "amax": 1, "amin": 1, "norm": 2}


class Tape(TorchFunctionMode, Played, Runner):
    """What a rule calls, from when it is called on tensors without data and on symbols for numbers."""

    def __init__(
        self, rule: Rule, operands: Mapping[str, Tensor | None], scalars: Sequence[str], aside: Sequence[str] = ()
    ) -> None:
        """scalars: the 0-dim states that are numbers; aside: operands that must stay as they are, unread."""
        super().__init__()
        self.rule, self.tracer, self.aside = rule, Between(None, rule.name), aside
        given = {name: value for name, value in operands.items() if value is not None and name not in aside}
        self.names = [*given]
        self.known = [*given.values()]  # by place; they must outlive their ids
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
        if any(results[name] is not operands[name] for name in self.aside):
            raise NotTaped("a state that is another for each parameter")
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
        if not any(isinstance(one, Tensor) for one in flat) or self.inside or func.__name__ in (*ABOUT, "squeeze"):
            return func(*args, **(kwargs or {}))
        if func.__name__ in POINTWISE:
            return self._operation(func, args, dict(kwargs or {}), True)
        if (place := REDUCTIONS.get(func.__name__)) is not None:
            return self._operation(func, *_along(place, args, dict(kwargs or {})), False)
        raise NotTaped(func.__name__)

    def _operation(self, func: Any, args: tuple[Any, ...], named: dict[str, Any], pointwise: bool) -> Tensor:
        """One of torch's, of tensors and numbers."""
        given: list[Tensor] = []

        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return self._number(value)
            given.append(value)
            return Seen(len(given) - 1)

        found = func(*map(_without_value, args), **{name: _without_value(value) for name, value in named.items()})
        if not isinstance(found, Tensor) or any(found is one for one in args):
            if isinstance(found, Tensor):
                return found
            raise NotTaped(func.__name__)
        pattern = tuple(map(place, args)), {name: place(value) for name, value in named.items()}
        if not is_dense(found):
            raise NotTaped("a result that is not dense in memory")
        if any(one.dim() == 0 and found.dtype in HALF and one.dtype != found.dtype for one in given):
            raise NotTaped("a number in more bits than what it is computed with")
        operation = Operation(func, *pattern, tuple(found.shape), found.stride(), found.dtype, pointwise)
        self.calls.append(Call(None, tuple(map(self._seen, given)), {}, (self._new(found),), operation=operation))
        return found

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
        if isinstance(value, Tensor) and value.numel() != 1:
            raise NotTaped("a number of tensors")
        return self._seen(value) if isinstance(value, Tensor) else value

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
        if any(isinstance(one, Seen) for one in numbers.values()):
            raise NotTaped("a factor of a sum with a product that follows from tensors")
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
        last = {seen.place: index for index, call in enumerate(self.calls) for seen in call.reads}
        ends = {seen.place: self.names.index(name) for name, seen in self.ends.items()}
        gone = [(index, place) for place, index in last.items() if place >= len(self.names) and place not in ends]
        self.drops = [[place for at, place in gone if at == index] for index in range(len(self.calls))]
        for index, call in enumerate(self.calls):
            taken = call.piece.places if call.piece is not None else (0,) if call.is_sum else ()
            for result, place in zip(call.results, taken, strict=False):
                home = call.given[place] if place >= 0 else None
                others = [seen.place for at, seen in enumerate(call.given) if at != place] if call.piece is None else []
                free = home is not None and home.way is None and last[home.place] == index and home.place not in others
                if home is not None and free and ends.get(result) == home.place and self._is_last(home.place, result):
                    self.there[result] = home.place

    def _is_last(self, home: int, result: int) -> bool:
        """Whether no other result is what stood there."""
        return all(seen.place != home for seen in self.ends.values()) and result not in self.there


def _without_value(value: Any) -> Any:
    """What stands for a number."""
    return torch.zeros((), dtype=torch.float64, device="meta") if isinstance(value, Symbol) else value


def _along(place: int, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a reduction, with its dimensions counted from the last. place: theirs."""
    dims = named.pop("dim", args[place] if len(args) > place else None)
    if len(args) > place + 1:  # keepdim
        named["keepdim"] = args[place + 1]
    if len(args) > place + 2:
        raise NotTaped("a reduction to another dtype")
    count = args[0].dim()
    several = range(count) if dims is None or dims == () else (dims,) if isinstance(dims, int) else dims
    return args[:place], {**named, "dim": tuple(dim % count - count for dim in several)}
