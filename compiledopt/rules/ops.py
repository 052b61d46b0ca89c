"""The operations a rule may use, each described once: for tensors, for lists of tensors, and for Python numbers.

A rule's 0-dim values (learning rates, bias corrections) are computed in Python floats, which raise where IEEE arithmetic
returns an infinity or a NaN; the `number` functions below follow IEEE, as tensors do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def _divide(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        if a == 0 or a != a:
            return math.nan
        return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _power(a: float, b: float) -> float:
    try:
        value = a**b
    except ZeroDivisionError:
        return math.inf
    except OverflowError:
        if a < 0 and b % 1:  # of a complex number
            return math.nan
        return math.inf if a > 0 or b % 2 == 0 else -math.inf
    return math.nan if isinstance(value, complex) else value


def _guarded(function: Callable[[float], float], at_zero: float, overflow: float = math.inf) -> Callable[[float], float]:
    def guarded(a: float) -> float:
        try:
            return function(a)
        except ValueError:
            return at_zero if a == 0 else math.nan
        except OverflowError:
            return overflow

    return guarded


def _sign(a: float) -> float:
    return float((a > 0) - (a < 0))  # 0 for NaN, as torch


def _maximum(a: float, b: float) -> float:
    return a if a != a or a >= b else b


def _minimum(a: float, b: float) -> float:
    return a if a != a or a <= b else b


def _floor(a: float) -> float:
    return float(math.floor(a)) if math.isfinite(a) else a


def _lerp(a: float, b: float, weight: float) -> float:
    return a + weight * (b - a) if abs(weight) < 0.5 else b - (b - a) * (1 - weight)


def _where(condition: Any, a: float, b: float) -> float:
    return a if condition else b


_sqrt = _guarded(math.sqrt, 0.0)
_log = _guarded(math.log, -math.inf)
_exp = _guarded(math.exp, 1.0)


@dataclass(frozen=True)
class Op:
    """One pointwise operation.

    tensor: the torch function; number: the same on Python floats; foreach: the name after `torch._foreach_`, if torch
    has one; in_place: whether `Tensor.<name>_` writes into its first operand; boolean: whether the result is a truth.
    """

    name: str
    arity: int
    tensor: Callable[..., Any]
    number: Callable[..., Any]
    foreach: str | None = None
    in_place: bool = True
    boolean: bool = False
    infix: str | None = None


def _table() -> dict[str, Op]:
    ops = [
        Op("add", 2, torch.add, operator.add, "add", infix="+"),
        Op("sub", 2, torch.sub, operator.sub, "sub", infix="-"),
        Op("mul", 2, torch.mul, operator.mul, "mul", infix="*"),
        Op("div", 2, torch.div, _divide, "div"),
        Op("pow", 2, torch.pow, _power, "pow"),
        Op("neg", 1, torch.neg, operator.neg, "neg"),
        Op("abs", 1, torch.abs, abs, "abs"),
        Op("sign", 1, torch.sign, _sign, "sign"),
        Op("sqrt", 1, torch.sqrt, _sqrt, "sqrt"),
        Op("rsqrt", 1, torch.rsqrt, lambda a: _divide(1.0, _sqrt(a)), "rsqrt"),
        Op("reciprocal", 1, torch.reciprocal, lambda a: _divide(1.0, a), "reciprocal"),
        Op("square", 1, torch.square, lambda a: a * a),
        Op("exp", 1, torch.exp, _exp, "exp"),
        Op("log", 1, torch.log, _log, "log"),
        Op("tanh", 1, torch.tanh, math.tanh, "tanh"),
        Op("sin", 1, torch.sin, _guarded(math.sin, 0.0), "sin"),
        Op("cos", 1, torch.cos, _guarded(math.cos, 1.0), "cos"),
        Op("floor", 1, torch.floor, _floor, "floor"),
        Op("maximum", 2, torch.maximum, _maximum, "maximum", in_place=False),
        Op("minimum", 2, torch.minimum, _minimum, "minimum", in_place=False),
        Op("lerp", 3, torch.lerp, _lerp, "lerp"),
        Op("where", 3, torch.where, _where, in_place=False),
        Op("gt", 2, torch.gt, operator.gt, in_place=False, boolean=True),
        Op("ge", 2, torch.ge, operator.ge, in_place=False, boolean=True),
        Op("lt", 2, torch.lt, operator.lt, in_place=False, boolean=True),
        Op("le", 2, torch.le, operator.le, in_place=False, boolean=True),
        Op("eq", 2, torch.eq, operator.eq, in_place=False, boolean=True),
        Op("ne", 2, torch.ne, operator.ne, in_place=False, boolean=True),
        Op("logical_and", 2, torch.logical_and, lambda a, b: bool(a and b), in_place=False, boolean=True),
        Op("logical_or", 2, torch.logical_or, lambda a, b: bool(a or b), in_place=False, boolean=True),
        Op("logical_not", 1, torch.logical_not, operator.not_, in_place=False, boolean=True),
    ]
    return {op.name: op for op in ops}


OPS: dict[str, Op] = _table()


def apply(name: str, *args: Any) -> Any:
    """An operation on what it is given: of numbers a number, else a tensor, or a node where a rule is traced."""
    numbers = all(isinstance(arg, (bool, int, float)) for arg in args)
    return (OPS[name].number if numbers else OPS[name].tensor)(*args)
