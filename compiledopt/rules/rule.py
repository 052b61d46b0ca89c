"""What a rule is: one pure function of one parameter, and the little the library must be told about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from compiledopt.rules.noise import counted
from compiledopt.rules.options import NOISE, RESERVED, STEP, Read, as_float, read, truthy

Initial = float | str | Callable[..., Any]
PLACE = "place_in_group"  # what a 0-dim state may start from: the number of its parameter among those of the group
Turn = tuple[str, int] | Callable[[int, Mapping[str, Any]], bool]
Count = int | str | Callable[..., int]


@dataclass(frozen=True, eq=False)
class Apart:
    """A rule whose states are kept in blocks, as three: `decode` writes the values of those states, as more states, `inner` is
    the rule on them, and `encode` writes their codes.

    values: {state: the state of its values}; function: the one that does all three.
    """

    decode: Rule
    inner: Rule
    encode: Rule
    values: Mapping[str, str]
    function: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Rule:
    """A pure update of one parameter.

        new_param, *new_states = function(param, grad, *states, **options)

    function: uses tensor operators and methods only, and nothing in place.
    states: the names after `param` and `grad` in its signature, as in `optimizer.state[param]`.
    options: its keyword-only names, read from the parameter group by the same names.
    scalars: the states that are 0-dim (`step`); the others are shaped like the parameter.
    optional: {state: option}: the state exists only where the option is not zero, False or None (max_exp_avg_sq: amsgrad).
    initial: {state: a number, the name of an option, or a function of the parameter, or of the parameter and {option: value}}:
        what the state starts from; zero for those not named. A function makes the tensor itself, or None
        where a parameter has no such state; its shape may depend on flags and static options alone. PLACE,
        for a 0-dim state, is the number of its parameter in the group.
    branches: the numbers on whose being zero the function branches, as in `if weight_decay != 0`: zero and not zero
        are two programs. All other numbers are entries of a table, and changing them costs nothing. `first` may be among them
        with elementwise=False.
    static: numbers that the function takes as they are, such as a count of iterations: each value is another program.
    elementwise: False says that the function reduces, multiplies matrices or the like: it is then called on tensors, on
        stacks of those with one shape where that helps, instead of being compiled into one pass over memory.
    sparse: what a sparse gradient means. "rows": the update of the rows it touches, and nothing of the others;
        "linear": the function is linear in the gradient, and works on sparse tensors as it stands; None: refused.
    dense: whether dense gradients are taken.

    shared: {state: "model" or "group"}: 0-dim states that all parameters have in common, or those of a group: they live in the
        group under their name, are computed from numbers, shared states and totals (rules/totals.py), and one of the model
        follows the numbers of the first group.

    every: {flag: (option, first)}: the option `flag` is not the group's: it is True at step `first`, counted from 1, and
        every `option` steps from there, and False otherwise. Or {flag: a function of the step and of the group}.

    evaluated: how a parameter is evaluated, where that is not how it is trained: the name of a state that it is exchanged with,
        or two functions of the parameter, of states by their names and, keyword-only, of options: (to evaluate, to train).

    lists: {state: a number, the name of a static option, or a function of the parameter, or of the parameter and {option:
        value}}: the state is a list of so many tensors, which optimizer.state[param] has one by one as `state_0`, `state_1`
        and so on. What `initial` has for it is a function of the parameter and the index, or of those and {option: value},
        and makes one of them, or None, which the list then has in that place.

    never_negative: the states of which the author says that they are never below zero, where a program does not prove it, as
        where the function multiplies matrices: they may be kept in codes without a sign (storage/), and then what is below zero
        is NaN.

    added: those of the states that a transformation of the rule brought along (around/).
    follows_norm: whether its 0-dim states depend on `grad_norm`, so that they must be where the gradients are.
    in_blocks: {state: elements of a block} of the states that are scales of others, which are kept in blocks (storage/);
    packed: likewise of those that have two elements to a byte.
    dense_alone: the options that brought those transformations which are for dense gradients alone.
    apart: the rule as three, where its states are kept in blocks.
    derived: rules that were made of it, by the object, beside itself, with which they end; programs: what was traced of it;
    of_numbers: the options that are numbers by a constructor's defaults, and whether they are tuples.

    Four options are not read from the group: `first` is 1.0 on a parameter's first update, when its states were just made,
    and 0.0 afterwards; `dtype` is the parameter's own, where the function computes in a wider one; `grad_norm` is
    the norm over all gradients, where the group has `max_grad_norm`; `noise` gives random numbers (rules/noise.py), which
    follow from the option `seed` and the 0-dim state `step`.
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
    in_blocks: Mapping[str, int] = field(default_factory=dict)
    packed: Mapping[str, int] = field(default_factory=dict)
    dense_alone: tuple[str, ...] = ()
    follows_norm: bool = False
    shared: Mapping[str, str] = field(default_factory=dict)
    every: Mapping[str, Turn] = field(default_factory=dict)
    evaluated: str | tuple[Callable[..., Any], Callable[..., Any]] | None = None
    lists: Mapping[str, Count] = field(default_factory=dict)
    never_negative: frozenset[str] = frozenset()
    apart: Apart | None = None
    derived: WeakKeyDictionary[Any, dict[Hashable, Rule]] = field(default_factory=WeakKeyDictionary, init=False, repr=False)
    of_numbers: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    programs: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

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
        return read(group, (*self.options, *self.shared), self.branches, self.static)

    def starts_from_place(self, state: str) -> bool:
        """Whether a 0-dim state starts from the number of its parameter in the group."""
        return self.initial.get(state) == PLACE

    def initial_value(self, state: str, group: Mapping[str, Any]) -> float:
        value = self.initial.get(state, 0.0)
        return as_float(group[value] if isinstance(value, str) else value)

    def maker(self, state: str) -> Callable[..., Any] | None:
        """The function that makes a state of its parameter and, where `is_made_of_options`, of the group; if one was given."""
        value = self.initial.get(state)
        if not callable(value):
            return None
        if _takes_options(value):
            return lambda param, group: value(param, {name: group[name] for name in self.options if name in group})
        return lambda param, group=None: value(param)

    def is_made_of_options(self, state: str) -> bool:
        value = self.initial.get(state)
        return callable(value) and _takes_options(value)

    def takes_options(self, state: str) -> bool:
        """Whether the function that makes the elements of a list is given the options too."""
        return _takes_options(self.initial[state], 3)

    def counter(self, state: str) -> Callable[[Any, Mapping[str, Any]], int] | None:
        """How long a list is for a parameter and {option: value}, where a function says so."""
        count = self.lists[state]
        if not callable(count):
            return None
        return count if _takes_options(count) else lambda param, options: count(param)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)


