"""`corrected_decay`: weight decay in proportion to the square of the rate."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.around.transformation import Transformation, asked, check_one_element, named, results
from compiledopt.rules.options import as_float
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule
from compiledopt.rules.stand_in import NotZero

CORRECTED = "corrected_decay"


class CorrectedDecay(Transformation):
    """λ ← λ·γ / γ_max, so that (1 − γ·λ)·θ becomes (1 − γ²/γ_max·λ)·θ. Defazio 2025, arXiv:2506.02285."""

    option = CORRECTED
    described = "True multiplies weight_decay by lr over the largest lr, which is the group's first; or that number itself"
    letters = {CORRECTED: "gamma_max"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        if not asked(rule, group, CORRECTED):
            return None
        if group[CORRECTED] is True:
            raise ValueError(f"{CORRECTED}=True was put into a group by hand; put the largest lr there, as in 1e-3")
        return True

    def completed(self, rule: Rule, group: Mapping[str, Any]) -> Mapping[str, Any]:
        if not asked(rule, group, CORRECTED) or group[CORRECTED] is not True:
            return {}
        return {CORRECTED: as_float(group.get("initial_lr", group["lr"]))}

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if rule is None or not asked(rule, group, CORRECTED):
            return
        if lacking := [name for name in ("lr", "weight_decay") if name not in rule.options]:
            raise ValueError(f"{CORRECTED} is for rules with lr and weight_decay, {rule.name} has no {lacking[0]}")
        largest = group[CORRECTED]
        if largest is True:
            largest = group.get("initial_lr", group["lr"])
            if isinstance(largest, Schedule):
                raise ValueError(
                    f"{CORRECTED}=True takes the group's first lr for the largest, and this one is a schedule, {largest}; "
                    f"give the largest as a number: {CORRECTED}=1e-3"
                )
        check_one_element(largest, CORRECTED)
        if not 0.0 < as_float(largest) < math.inf:
            raise ValueError(f"Invalid {CORRECTED} value: {as_float(largest)}; the largest lr must be > 0")

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def corrected(param: Any, grad: Any, *states: Any, corrected_decay: Any, **options: Any) -> tuple[Any, ...]:
            decay = options["weight_decay"]
            if "weight_decay" not in rule.branches:
                options["weight_decay"] = decay * (options["lr"] / corrected_decay)
            elif decay != 0:
                options["weight_decay"] = NotZero(decay * (options["lr"] / corrected_decay))
            return results(rule, param, grad, states, options)

        return named(replace(rule, function=corrected, options=(*rule.options, CORRECTED)), rule)
