"""`cautious`: the elements of an update that go against the gradient are left out, and the others grow for them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.around.transformation import Transformation, asked, check_flag, check_reducing, named
from compiledopt.around.update import taken_apart
from compiledopt.rules.rule import Rule

CAUTIOUS = "cautious"
LEAST = 1e-3  # of the mean of a mask, as in the authors' code and in timm's


class Cautious(Transformation):
    """u ← u·φ / max(mean φ, 0.001)  with  φ = 1 where u goes against the gradient, else 0;  what a rule decays apart from the
    gradient, (1 − γ·λ)·θ, is no part of u. Liang et al. 2024, arXiv:2411.16085."""

    option = CAUTIOUS
    described = "True leaves out what goes against the gradient of an update, and scales the rest by one over its share"

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, CAUTIOUS) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if asked(rule, group, CAUTIOUS):
            check_flag(group[CAUTIOUS], CAUTIOUS)
            check_reducing(rule, CAUTIOUS)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def cautious(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
            update = taken_apart(rule, param, grad, states, options)
            # Of signs, whose product does not vanish where that of two small numbers does.
            mask = (-update.change.sign() * update.gradient.sign()).clamp_min(0.0)
            change = update.change * (mask / mask.mean().clamp_min(LEAST))
            return (update.kept + change, *update.states)

        return named(replace(rule, function=cautious, dense_alone=(*rule.dense_alone, CAUTIOUS)), rule)
