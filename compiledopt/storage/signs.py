"""What a program proves of states: which are never negative (squares, averages of squares, maxima of those; or said to be), and
which are never written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from compiledopt.rules.program import Argument, Node, Program
from compiledopt.rules.reducer import Shape
from compiledopt.rules.rule import Rule
from compiledopt.rules.trace import trace
from compiledopt.rules.views import Frame

Interval = tuple[float, float]
EVERYTHING, INFINITY = (-float("inf"), float("inf")), float("inf")
# Numbers between 0 and 1 by their names, as constructors check them; a state outside of what follows is NaN then.
SHARES = re.compile(r"betas?\d*(\[\d\])?|rho|alpha|momentum|ema_decay")
NOT_NEGATIVE = re.compile(r"lr|eps(\[\d\])?|step|weight_decay|n_averaged|first")


def never_negative(rule: Rule, group: Mapping[str, Any]) -> frozenset[str]:
    """The states that stay at or above zero once they start there, whatever the gradients are; and those of which the rule's
    author says so."""
    program, said = _program(rule, group), rule.never_negative & set(rule.states_for(group))
    if program is None:
        return said
    candidates = {name for name in program.tensor_outputs if name != "param"}
    candidates = {name for name in candidates if rule.maker(name) is None and rule.initial_value(name, group) >= 0}
    candidates |= said & set(program.tensor_outputs)
    while True:  # the largest set of which each is so if all are
        known: dict[Node, Interval] = {}
        failing = {name for name in candidates - said if _interval(program.outputs[name], candidates, known)[0] < 0}
        if not failing:
            return frozenset(candidates | said)
        candidates -= failing


def never_written(rule: Rule, group: Mapping[str, Any]) -> frozenset[str]:
    """The states that stay what they start from, such as a copy of the parameter at first."""
    program = _program(rule, group)
    if program is None:
        return frozenset()
    return frozenset(node.name for node in program.tensors if program.outputs.get(node.name) is node)


def _program(rule: Rule, group: Mapping[str, Any]) -> Program | None:
    """The rule's program; where it reduces, that for a matrix; None where it has neither."""
    frame = Frame(2, 0, False)
    views = tuple((name, frame.whole) for name in rule.states_for(group) if rule.maker(name) is None)
    for shape in (None, Shape(frame, torch.float32, views)) if rule.elementwise else (Shape(frame, torch.float32, views),):
        try:
            return trace(rule, group, shape)
        except (TypeError, AttributeError, ValueError):  # TraceError among them: what a rule says to symbols
            continue
    return None


def _interval(node: Argument, positive: set[str], known: dict[Node, Interval]) -> Interval:
    if not isinstance(node, Node):
        return (float(node), float(node)) if node == node else EVERYTHING
    if node not in known:
        known[node] = _of_input(node, positive) if node.op == "input" else _of_operation(node, positive, known)
    return known[node]


def _of_input(node: Node, positive: set[str]) -> Interval:
    if node.scalar and SHARES.fullmatch(node.name):
        return 0.0, 1.0
    return (0.0, INFINITY) if node.name in positive or (node.scalar and NOT_NEGATIVE.fullmatch(node.name)) else EVERYTHING


def _product(a: Interval, b: Interval) -> Interval:
    if a[0] >= 0 and b[0] >= 0:
        return a[0] * b[0], a[1] * b[1] if INFINITY not in (a[1], b[1]) else INFINITY
    return EVERYTHING


_OF: dict[str, Callable[..., Interval]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": _product,
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "where": lambda condition, a, b: (min(a[0], b[0]), max(a[1], b[1])),
    "lerp": lambda a, b, w: (min(a[0], b[0]), max(a[1], b[1])) if w[0] >= 0 and w[1] <= 1 else EVERYTHING,
    "div": lambda a, b: (0.0, INFINITY) if a[0] >= 0 and b[0] >= 0 else EVERYTHING,
    "pow": lambda a, b: (0.0, INFINITY) if a[0] >= 0 else EVERYTHING,
}
_NEVER = ("abs", "square", "exp", "sqrt")


def _of_operation(node: Node, positive: set[str], known: dict[Node, Interval]) -> Interval:
    if node.op in _NEVER or (node.op == "mul" and node.args[0] is node.args[1]):
        return 0.0, INFINITY
    if node.op == "mul" and _is_square(node):
        inner = node.args[0]
        assert isinstance(inner, Node)
        share = next(arg for arg in inner.args if arg is not node.args[1])
        return _product(_interval(share, positive, known), (0.0, INFINITY))
    if node.op not in _OF:
        return EVERYTHING
    low, high = _OF[node.op](*(_interval(arg, positive, known) for arg in node.args))
    return (low, high) if low == low and high == high else EVERYTHING


def _is_square(node: Node) -> bool:
    """w·g·g, as (w·g)·g."""
    inner = node.args[0]
    return isinstance(inner, Node) and inner.op == "mul" and any(arg is node.args[1] for arg in inner.args)
