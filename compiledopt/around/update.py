"""What a rule does to its parameter, taken apart: what it keeps of it, and what it adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compiledopt.around.transformation import results
from compiledopt.rules.ops import apply
from compiledopt.rules.program import NUMBER
from compiledopt.rules.rule import Rule
from compiledopt.rules.stand_in import NotZero, StandIn, plain
from compiledopt.rules.symbol import Symbol


@dataclass(frozen=True)
class Update:
    """θ′ = kept + change. kept: (1 − γ·λ)·θ where the rule decays its parameter apart from the gradient, else θ.

    gradient: what `change` should go against: −g with maximize, and with λ·θ in it where the rule puts that into it.
    """

    kept: Any
    change: Any
    gradient: Any
    states: tuple[Any, ...]


def taken_apart(rule: Rule, param: Any, grad: Any, states: tuple[Any, ...], options: Mapping[str, Any]) -> Update:
    """Run a rule on a parameter that remembers how much of it is in each result.

    So the change is had as the rule computes it: θ′ − θ would round it to the parameter's own precision, and small steps
    would have the wrong sign or none.
    """
    theta = plain(param)
    new, *own = results(rule, Share(theta), plain(grad), states, options)
    kept = tuple(plain(state) for state in own)
    against = -plain(grad) if options.get("maximize") else plain(grad)
    if not isinstance(new, Share):
        return Update(param, new - theta, against, kept)
    remembered = any(isinstance(state, Share) and not _is(state.share, 0.0) for state in own)
    if remembered or _is(new.share, 1.0):
        against = _with_decay(rule, against, theta, options)
    if not remembered:
        return Update(param * new.share, _or_zeros(new.rest, theta), against, kept)
    return Update(param, _plus(new.rest, _times(_plus(new.share, -1.0), theta)), against, kept)


def _with_decay(rule: Rule, grad: Any, theta: Any, options: Mapping[str, Any]) -> Any:
    decay = options.get("weight_decay")
    there = decay is not None and ("weight_decay" not in rule.branches or decay != 0)
    return grad + plain(decay) * theta if there else grad


class Share(StandIn):
    """A value as share·θ + rest, for as long as it goes through additions and products with numbers alone; what becomes of it
    in any other operation is a plain value."""

    def __init__(self, theta: Any, share: Any = 1.0, rest: Any = 0.0) -> None:
        self.theta, self.share, self.rest = theta, share, rest

    @property
    def value(self) -> Any:  # type: ignore[override]
        return _or_zeros(_plus(_times(self.share, self.theta), self.rest), self.theta)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        linear = _LINEAR.get(func.__name__)
        if linear is not None and not set(kwargs) - {"alpha", "value"}:
            return linear(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        linear = _LINEAR.get(name)
        if linear is None:
            return super().__getattr__(name)
        return lambda *args, **kwargs: Share.__torch_function__(getattr(torch, name), (), (self, *args), kwargs)

    def __add__(self, other: Any) -> Share:
        share, rest = _parts(other)
        return Share(self.theta, _plus(self.share, share), _plus(self.rest, rest))

    def __sub__(self, other: Any) -> Share:
        share, rest = _parts(other)
        return Share(self.theta, _minus(self.share, share), _minus(self.rest, rest))

    def __rsub__(self, other: Any) -> Share:
        share, rest = _parts(other)
        return Share(self.theta, _minus(share, self.share), _minus(rest, self.rest))

    def __neg__(self) -> Share:
        return Share(self.theta, -self.share, -self.rest)

    def __mul__(self, other: Any) -> Any:
        if not _is_number(other):
            return self.value * plain(other)
        return Share(self.theta, _times(self.share, plain(other)), _times(self.rest, plain(other)))

    def __truediv__(self, other: Any) -> Any:
        if not _is_number(other):
            return self.value / plain(other)
        return Share(self.theta, self.share / plain(other), self.rest / plain(other))

    __radd__, __rmul__ = __add__, __mul__


def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    b = _times(b, alpha)
    return a + b if isinstance(a, Share) else b + a


def _sub(a: Any, b: Any, alpha: Any = 1) -> Any:
    b = _times(b, alpha)
    return a - b if isinstance(a, Share) else -b + a


def _mul(a: Any, b: Any) -> Any:
    return a * b if isinstance(a, Share) else b * a


def _div(a: Any, b: Any) -> Any:
    return a / b if isinstance(a, Share) else a / plain(b)


def _addcmul(a: Any, b: Any, c: Any, value: Any = 1) -> Any:
    return a + _times(plain(b) * plain(c), value)


def _addcdiv(a: Any, b: Any, c: Any, value: Any = 1) -> Any:
    return a + _times(plain(b) / plain(c), value)


def _where(condition: Any, a: Any, b: Any) -> Any:
    """One of two, for all elements alike: ADOPT's first update. Else a plain value."""
    condition = plain(condition)
    if not _is_number(condition):
        return torch.where(condition, plain(a), plain(b))
    (share, rest), (other, more) = (_parts(one) for one in (a, b))
    theta = a.theta if isinstance(a, Share) else b.theta
    return Share(theta, _either(condition, share, other), _either(condition, rest, more))


def _parts(value: Any) -> tuple[Any, Any]:
    return (value.share, value.rest) if isinstance(value, Share) else (0.0, plain(value))


def _either(condition: Any, a: Any, b: Any) -> Any:
    return a if isinstance(a, (int, float)) and _is(b, a) else apply("where", condition, a, b)


# By torch's names; at least one of the operands is a Share.
_LINEAR: dict[str, Callable[..., Any]] = {"add": _add, "sub": _sub, "subtract": _sub, "mul": _mul, "multiply": _mul}
_LINEAR |= {"div": _div, "divide": _div, "true_divide": _div, "addcmul": _addcmul, "addcdiv": _addcdiv}
_LINEAR["where"] = _where
_LINEAR |= {"rsub": lambda a, b, alpha=1: _sub(b, a, alpha), "neg": lambda a: -a, "negative": lambda a: -a}


def _is_number(value: Any) -> bool:
    """Whether all elements of a parameter have the same of it."""
    if isinstance(value, NotZero):
        value = value.value
    if isinstance(value, Symbol):
        return value.node.axes == NUMBER
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def _is(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _plus(a: Any, b: Any) -> Any:
    return b if _is(a, 0.0) else a if _is(b, 0.0) else a + b


def _minus(a: Any, b: Any) -> Any:
    return a if _is(b, 0.0) else -b if _is(a, 0.0) else a - b


def _times(a: Any, b: Any) -> Any:
    if _is(a, 0.0) or _is(b, 0.0):
        return 0.0
    return b if _is(a, 1.0) else a if _is(b, 1.0) else a * b


def _or_zeros(value: Any, like: Any) -> Any:
    return like * 0.0 if _is(value, 0.0) else value
