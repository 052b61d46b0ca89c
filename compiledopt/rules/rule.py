"""What a rule is: one pure function of one parameter, and the little the library must be told about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compiledopt.rules.options import RESERVED, Read, as_float, read, truthy

Initial = float | str | Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """A pure update of one parameter.

        new_param, *new_states = function(param, grad, *states, **options)

    function: uses tensor operators and methods only, and nothing in place.
    states: the names after `param` and `grad` in its signature, as in `optimizer.state[param]`.
    options: its keyword-only names, read from the parameter group by the same names.
    scalars: the states that are 0-dim (`step`); the others are shaped like the parameter.
    optional: {state: option}: the state exists only where the option is truthy (max_exp_avg_sq: amsgrad).
    initial: {state: a number, the name of an option, or a function of the parameter}: what the state starts from; zero
        for those not named. A function makes the tensor itself, of any shape, or None where a parameter has no such state.
    branches: the numbers on whose being zero the function branches, as in `if weight_decay != 0`: zero and not zero
        are two programs. All other numbers are entries of a table, and changing them costs nothing.
    static: numbers that the function takes as they are, such as a count of iterations: each value is another program.
    elementwise: False says that the function reduces, multiplies matrices or the like: it is then called on tensors, on
        stacks of those with one shape where that helps, instead of being compiled into one pass over memory.
    sparse: what a sparse gradient means. "rows": the update of the rows it touches, and nothing of the others;
        "linear": the function is linear in the gradient, and works on sparse tensors as it stands; None: refused.
    dense: whether dense gradients are taken.

    added: those of the states that a transformation of the rule brought along (around/).
    follows_norm: whether its 0-dim states depend on `grad_norm`, so that they must be where the gradients are.
    dense_alone: the options that brought those transformations which are for dense gradients alone.

    Three options are not read from the group: `first` is 1.0 on a parameter's first update, when its states were just made,
    and 0.0 afterwards; `dtype` is the parameter's own, where the function computes in a wider one; `grad_norm` is
    the norm over all gradients, where the group has `max_grad_norm`.
    """

    function: Callable[..., Any]
    states: tuple[str, ...]
    options: tuple[str, ...]
    scalars: frozenset[str]
    optional: Mapping[str, str]
    initial: Mapping[str, Initial]
    branches: frozenset[str]
    static: frozenset[str] = frozenset()
    elementwise: bool = True
    sparse: str | None = None
    dense: bool = True
    added: frozenset[str] = frozenset()
    dense_alone: tuple[str, ...] = ()
    follows_norm: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def place(self) -> str:
        """File and line of the function."""
        code = inspect.unwrap(self.function).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    def states_for(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states that exist under the options of `group`."""
        optional = self.optional
        return tuple(name for name in self.states if name not in optional or truthy(group[optional[name]]))

    def read(self, group: Mapping[str, Any]) -> Read:
        """What a group holds for this rule, typed. Raises: KeyError for an option that is not there."""
        return read(group, self.options, self.branches, self.static)

    def initial_value(self, state: str, group: Mapping[str, Any]) -> float:
        value = self.initial.get(state, 0.0)
        return as_float(group[value] if isinstance(value, str) else value)

    def maker(self, state: str) -> Callable[[Any], Any] | None:
        """The function that makes a state of its parameter, if one was given."""
        value = self.initial.get(state)
        return value if callable(value) else None

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)


def _check_meaning(
    rule: str, scalars: Iterable[str], initial: Mapping[str, Initial], options: Mapping[str, Iterable[str]]
) -> None:
    """Refuse declarations of what cannot be declared. Raises: TypeError, naming the argument."""
    for kind, names in options.items():
        for name in names:
            if name in RESERVED:
                raise TypeError(
                    f"rule {rule}: {kind} names {name!r}, which no group has; use it as a number, as in torch.where"
                )
    for name in scalars:
        if callable(initial.get(name)):
            raise TypeError(
                f"rule {rule}: the scalar state {name!r} starts from a number or the name of an option, not from a function"
            )


def rule(
    *,
    scalars: Iterable[str] = (),
    optional: Mapping[str, str] | None = None,
    initial: Mapping[str, Initial] | None = None,
    branches: Iterable[str] = (),
    static: Iterable[str] = (),
    elementwise: bool = True,
    sparse: str | None = None,
    dense: bool = True,
) -> Callable[[Callable[..., Any]], Rule]:
    """Make a `Rule` of a function `(param, grad, *states, *, options) -> (param, *states)`; see `Rule` for the arguments.

    Raises: TypeError where the signature does not fit, naming the argument.
    """
    optional, initial, scalars, branches = dict(optional or {}), dict(initial or {}), tuple(scalars), tuple(branches)
    static = tuple(static)
    if sparse not in (None, "rows", "linear"):
        raise TypeError(f'sparse must be "rows", "linear" or None, got {sparse!r}')

    def wrap(function: Callable[..., Any]) -> Rule:
        parameters = inspect.signature(function).parameters
        positional = tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
        options = tuple(n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY)
        if positional[:2] != ("param", "grad"):
            raise TypeError(f"rule {function.__name__}: the first two arguments must be (param, grad), got {positional[:2]}")
        if len(positional) + len(options) != len(parameters):
            raise TypeError(f"rule {function.__name__}: *args and **kwargs are not allowed; name every state and option")
        states = positional[2:]
        if "dtype" in options and elementwise:
            raise TypeError(f"rule {function.__name__}: the option `dtype` is for rules with elementwise=False")
        for kind, names, known in (
            ("scalars", scalars, states),
            ("optional", optional, states),
            ("optional", optional.values(), options),
            ("initial", initial, states),
            ("initial", [v for v in initial.values() if isinstance(v, str)], options),
            ("branches", branches, options),
            ("static", static, options),
        ):
            for name in names:
                if name not in known:
                    raise TypeError(f"rule {function.__name__}: {kind} names {name!r}, which is none of {known}")
        _check_meaning(function.__name__, scalars, initial, {"branches": branches, "static": static})
        flags = (frozenset(static), elementwise, sparse, dense)
        return Rule(function, states, options, frozenset(scalars), optional, initial, frozenset(branches), *flags)

    return wrap