def _takes_options(function: Any, arguments: int = 2) -> bool:
    """Whether a function has so many arguments that must be given."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # one of C's
        return False
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == arguments


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
                f"rule {rule}: the 0-dim state {name!r} starts from a number or the name of an option, not from a function; "
                f"take the option `first` and write torch.where(first > 0, ..., {name})"
            )


def _read_by(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """The names of the arguments after the first."""
    return [name for function in functions for name in list(inspect.signature(function).parameters)[1:]]


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
    shared: Iterable[str] | Mapping[str, str] = (),
    every: Mapping[str, str | Turn] | None = None,
    evaluated: str | tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    lists: Mapping[str, Count] | None = None,
    never_negative: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], Rule]:
    """Make a `Rule` of a function `(param, grad, *states, *, options) -> (param, *states)`; see `Rule` for the arguments.

    Raises: TypeError where the signature does not fit, naming the argument.
    """
    if sparse not in (None, "rows", "linear"):
        raise TypeError(f'sparse must be "rows", "linear" or None, got {sparse!r}')
    turns = {flag: (one, 0) if isinstance(one, str) else one for flag, one in (every or {}).items()}
    scopes = dict(shared) if isinstance(shared, Mapping) else dict.fromkeys(shared, "model")
    if odd := sorted(set(scopes.values()) - {"model", "group"}):
        raise TypeError(f'shared says of a state whether it is the "model"\'s or the "group"\'s, got {odd[0]!r}')

    def wrap(function: Callable[..., Any]) -> Rule:
        states, options = _arguments(function)
        takes_noise = NOISE in options
        if takes_noise:
            _check_noise(function.__name__, states, scalars, sparse)
            function = counted(function)
            states, options = _arguments(function)
        made = Rule(
            function=function,
            states=states,
            options=options,
            scalars=frozenset(scalars) | {STEP} if takes_noise else frozenset(scalars),
            optional=dict(optional or {}),
            initial=dict(initial or {}),
            branches=frozenset(branches).union((optional or {}).values()),  # with and without the state are two programs
            static=frozenset(static),
            elementwise=elementwise,
            sparse=sparse,
            dense=dense,
            shared=scopes,
            every=turns,
            evaluated=evaluated,
            lists=dict(lists or {}),
            never_negative=frozenset(never_negative),
        )
        _check_names(made)
        known = made.branches if elementwise else made.branches - {"first"}
        _check_meaning(made.name, (*made.scalars, *scopes), made.initial, {"branches": known, "static": made.static})
        return made

    return wrap


def _arguments(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(states, options) of a signature. Raises: TypeError where it is not that of a rule."""
    parameters = inspect.signature(function).parameters
    positional = tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
    options = tuple(n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY)
    if positional[:2] != ("param", "grad"):
        raise TypeError(f"rule {function.__name__}: the first two arguments must be (param, grad), got {positional[:2]}")
    if len(positional) + len(options) != len(parameters):
        raise TypeError(f"rule {function.__name__}: *args and **kwargs are not allowed; name every state and option")
    return positional[2:], options


