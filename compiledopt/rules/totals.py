"""Sums over all parameters inside a rule: `total(x)`. They are measured before the update, by a program of their own, and are
0-dim numbers in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.rules.author import TraceError, author_line
from compiledopt.rules.options import NORM
from compiledopt.rules.program import SIZES, Argument, Node, Program, node_args
from compiledopt.rules.symbol import Symbol

SCOPES = ("model", "group")


def total(value: Any, over: str = "model") -> Any:
    """The sum of a value over all elements of all parameters, inside a rule.

        Σ over parameters with a gradient, Σ over their elements, of value

    value: a pointwise expression of `param`, `grad`, states and numbers, not of what is reduced over the parameter; a complex
        one counts as two reals. A number counts once for each element: total(torch.ones_like(param)) is how many elements
        there are. over: "model", all parameters of the optimizer, or "group", those of the parameter's group.
    Returns: a 0-dim number, the same for all of them, summed in float64. Mutates: nothing.
    Raises: TypeError outside of a rule, and for a value that is no tensor; ValueError for another `over`.
    """
    if over not in SCOPES:
        raise ValueError(f'total(..., over={over!r}): over is "model" or "group"')
    if isinstance(value, torch.Tensor) and (known := _given.next()) is not None:
        return known
    if not isinstance(value, Symbol):
        raise TraceError(
            f"{author_line()}: total(...) is for rules of pointwise operations, which are traced: this one is called on "
            f"tensors, or total was given {type(value).__name__}"
        )
    return value.tracer.total(value, over)


class _Given(threading.local):
    """The totals that a rule is told which is called on tensors, in the order in which it asks for them."""

    values: Iterator[Any] = iter(())

    def next(self) -> Any:
        return next(self.values, None)


_given = _Given()


@contextmanager
def told(values: Sequence[Any]) -> Iterator[None]:
    """Within, a rule that is called on tensors once has these totals."""
    before, _given.values = _given.values, iter(values)
    try:
        yield
    finally:
        _given.values = before


@dataclass(frozen=True, eq=False)
class Measure:
    """What is summed at once before an update. program: writes each value into a tensor of its own, called by the name of the
    total; reads: which of the rule's tensors it takes, by position, in the order of the program's; totals: the nodes."""

    program: Program
    reads: tuple[int, ...]
    totals: tuple[Node, ...]


def measures(program: Program) -> tuple[Measure, ...]:
    """The totals of a program, those first that others are computed from."""
    levels: dict[int, list[Node]] = {}
    known: dict[Node, int] = {}
    for node in program.totals:
        levels.setdefault(_level(node, known), []).append(node)
    return tuple(_measure(program, tuple(levels[level])) for level in sorted(levels))


def _level(node: Node, known: dict[Node, int]) -> int:
    if node not in known:
        below = max((_level(arg, known) for arg in node_args(node)), default=0)
        known[node] = below + (node.op == "total")
    return known[node]


def _measure(program: Program, totals: tuple[Node, ...]) -> Measure:
    values = {node.name: node.args[0] for node in totals}
    used = set(_inputs(totals))
    reads = tuple(index for index, tensor in enumerate(program.tensors) if tensor in used)
    places = tuple(Node("input", (), False, name) for name in values)
    outputs = {name: value for name, value in values.items() if isinstance(value, Node)}
    sizes = {program.tensors[index].name: program.sizes.get(program.tensors[index].name, 0) for index in reads}
    sizes = {name: size for name, size in sizes.items() if size}
    if len(outputs) > 1 and not sizes:  # or Inductor makes a kernel of those that share no input with the others
        anchor = program.tensors[reads[0]] if reads else places[0]
        same = Node("eq", (anchor, anchor), False)
        outputs = {name: Node("where", (same, value, value), False) for name, value in outputs.items()}
    tensors = tuple(program.tensors[index] for index in reads)
    # With all sizes of the parameter, so that they have the places that they have for the update.
    numbers = (node for node in program.scalars if node in used or node.name.startswith(SIZES))
    made = Program(f"{program.rule}_totals", (*tensors, *places, *numbers), outputs, sizes=sizes)
    return Measure(made, reads, totals)


def _inputs(totals: tuple[Node, ...]) -> Iterator[Node]:
    """Every node that the values of totals are computed from, but not what other totals are."""
    seen: set[Node] = set()
    pending: list[Argument] = [arg for node in totals for arg in node.args]
    while pending:
        node = pending.pop()
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            yield node
            pending += node.args if node.op != "total" else ()


def _squares() -> Program:
    grad, place = Node("input", (), False, "grad"), Node("input", (), False, "squares")
    return Program(NORM, (grad, place), {"squares": Node("mul", (grad, grad), False)})


SQUARES = _squares()  # of the gradient: what clipping sums
