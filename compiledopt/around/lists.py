"""`lists=` of a rule: states that are lists of tensors, as many as an option or a parameter says. Each element is a state of
its own beside the others: `window_0`, `window_1`, ..."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, named, results
from compiledopt.rules.author import TraceError
from compiledopt.rules.rule import Rule


class Listed(Transformation):
    """A rule whose lists are states one by one; it is the rule that is given lists."""

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        """How many states of each list there are, for the parameter of the group that has most."""
        if not rule.lists:
            return None
        return tuple((name, _most(rule, name, group)) for name in rule.lists)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        most = dict(wanted)
        places = [(name, [f"{name}_{i}" for i in range(most[name])] if name in most else [name]) for name in rule.states]
        flat = tuple(element for _, elements in places for element in elements)
        counters = {name: rule.counter(name) for name in most}

        def listed(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
            known = dict(zip(flat, states, strict=True))
            counts = {name: most[name] if of is None else of(param, options) for name, of in counters.items()}
            given = [
                [known.get(f"{name}_{i}") for i in range(counts[name])] if name in most else known[name] for name in rule.states
            ]
            new, *others = results(rule, param, grad, tuple(given), options)
            if len(others) != len(places):
                return (new, *others)  # which is refused, with the states by name
            return (new, *_flat(rule, places, counts, most, others))

        initial = {name: start for name, start in rule.initial.items() if name not in most}
        for name, number in most.items():
            initial |= {f"{name}_{i}": start for i in range(number) if (start := _start(rule, name, i)) is not None}
        return named(replace(rule, function=listed, states=flat, initial=initial), rule)


def _most(rule: Rule, name: str, group: Mapping[str, Any]) -> int:
    count, counter = rule.lists[name], rule.counter(name)
    if counter is not None:
        return max((counter(param, group) for param in group["params"]), default=0)
    return int(group[count]) if isinstance(count, str) else count  # type: ignore[return-value]


def _start(rule: Rule, name: str, index: int) -> Any:
    """What an element of a list starts from; None for zeros like the parameter."""
    start = rule.initial.get(name)
    if not callable(start) and not callable(rule.lists[name]):
        return start
    make: Callable[..., Any] = start if callable(start) else lambda param, _: torch.zeros_like(param)
    own, counter = callable(start) and rule.takes_options(name), rule.counter(name)

    def made(param: Any, options: Mapping[str, Any]) -> Any:
        if counter is not None and index >= counter(param, options):
            return None
        return make(param, index, options) if own else make(param, index)

    return made


def _flat(
    rule: Rule,
    places: Sequence[tuple[str, list[str]]],
    counts: Mapping[str, int],
    most: Mapping[str, int],
    values: Sequence[Any],
) -> list[Any]:
    """The new states one by one, None for those that a parameter does not have. Raises: TraceError for a list of another
    length."""
    found: list[Any] = []
    for (name, _), value in zip(places, values, strict=True):
        if name not in most:
            found.append(value)
            continue
        if not isinstance(value, (list, tuple)) or len(value) != counts[name]:
            got = f"one of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__
            raise TraceError(f"{rule.place}: rule {rule.name} must return a list of {counts[name]} for {name}, got {got}")
        found += [*value, *[None] * (most[name] - len(value))][: most[name]]
    return found
