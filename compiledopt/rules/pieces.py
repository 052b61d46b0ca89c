"""Pieces of rules that are not elementwise: pure functions of tensors of one shape and of numbers, which are pointwise.

A rule calls them like any function. Who runs the rule may make one kernel of each, and may write what takes the place of a
parameter or a state where that stands: then nothing may read the old value any more, which is seen when a rule is tried.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from compiledopt.rules.options import is_number
from compiledopt.rules.program import NUMBER, Node, Program
from compiledopt.rules.symbol import Symbol
from compiledopt.rules.trace import Tracer

Numbers = Mapping[str, Any]


class Runner:
    """Who runs a rule. What it leaves to torch's operations on new tensors is None; here that is everything."""

    def run(self, piece: Piece, tensors: Sequence[Tensor], numbers: Numbers) -> tuple[Tensor, ...] | None:
        """What a piece returns; results that take the place of an argument may be that very tensor, written."""
        return None

    def product(self, left: Tensor, right: Tensor) -> Tensor | None:
        """left·right."""
        return None

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any) -> Tensor | None:
        """β·total + α·left·right; it may be `total` itself, written."""
        return None

    def write_symmetric(self, x: Tensor, total: Tensor | None, beta: Any, alpha: Any, out: Tensor) -> bool:
        """out ← β·total + α·x·xᵀ of stacks, total being symmetric, or None; whether it did. Mutates: out."""
        return False


class _Now(threading.local):
    runner: Runner | None = None


_now = _Now()


def runner() -> Runner | None:
    """Who runs the rule that is being called in this thread, if anybody has more to offer than torch's operations."""
    return _now.runner


@contextmanager
def run_by(one: Runner | None) -> Iterator[None]:
    """Within, this one runs what is called."""
    before, _now.runner = _now.runner, one
    try:
        yield
    finally:
        _now.runner = before


class Piece:
    """A pointwise piece. function: of tensors and, keyword-only, numbers and flags, to a tuple; results: the names of what it
    returns: one that is an argument's takes its place, any other is new, and shaped like the first argument."""

    def __init__(self, function: Callable[..., Any], results: Sequence[str]) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.function, self.name, self.results = function, function.__name__, tuple(results)
        self.arguments = tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)
        # For each result, which argument it takes the place of, or -1.
        self.places = tuple(self.arguments.index(name) if name in self.arguments else -1 for name in self.results)
        self._programs: dict[tuple[Any, ...], Program] = {}

    def __call__(self, *tensors: Any, **numbers: Any) -> tuple[Any, ...]:
        one = _now.runner
        known = one is not None and all(isinstance(tensor, Tensor) for tensor in tensors)  # a transformation has stand-ins
        found = one.run(self, tensors, numbers) if known and one is not None else None
        if found is None:
            found = self.function(*tensors, **numbers)
        return found if isinstance(found, tuple) else (found,)

    def program(self, numbers: Numbers) -> Program:
        """What it computes under these flags: the arguments, and then the results, are its tensors."""
        key = tuple((name, _kind(value)) for name, value in sorted(numbers.items()))
        if key not in self._programs:
            self._programs[key] = self._trace(numbers)
        return self._programs[key]

    def _trace(self, numbers: Numbers) -> Program:
        tracer = Tracer(None, self.name)
        given = [Node("input", (), False, name) for name in self.arguments]
        homes = [Node("input", (), False, f"new {name}") for name in self.results]
        known: list[Node] = []

        def symbol(name: str) -> Symbol:
            known.append(Node("input", (), True, name, axes=NUMBER))
            return Symbol(tracer, known[-1])

        options: dict[str, Any] = {}
        for name, value in numbers.items():
            if isinstance(value, tuple):
                options[name] = tuple(symbol(f"{name}[{i}]") for i in range(len(value)))
            else:
                options[name] = symbol(name) if is_number(value) else value
        returned = self.function(*(Symbol(tracer, node) for node in given), **options)
        returned = returned if isinstance(returned, tuple) else (returned,)
        outputs = {home.name: value.node for home, value in zip(homes, returned, strict=True)}
        return Program(self.name, (*given, *homes, *known), outputs)


def _kind(value: Any) -> Any:
    """What of an option selects a program."""
    return len(value) if isinstance(value, tuple) else ... if is_number(value) else value


def piece(*results: str) -> Callable[[Callable[..., Any]], Piece]:
    """Make a `Piece` of a function."""
    return lambda function: Piece(function, results)
