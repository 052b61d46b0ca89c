"""What stands around an update, as transformations of its rule: a schedule of the rate, clipping, an average.

A rule made here is a rule like any other, so every executor, the formula and explain have it without knowing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiledopt.rules.ops import apply
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule

CLIP, EMA, SCHEDULE = "max_grad_norm", "ema_decay", "lr_schedule"


@dataclass(frozen=True)
class Around:
    """What a group wants around its rule. schedule: of its rate, or None."""

    schedule: Schedule | None
    averaged: bool
    clipped: bool


def asked(rule: Rule | None, group: Mapping[str, Any], name: str) -> bool:
    """Whether a group asks for what an option switches on; not where the rule has an option of that name itself."""
    return group.get(name) is not None and (rule is None or name not in rule.options)


def around(rule: Rule, group: Mapping[str, Any]) -> Around | None:
    """What the options of a group ask for around its rule, or None for the rule as it stands."""
    schedule, averaged, clipped = group.get(SCHEDULE), asked(rule, group, EMA), asked(rule, group, CLIP)
    if schedule is None and isinstance(group.get("lr"), Schedule):  # put there by hand
        schedule = group["lr"]
    return Around(schedule, averaged, clipped) if averaged or clipped or schedule is not None else None


_derived: dict[tuple[Rule, Around], Rule] = {}


def derived(rule: Rule, group: Mapping[str, Any]) -> Rule:
    """The rule with what the group asks for around it; one object for one choice."""
    wanted = around(rule, group)
    if wanted is None:
        return rule
    key = (rule, wanted)
    if key not in _derived:
        made = rule
        if wanted.schedule is not None:
            made = _scheduled(made, wanted.schedule)
        if wanted.averaged:
            made = _averaged(made)
        _derived[key] = _clipped(made) if wanted.clipped else made
    return _derived[key]


def _results(rule: Rule, param: Any, grad: Any, states: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
    returned = rule(param, grad, *states, **options)
    return returned if isinstance(returned, tuple) else (returned,)


def _scheduled(rule: Rule, schedule: Schedule) -> Rule:
    """lr ← schedule(step), from the rule's own step count, or one that is added."""
    counts = "step" in rule.scalars
    at = rule.states.index("step") if counts else len(rule.states)
    options = tuple(name for name in rule.options if name != "lr")

    def scheduled(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
        step = states[at]
        own = states if counts else states[:-1]
        results = _results(rule, param, grad, own, {**options, "lr": schedule.function(step)})
        return results if counts else (*results, step + 1)

    if counts:
        return _named(replace(rule, function=scheduled, options=options), rule)
    scalars = rule.scalars | {"step"}
    added = rule.added | {"step"}
    return _named(
        replace(rule, function=scheduled, options=options, states=(*rule.states, "step"), scalars=scalars, added=added), rule
    )


def towards(average: Any, current: Any, weight: Any) -> Any:
    """a + w·(θ − a): what every running average is."""
    return average.lerp(current, weight)


def _averaged(rule: Rule) -> Rule:
    """a ← a + w·(θ − a) after the update, with w = 1 at first, as AveragedModel copies then, and 1 − ema_decay later."""

    def averaged(param: Any, grad: Any, *states: Any, ema_decay: Any, **options: Any) -> tuple[Any, ...]:
        *own, count, average = states
        new, *results = _results(rule, param, grad, tuple(own), options)
        weight = apply("where", count == 0, 1.0, 1 - ema_decay)
        return (new, *results, count + 1, towards(average, new, weight))

    made = replace(
        rule,
        function=averaged,
        states=(*rule.states, "n_averaged", "ema"),
        options=(*rule.options, EMA),
        scalars=rule.scalars | {"n_averaged"},
        added=rule.added | {"n_averaged", "ema"},
    )
    return _named(made, rule)


def _clipped(rule: Rule) -> Rule:
    """g ← min(1, max_grad_norm / (‖all g‖ + 1e-6))·g, as torch.nn.utils.clip_grad_norm_."""

    def clipped(param: Any, grad: Any, *states: Any, max_grad_norm: Any, grad_norm: Any, **options: Any) -> tuple[Any, ...]:
        share = max_grad_norm / (grad_norm + 1e-6)
        return _results(rule, param, grad * apply("where", share > 1.0, 1.0, share), states, options)

    return _named(replace(rule, function=clipped, options=(*rule.options, CLIP, "grad_norm")), rule)


def _named(made: Rule, rule: Rule) -> Rule:
    """Messages name the author's function, and its place."""
    made.function.__name__ = rule.function.__name__
    made.function.__wrapped__ = rule.function  # type: ignore[attr-defined]
    return made