def _check_noise(rule: str, states: Iterable[str], scalars: Iterable[str], sparse: str | None) -> None:
    """Refuse noise where nothing tells the numbers of one update from those of the next. Raises: TypeError."""
    if STEP in states and STEP not in scalars:
        raise TypeError(f"rule {rule}: noise is a function of the state {STEP!r}, a count of updates; say scalars=({STEP!r},)")
    if sparse is not None:
        raise TypeError(f"rule {rule}: noise is for dense gradients, and sparse={sparse!r} says that it takes others")


def _check_names(rule: Rule) -> None:
    """Refuse declarations of arguments that the function does not have. Raises: TypeError, naming the argument."""
    states, options = rule.states, rule.options
    like_params = tuple(state for state in states if state not in (*rule.scalars, *rule.shared))
    if "dtype" in options and rule.elementwise:
        raise TypeError(f"rule {rule.name}: the option `dtype` is for rules with elementwise=False")
    evaluated = [rule.evaluated] if isinstance(rule.evaluated, str) else _read_by(rule.evaluated or ())
    for kind, names, known in (
        ("scalars", sorted(rule.scalars), tuple(state for state in states if state not in rule.shared)),
        ("shared", rule.shared, states),
        ("optional", rule.optional, states),
        ("optional", rule.optional.values(), options),
        ("initial", rule.initial, states),
        ("initial", [v for v in rule.initial.values() if isinstance(v, str)], (*options, PLACE)),
        (f"initial {PLACE!r}", [name for name in rule.initial if rule.starts_from_place(name)], tuple(rule.scalars)),
        ("branches", sorted(rule.branches), options),
        ("static", sorted(rule.static), options),
        ("evaluated", evaluated, (*states, *options)),
        ("never_negative", sorted(rule.never_negative), like_params),
        ("every", rule.every, options),
        ("lists", rule.lists, tuple(state for state in like_params if state not in rule.optional)),
        ("lists", [count for count in rule.lists.values() if isinstance(count, str)], tuple(rule.static)),
        ("every", [turn[0] for turn in rule.every.values() if isinstance(turn, tuple)], options),
    ):
        for name in names:
            if name not in known:
                raise TypeError(f"rule {rule.name}: {kind} names {name!r}, which is none of {known}")
    for name in sorted(rule.never_negative):
        start = rule.initial.get(name, 0.0)
        if isinstance(start, int | float) and start < 0:
            raise TypeError(f"rule {rule.name}: never_negative names {name!r}, which starts from {start}")
