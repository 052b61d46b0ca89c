"""What a rule may be given in the place of one of its arguments: a value that knows something more of itself."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


class StandIn:
    """Does what `value` does, but for the operations that a subclass has itself: for functions and methods of torch, and for
    operators, among tensors and among the symbols of a trace."""

    value: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})

    def __getattr__(self, name: str) -> Any:
        if name == "value":
            raise AttributeError(name)
        return getattr(self.value, name)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    __hash__ = object.__hash__


def plain(value: Any) -> Any:
    """The value itself, where something stands in for it."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    return value.value if isinstance(value, StandIn) else value


def _binary(function: Callable[[Any, Any], Any], reflected: bool = False) -> Any:
    def method(self: StandIn, other: Any) -> Any:
        return function(other, self.value) if reflected else function(self.value, other)

    return method


def _unary(function: Callable[[Any], Any]) -> Any:
    return lambda self: function(self.value)


for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod", "matmul"):
    setattr(StandIn, f"__{_name}__", _binary(getattr(operator, _name)))
    setattr(StandIn, f"__r{_name}__", _binary(getattr(operator, _name), reflected=True))
for _name in ("gt", "ge", "lt", "le", "eq", "ne", "and_", "or_"):
    setattr(StandIn, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(StandIn, f"__{_name}__", _unary(getattr(operator, _name)))


class NotZero(StandIn):
    """A number that a rule may compare with zero, as one of its `branches`: it is not, and nothing is read for that."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> Any:
        return False if _is_zero(other) else self.value == other

    def __ne__(self, other: object) -> Any:
        return True if _is_zero(other) else self.value != other

    def __bool__(self) -> bool:
        return True

    __hash__ = StandIn.__hash__


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and value == 0
