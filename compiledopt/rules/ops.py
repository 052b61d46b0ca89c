"""The operations a rule may use, each described once: for tensors, for lists of tensors, for Python numbers and for formulas.

A rule's 0-dim values (learning rates, bias corrections) are computed in Python floats by the `number` functions, which follow
IEEE as tensors do. What else torch has is spelled by these in rules/spellings.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.rules import casts, ieee


@dataclass(frozen=True)
class Op:
    """One pointwise operation.

    tensor: the torch function; number: the same on Python floats; foreach: the name after `torch._foreach_`, if torch
    has one; in_place: whether `Tensor.<name>_` writes into its first operand; boolean: whether the result is a truth;
    truths: whether its operands are; numbers: whether the torch function takes Python numbers beside tensors, and first:
    also before them; formula: the function of sympy, where it is not one of rules/formula.py.
    """

    name: str
    arity: int
    tensor: Callable[..., Any]
    number: Callable[..., Any]
    foreach: str | None = None
    in_place: bool = True
    boolean: bool = False
    truths: bool = False
    infix: str | None = None
    numbers: bool = True
    first: bool = False
    formula: str | None = None
    definition: str = ""  # of one that is made of others (rules/composed.py): what tells two of the same name apart

    @property
    def arguments(self) -> tuple[str, ...]:
        """As torch calls them."""
        return _ARGUMENTS.get(self.name, ("input", "other")[: self.arity])


CUBE_ROOT = "_cube_root"  # what x ** (1 / 3) is recorded as; torch has no such function

_ARGUMENTS = {
    "pow": ("input", "exponent"),
    "lerp": ("input", "end", "weight"),
    "where": ("condition", "input", "other"),
    "heaviside": ("input", "values"),
}


def _compared(name: str) -> Op:
    return Op(name, 2, getattr(torch, name), getattr(operator, name), in_place=False, boolean=True)


def _asked(name: str, number: Callable[[float], bool]) -> Op:
    return Op(name, 1, getattr(torch, name), number, in_place=False, boolean=True)


def _logical(name: str, arity: int, number: Callable[..., bool]) -> Op:
    tensor = getattr(torch, name)
    return Op(name, arity, tensor, number, in_place=False, boolean=True, truths=True, numbers=False)


_TABLE = (
    Op("add", 2, torch.add, operator.add, "add", infix="+", first=True),
    Op("sub", 2, torch.sub, operator.sub, "sub", infix="-", first=True),
    Op("mul", 2, torch.mul, operator.mul, "mul", infix="*", first=True),
    Op("div", 2, torch.div, ieee.divide, "div", first=True),
    Op("pow", 2, torch.pow, ieee.power, "pow", first=True),
    Op("neg", 1, torch.neg, operator.neg, "neg"),
    Op("abs", 1, torch.abs, abs, "abs"),
    Op("sign", 1, torch.sign, ieee.sign, "sign"),
    Op("sqrt", 1, torch.sqrt, ieee.sqrt, "sqrt"),
    Op("rsqrt", 1, torch.rsqrt, lambda a: ieee.divide(1.0, ieee.sqrt(a)), "rsqrt"),
    Op("reciprocal", 1, torch.reciprocal, lambda a: ieee.divide(1.0, a), "reciprocal"),
    Op("square", 1, torch.square, lambda a: a * a),
    Op("exp", 1, torch.exp, ieee.exp, "exp"),
    Op("exp2", 1, torch.exp2, lambda a: ieee.power(2.0, a)),
    Op("expm1", 1, torch.expm1, ieee.guarded(math.expm1), "expm1"),
    Op("log", 1, torch.log, ieee.log, "log"),
    Op("log2", 1, torch.log2, ieee.guarded(math.log2, -math.inf), "log2"),
    Op("log10", 1, torch.log10, ieee.guarded(math.log10, -math.inf), "log10"),
    Op("log1p", 1, torch.log1p, ieee.log1p, "log1p"),
    Op("sigmoid", 1, torch.sigmoid, ieee.sigmoid, "sigmoid"),
    Op("tanh", 1, torch.tanh, math.tanh, "tanh"),
    Op("sinh", 1, torch.sinh, ieee.sinh, "sinh", formula="sinh"),
    Op("cosh", 1, torch.cosh, ieee.guarded(math.cosh), "cosh", formula="cosh"),
    Op("sin", 1, torch.sin, ieee.guarded(math.sin), "sin"),
    Op("cos", 1, torch.cos, ieee.guarded(math.cos), "cos"),
    Op("tan", 1, torch.tan, ieee.guarded(math.tan), "tan", formula="tan"),
    Op("asin", 1, torch.asin, ieee.guarded(math.asin), "asin", formula="asin"),
    Op("acos", 1, torch.acos, ieee.guarded(math.acos), "acos", formula="acos"),
    Op("atan", 1, torch.atan, math.atan, "atan", formula="atan"),
    Op("asinh", 1, torch.asinh, math.asinh, formula="asinh"),
    Op("acosh", 1, torch.acosh, ieee.guarded(math.acosh), formula="acosh"),
    Op("atanh", 1, torch.atanh, ieee.atanh, formula="atanh"),
    Op("atan2", 2, torch.atan2, math.atan2, numbers=False, formula="atan2"),
    Op("hypot", 2, torch.hypot, math.hypot, numbers=False),
    Op("erf", 1, torch.erf, math.erf, "erf", formula="erf"),
    Op("erfc", 1, torch.erfc, math.erfc, "erfc", formula="erfc"),
    Op("lgamma", 1, torch.lgamma, ieee.lgamma, "lgamma", formula="loggamma"),
    Op("floor", 1, torch.floor, ieee.floor, "floor"),
    Op("ceil", 1, torch.ceil, ieee.whole(math.ceil), "ceil", formula="ceiling"),
    Op("round", 1, torch.round, ieee.whole(round), "round"),
    Op("trunc", 1, torch.trunc, ieee.whole(math.trunc), "trunc"),
    Op("fmod", 2, torch.fmod, ieee.fmod),
    Op("remainder", 2, torch.remainder, ieee.remainder),
    Op("floor_divide", 2, casts.floor_divide, ieee.floor_divide, in_place=False, numbers=False),
    Op("maximum", 2, torch.maximum, ieee.maximum, "maximum", in_place=False, numbers=False),
    Op("minimum", 2, torch.minimum, ieee.minimum, "minimum", in_place=False, numbers=False),
    Op("copysign", 2, torch.copysign, math.copysign),
    Op("heaviside", 2, torch.heaviside, ieee.heaviside, numbers=False),
    Op("xlogy", 2, torch.xlogy, ieee.xlogy),
    Op("logaddexp", 2, torch.logaddexp, ieee.logaddexp, in_place=False, numbers=False),
    Op("lerp", 3, torch.lerp, ieee.lerp, "lerp"),
    Op("nan_to_num", 1, torch.nan_to_num, ieee.nan_to_num),
    Op("float16", 1, casts.float16, ieee.rounded_to(torch.float16), in_place=False),
    Op("bfloat16", 1, casts.bfloat16, ieee.rounded_to(torch.bfloat16), in_place=False),
    Op(CUBE_ROOT, 1, casts.cube_root, lambda a: ieee.power(a, 1 / 3), in_place=False),
    Op("where", 3, torch.where, ieee.where, in_place=False),
    *map(_compared, ("gt", "ge", "lt", "le", "eq", "ne")),
    _asked("isnan", math.isnan),
    _asked("isinf", math.isinf),
    _asked("isfinite", math.isfinite),
    _asked("signbit", ieee.signbit),
    _logical("logical_and", 2, lambda a, b: bool(a and b)),
    _logical("logical_or", 2, lambda a, b: bool(a or b)),
    _logical("logical_xor", 2, lambda a, b: bool(a) is not bool(b)),
    _logical("logical_not", 1, operator.not_),
)
OPS: dict[str, Op] = {op.name: op for op in _TABLE}


def apply(name: str, *args: Any) -> Any:
    """An operation on what it is given: of numbers a number, else a tensor, or a node where a rule is traced."""
    numbers = all(isinstance(arg, (bool, int, float)) for arg in args)
    return (OPS[name].number if numbers else OPS[name].tensor)(*args)
