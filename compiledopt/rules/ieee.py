"""Operations on Python floats as IEEE arithmetic and torch have them: Python's own raise where a result is infinite or NaN."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch


def divide(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        if a == 0 or a != a:
            return math.nan
        return math.copysign(math.inf, a) * math.copysign(1.0, b)


def power(a: float, b: float) -> float:
    try:
        value = a**b
    except ZeroDivisionError:
        return math.inf
    except OverflowError:
        if a < 0 and b % 1:  # of a complex number
            return math.nan
        return math.inf if a > 0 or b % 2 == 0 else -math.inf
    return math.nan if isinstance(value, complex) else value


def guarded(function: Callable[[float], float], at_zero: float = math.nan, overflow: float = math.inf) -> Any:
    """A function of `math`: NaN outside of its domain, but for zero; `overflow` where the result is too large."""

    def call(a: float) -> float:
        try:
            return function(a)
        except ValueError:
            return at_zero if a == 0 else math.nan
        except OverflowError:
            return overflow

    return call


sqrt = guarded(math.sqrt)
log = guarded(math.log, -math.inf)
exp = guarded(math.exp)


def sinh(a: float) -> float:
    return float(guarded(math.sinh, overflow=math.copysign(math.inf, a))(a))


def log1p(a: float) -> float:
    return -math.inf if a == -1 else float(guarded(math.log1p)(a))


def atanh(a: float) -> float:
    return math.copysign(math.inf, a) if abs(a) == 1 else float(guarded(math.atanh)(a))


def lgamma(a: float) -> float:
    try:
        return math.lgamma(a)
    except (ValueError, OverflowError):  # at its poles
        return math.inf


def sigmoid(a: float) -> float:
    return divide(1.0, 1.0 + exp(-a))


def sign(a: float) -> float:
    return float((a > 0) - (a < 0))  # 0 for NaN, as torch


def maximum(a: float, b: float) -> float:
    return a if a != a or a >= b else b


def minimum(a: float, b: float) -> float:
    return a if a != a or a <= b else b


def whole(function: Callable[[float], int]) -> Callable[[float], float]:
    """A function to whole numbers; zero keeps its sign, and what is not finite stays."""
    return lambda a: math.copysign(float(function(a)), a) if math.isfinite(a) else a


def floor(a: float) -> float:
    return float(math.floor(a)) if math.isfinite(a) else a


def lerp(a: float, b: float, weight: float) -> float:
    return a + weight * (b - a) if abs(weight) < 0.5 else b - (b - a) * (1 - weight)


def where(condition: Any, a: float, b: float) -> float:
    return a if condition else b


def fmod(a: float, b: float) -> float:
    try:
        return math.fmod(a, b)
    except ValueError:
        return math.nan


def remainder(a: float, b: float) -> float:
    rest = fmod(a, b)
    return rest + b if rest != 0 and (b < 0) != (rest < 0) else rest


def floor_divide(a: float, b: float) -> float:
    """As torch: from the remainder, so that no rounding moves it over a whole number."""
    if b == 0:
        return divide(a, b)
    rest = fmod(a, b)
    found = (a - rest) / b - (1.0 if rest != 0 and (b < 0) != (rest < 0) else 0.0)
    if found == 0:
        return math.copysign(0.0, divide(a, b))
    below = floor(found)
    return below + 1.0 if found - below > 0.5 else below


def xlogy(a: float, b: float) -> float:
    return math.nan if b != b else 0.0 if a == 0 else a * log(b)


def logaddexp(a: float, b: float) -> float:
    return a if a == b and math.isinf(a) else maximum(a, b) + math.log1p(exp(-abs(a - b)))


def heaviside(a: float, at_zero: float) -> float:
    return at_zero if a == 0 else float(a > 0)


def nan_to_num(a: float) -> float:
    return 0.0 if a != a else max(-sys.float_info.max, min(a, sys.float_info.max))


def signbit(a: float) -> bool:
    return math.copysign(1.0, a) < 0


def rounded_to(dtype: torch.dtype) -> Callable[[float], float]:
    return lambda a: torch.tensor(a, dtype=torch.float64).to(dtype).item()
