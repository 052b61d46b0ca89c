"""`skip_nonfinite`: a step whose gradients are not all finite is left out, where they are: nobody waits to hear of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, asked, check_dense, check_flag, named, results
from compiledopt.rules.ops import apply
from compiledopt.rules.options import NORM
from compiledopt.rules.rule import Rule

SKIP, COUNT, WAITING = "skip_nonfinite", "skipped", "first_waits"


class Skipping(Transformation):
    """Everything stays as it was, step counts too, where ‖all g‖ is infinite or NaN; `skipped` counts how often that was.

    A rule that reads `first` has it at its first update that is not left out: `first_waits` is 1 until then.
    """

    option = SKIP
    described = "True leaves a step out where the norm over all gradients is not finite; `optimizer.skipped` counts those"
    letters = {COUNT: "n_skipped", NORM: "N"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, SKIP) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if asked(rule, group, SKIP):
            check_flag(group[SKIP], SKIP)
            check_dense(rule, SKIP)
            if rule is not None and (rule.shared or rule.every):
                raise ValueError(f"{SKIP} is not for rules that share states or work every k steps, as {rule.name} does")

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        clips, waits = NORM in rule.options, "first" in rule.options
        own = len(rule.states)

        def skipping(param: Any, grad: Any, *states: Any, grad_norm: Any, **options: Any) -> tuple[Any, ...]:
            finite = apply("isfinite", grad_norm)
            if clips:
                options[NORM] = grad_norm
            if waits:
                options["first"] = first = apply("maximum", options["first"], states[own + 1])
            new = results(rule, param, grad, states[:own], options)
            old = (param, *states[:own])
            kept = [None if was is None else apply("where", finite, now, was) for was, now in zip(old, new, strict=True)]
            counted = states[own] + apply("where", finite, 0.0, 1.0)
            return (*kept, counted, apply("where", finite, 0.0, first)) if waits else (*kept, counted)

        more = (COUNT, WAITING) if waits else (COUNT,)
        made = replace(
            rule,
            function=skipping,
            states=(*rule.states, *more),
            options=rule.options if clips else (*rule.options, NORM),
            scalars=rule.scalars | {*more},
            added=rule.added | {*more},
            dense_alone=(*rule.dense_alone, SKIP),
            follows_norm=True,
        )
        return named(made, rule)


def skipped(params: Iterable[torch.Tensor], state: Mapping[Any, Any]) -> torch.Tensor | None:
    """How many steps were left out, of the parameter that missed most; None where nobody counts. Reads nothing on the host."""
    counts = [state[param][COUNT].reshape(()) for param in params if COUNT in state.get(param, {})]
    if not counts:
        return None
    return torch.stack([count.to(counts[0].device, non_blocking=True) for count in counts]).amax()
