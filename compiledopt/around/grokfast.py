"""`grokfast`: the slow part of the gradients, amplified before a rule reads them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.around.transformation import Transformation, asked, check_dense, check_one_element, named, results
from compiledopt.rules.ops import apply
from compiledopt.rules.options import as_float, is_number
from compiledopt.rules.rule import Rule

GROKFAST, COUNT, SLOW = "grokfast", "n_filtered", "grok_exp_avg"


class Grokfast(Transformation):
    """e ← α·e + (1 − α)·g, which is g at first;  g ← g + λ·e.  grokfast: (α, λ). Lee et al. 2024, arXiv:2405.20233."""

    option = GROKFAST
    described = "(α, λ): adds λ times an average of the gradients, which decays by α, to each; the paper has (0.98, 2.0)"
    letters = {SLOW: "e", f"{GROKFAST}[0]": "alpha_e", f"{GROKFAST}[1]": "lambda_e", COUNT: "n_e"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return True if asked(rule, group, GROKFAST) else None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if not asked(rule, group, GROKFAST):
            return
        check_dense(rule, GROKFAST)
        pair = group[GROKFAST]
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(is_number, pair)):
            raise ValueError(f"Invalid {GROKFAST} value: {pair}; it is (alpha, lamb), as (0.98, 2.0)")
        for value in pair:
            check_one_element(value, GROKFAST)
        alpha, lamb = map(as_float, pair)
        if not 0.0 <= alpha < 1.0 or not lamb >= 0.0:
            raise ValueError(f"Invalid {GROKFAST} value: {pair}; alpha must be in [0, 1) and lamb a number >= 0")

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        own = len(rule.states)

        def filtered(param: Any, grad: Any, *states: Any, grokfast: Any, **options: Any) -> tuple[Any, ...]:
            alpha, lamb = grokfast
            count, slow = states[own:]
            slow = slow.lerp(grad, apply("where", count == 0, 1.0, 1 - alpha))
            return (*results(rule, param, grad + lamb * slow, states[:own], options), count + 1, slow)

        made = replace(
            rule,
            function=filtered,
            states=(*rule.states, COUNT, SLOW),
            options=(*rule.options, GROKFAST),
            scalars=rule.scalars | {COUNT},
            added=rule.added | {COUNT, SLOW},
            dense_alone=(*rule.dense_alone, GROKFAST),
        )
        return named(made, rule)
