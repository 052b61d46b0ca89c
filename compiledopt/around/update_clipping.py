"""`update_clipping`: the root mean square of an update is at most so much."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.around.transformation import Transformation, asked, check_number, check_reducing, named
from compiledopt.around.update import taken_apart
from compiledopt.rules.ops import apply
from compiledopt.rules.rule import Rule

MOST = "update_clipping"


class UpdateClipped(Transformation):
    """u ← u·min(1, update_clipping·γ / rms u), over a tensor; what a rule decays apart from the gradient is no part of u. As in
    Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) and StableAdamW (Wortsman et al. 2023, arXiv:2304.13013)."""

    option = MOST
    described = "scale the update of a tensor down to a root mean square of so many times lr, where it is more"
    letters = {MOST: "D"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, MOST) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if asked(rule, group, MOST):
            words = f"Invalid {MOST} value: {group[MOST]}; it must be a number > 0, and Adafactor's is 1.0"
            check_number(group[MOST], MOST, lambda most: most > 0.0, words)
            check_reducing(rule, MOST)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def clipped(param: Any, grad: Any, *states: Any, update_clipping: Any, **options: Any) -> tuple[Any, ...]:
            update = taken_apart(rule, param, grad, states, options)
            most = update_clipping * options["lr"] if "lr" in options else update_clipping
            size = (update.change * update.change).mean().sqrt()
            change = update.change * apply("where", size > most, most / size, 1.0)
            return (update.kept + change, *update.states)

        options = (*rule.options, MOST)
        return named(replace(rule, function=clipped, options=options, dense_alone=(*rule.dense_alone, MOST)), rule)
