"""`ema_decay`: a running average of each parameter inside the step, and evaluating with it: parameters exchanged with their
averages for a while, in place, without memory beyond one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, asked, check_number, named, results
from compiledopt.interrupts import Whole
from compiledopt.rules.ops import apply
from compiledopt.rules.rule import Rule

EMA = "ema_decay"


class Averaged(Transformation):
    """a ← a + w·(θ − a) after the update, with w = 1 at first, as AveragedModel copies then, and 1 − ema_decay later."""

    option = EMA
    described = 'keep an average of each parameter, made in the same pass, in `state[param]["ema"]`; see `use_ema`'
    letters = {"ema": "a", EMA: "d", "n_averaged": "n"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, EMA) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if not asked(rule, group, EMA):
            return
        decay = group[EMA]
        words = f"Invalid decay value {decay} provided. Please provide a value in [0,1] range."
        check_number(decay, EMA, lambda value: 0.0 <= value <= 1.0, words)
        if rule is not None and not rule.elementwise:
            raise ValueError(
                f"{EMA} is for rules that are elementwise, {rule.name} is not; use compiledopt.swa_utils.AveragedModel"
            )

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def averaged(param: Any, grad: Any, *states: Any, ema_decay: Any, **options: Any) -> tuple[Any, ...]:
            *own, count, average = states
            new, *kept = results(rule, param, grad, tuple(own), options)
            weight = apply("where", count == 0, 1.0, 1 - ema_decay)
            return (new, *kept, count + 1, towards(average, new, weight))

        made = replace(
            rule,
            function=averaged,
            states=(*rule.states, "n_averaged", "ema"),
            options=(*rule.options, EMA),
            scalars=rule.scalars | {"n_averaged"},
            added=rule.added | {"n_averaged", "ema"},
            dense_alone=(*rule.dense_alone, EMA),
        )
        return named(made, rule)


def towards(average: Any, current: Any, weight: Any) -> Any:
    """a + w·(θ − a): what every running average is."""
    return average.lerp(current, weight)


# ---- evaluating with them ----


def averages(groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> list[torch.Tensor]:
    """The average of each parameter, in order; the parameter itself where none was made yet."""
    made = _made(groups, state)
    return [made.get(param, param.detach()) for group in groups for param in group["params"]]


def _made(groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> dict[torch.Tensor, torch.Tensor]:
    """{parameter: its average}, of those that have one: a step that is left out, even the first, has made none."""
    own = {param: state.get(param, {}) for group in groups for param in group["params"]}
    counts: dict[torch.device, dict[torch.Tensor, torch.Tensor]] = {}
    for param, values in own.items():
        if "ema" in values:
            counts.setdefault(values["n_averaged"].device, {})[param] = values["n_averaged"].reshape(())
    begun = {p for of in counts.values() for p, count in zip(of, torch.stack([*of.values()]).tolist(), strict=True) if count}
    return {param: values["ema"] for param, values in own.items() if param in begun}


@contextmanager
def swapped(groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> Iterator[None]:
    """Within, the parameters hold their averages, and the other way round."""
    pairs = list(_made(groups, state).items())
    exchanged = False

    def exchange_all() -> None:
        nonlocal exchanged
        for param, average in pairs:
            exchange(param, average)
        exchanged = not exchanged

    try:
        with Whole():
            exchange_all()
        yield
    finally:
        with Whole():
            if exchanged:
                exchange_all()


@torch.no_grad()
def exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    """Mutates: both."""
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
