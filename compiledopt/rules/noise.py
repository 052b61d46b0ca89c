"""`noise`, an argument of rules: random numbers for each element, a function of the group's `seed`, of how many updates the
parameter has had, of the parameter and of the element."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from compiledopt.rules.author import TraceError, author_line
from compiledopt.rules.composed import operation
from compiledopt.rules.options import SEED, STEP
from compiledopt.rules.random import mixed

_GOLDEN = 0x9E3779B9  # its multiples differ in about half of their bits
# sin(πx/2) for |x| ≤ 1 by its series, to 6e-8: the processor's own cosine is a call for each element.
_SINE = [(-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(6)]


def _drawn(bits: Any, draw: Any) -> Any:
    """32 random bits of 32 others, different ones for each draw: int32."""
    word = int(draw) * _GOLDEN % 2**32
    return mixed(bits ^ (word - 2**32 if word >= 2**31 else word))


@operation
def uniform(bits: Any, draw: Any) -> Any:
    """The upper 24 of random bits as a number of [0, 1): float32."""
    return ((_drawn(bits, 2 * draw) >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24


@operation
def normal(bits: Any, draw: Any) -> Any:
    """√(−2·log u)·cos(π·w), u of (0, 1] and w of [−1, 1), each of its own 32 bits: float32, up to 6.6. Box and Muller 1958."""
    unit = ((_drawn(bits, 2 * draw) >> 1) & 0x7FFFFFFF).to(torch.float32) * 2.0**-31 + 2.0**-32
    angle = _drawn(bits, 2 * draw + 1).to(torch.float32) * 2.0**-31
    square, series = angle * angle, _SINE[-1]
    for term in reversed(_SINE[:-1]):
        series = series * square + term
    sine = angle * series
    return (-2.0 * _logarithm(unit)).clamp_min(0.0).sqrt() * (1.0 - 2.0 * sine * sine)


def _logarithm(x: Any) -> Any:
    """Of positive float32, by its exponent and the series of the inverse hyperbolic tangent: vectors, where libm has calls."""
    word = x.view(torch.int32) - 0x3F3504F3  # √½: what is left of x is between that and √2
    exponent = word >> 23
    rest = (x.view(torch.int32) - (exponent << 23)).view(torch.float32)
    ratio = (rest - 1.0) / (rest + 1.0)
    square = ratio * ratio
    series = 2 / 9 * square + 2 / 7
    for term in (2 / 5, 2 / 3, 2.0):
        series = series * square + term
    return exponent.to(torch.float32) * math.log(2.0) + ratio * series


class Noise:
    """What a rule is given for its argument `noise`: each call draws new numbers, one for each element of the parameter."""

    mend = "; write noise.normal() or noise.uniform()"

    def __init__(self, bits: Callable[[], Any]) -> None:
        """bits: makes 32 random bits for each element."""
        self._bits, self._draws = functools.cache(bits), 0

    def _next(self) -> tuple[Any, float]:
        self._draws += 1
        return self._bits(), float(self._draws)

    def bits(self) -> Any:
        """The 32 random bits for each element that all draws are made of."""
        return self._bits()

    def uniform(self) -> Any:
        """Numbers of [0, 1), multiples of 2^-24, shaped like the parameter."""
        return uniform(*self._next())

    def normal(self) -> Any:
        """Numbers of a normal distribution with mean 0 and variance 1, shaped like the parameter."""
        return normal(*self._next())


def _refused(self: Noise, *_: Any) -> Any:
    raise TraceError(f"{author_line()}: a rule computes with its arguments and with numbers, not with Noise{self.mend}")


for _name in ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "neg", "lt", "le", "gt", "ge"]:
    setattr(Noise, f"__{_name}__", _refused)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rule's function that takes `noise`, with what noise is a function of: the option `seed`, 0 by default, and the 0-dim
    state `step`, each where it has none of its own."""
    signature = inspect.signature(function)
    own = signature.parameters
    steps, seeds = STEP not in own, SEED not in own
    if not steps and not seeds:
        return function

    @functools.wraps(function)
    def noisy(param: Any, grad: Any, *states: Any, **options: Any) -> Any:
        if seeds:
            del options[SEED]
        if not steps:
            return function(param, grad, *states, **options)
        returned = function(param, grad, *states[:-1], **options)
        return (*(returned if isinstance(returned, tuple) else (returned,)), states[-1] + 1)

    either, alone = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = [one for one in own.values() if one.kind is not alone]
    names += [inspect.Parameter(STEP, either)] * steps
    names += [one for one in own.values() if one.kind is alone]
    names += [inspect.Parameter(SEED, alone, default=0)] * seeds
    noisy.__signature__ = signature.replace(parameters=names)  # type: ignore[attr-defined]
    return noisy
