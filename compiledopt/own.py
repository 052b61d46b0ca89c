"""Write your own: a pure function becomes an optimizer class with torch's habits (docs/write-your-own.md)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

from compiledopt import around
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BETA, EPS, HABITS, LR, MOMENTUM, WEIGHT_DECAY, Bound, ParamsT, check_one_element
from compiledopt.optimizer import Optimizer
from compiledopt.rules.options import NOISE, RESERVED, SEED, check_numbers, is_number
from compiledopt.rules.rule import rule

Function = Callable[..., Any]
# The names whose bounds the field agrees on.
BOUNDS = {bound.option: bound for bound in (LR, EPS, BETA, MOMENTUM, WEIGHT_DECAY)}


class Defined(Optimizer):
    """What `define` makes. For a type checker it takes any options: no type says which a function has."""

    if TYPE_CHECKING:

        def __init__(self, params: ParamsT, *arguments: Any, **options: Any) -> None: ...


@overload
def define(function: Function, /) -> type[Defined]: ...


@overload
def define(*, name: str | None = None, **declarations: Any) -> Callable[[Function], type[Defined]]: ...


def define(function: Function | None = None, /, *, name: str | None = None, **declarations: Any) -> Any:
    """Make an optimizer class of a pure update of one parameter.

        (param, *states) ← function(param, grad, *states, **options)

    function: takes the parameter, its gradient, its states, then keyword-only options. The options and their defaults
        become the constructor's, beside maximize, foreach, capturable, differentiable, fused and compiled; the states
        become `optimizer.state[param]`, zeros at first.
    name: the class's; the function's own by default. declarations: what `rule` takes: scalars, optional, initial,
        branches, static, elementwise, sparse, dense, shared, every, evaluated, lists, never_negative.
    Returns: the class, or, without `function`, a decorator that makes it. Mutates: nothing.
    Bounds: options that are called lr, eps, betas, momentum or weight_decay have torch's, unless a default is outside.
    Raises: TypeError where the signature does not fit, TraceError (a TypeError) at the first step where the function
    mutates, branches on a value or returns the wrong things, naming the line.
    """
    if function is None:
        return functools.partial(_define, name=name, declarations=declarations)
    return _define(function, name, declarations)


def _define(function: Function, name: str | None, declarations: Mapping[str, Any]) -> type[Defined]:
    own = rule(**declarations)(with_maximize(function))
    defaults = {name: each for name, each in _defaults(function).items() if name not in own.every}
    if NOISE in own.options:
        defaults.setdefault(SEED, inspect.Parameter(SEED, inspect.Parameter.KEYWORD_ONLY, default=0))
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = [p.replace(annotation=p.empty) for p in defaults.values()]
    names = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), inspect.Parameter("params", either)]
    names += [p.replace(kind=either) for p in options if p.default is not p.empty]
    names += [p for p in options if p.default is p.empty]
    extras = dict.fromkeys(name for name in around.options() if name not in defaults)
    habits = {key: value for key, value in {**HABITS, **extras}.items() if key not in defaults}
    names += [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in habits.items()]
    signature = inspect.Signature(names)

    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = {key: value for key, value in bound.arguments.items() if key not in extras}
        given["extras"] = {key: bound.arguments[key] for key in extras}
        Optimizer.__init__(self, bound.arguments["params"], given)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    title = name or function.__name__
    doc = inspect.getdoc(function) or f"{title}, of the rule {function.__name__} in {function.__module__}."
    missing = {p.name: p.default for p in names if p.default is not p.empty}
    body = {"rule": own, "missing": missing, "__init__": __init__, "__doc__": doc, "__module__": function.__module__}
    free = frozenset(_outside(missing))

    def _check_options(_: Optimizer, options: Mapping[str, Any]) -> None:
        check_numbers(own.of_numbers, options)
        _check_numbers(options, free)

    return type(title, (Defined,), {**body, "_check_options": _check_options})


def _defaults(function: Function) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in RESERVED}


def _bounded(options: Mapping[str, Any]) -> Iterator[tuple[str, int, Any, Bound | None]]:
    """(option, place in it, number, its bound) of every option, one by one."""
    for name, value in options.items():
        several = isinstance(value, tuple | list)
        for index, one in enumerate(value if several else (value,)):
            known = BOUNDS.get(name) if is_number(one) else None
            yield name, index, one, known.element(index) if known and several else known


def _outside(defaults: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The places whose default is out of the bounds that the field agrees on: there the name means something else."""
    for name, index, one, bound in _bounded(defaults):
        try:
            if bound is not None:
                bound.check(one)
        except ValueError:
            yield name, index


def _check_numbers(options: Mapping[str, Any], free: frozenset[tuple[str, int]]) -> None:
    """Refuse numbers of well-known names that are out of their bounds. Raises: ValueError in torch's words."""
    for name, index, one, bound in _bounded(options):
        check_one_element(one, name)
        if bound is not None and (name, index) not in free:
            bound.check(one)
