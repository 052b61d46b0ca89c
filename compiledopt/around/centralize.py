"""`gradient_centralization`: the mean over all dimensions but the first is taken out of a gradient."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.around.transformation import Transformation, asked, check_flag, check_reducing, named, results
from compiledopt.rules.rule import Rule

CENTRALIZED = "gradient_centralization"


class Centralized(Transformation):
    """g ← g − mean of g over all dimensions but the first, where there is more than one. Yong et al. 2020, arXiv:2004.01461."""

    option = CENTRALIZED
    described = "True takes its mean over all dimensions but the first out of each gradient of two and more"

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, CENTRALIZED) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if asked(rule, group, CENTRALIZED):
            check_flag(group[CENTRALIZED], CENTRALIZED)
            check_reducing(rule, CENTRALIZED)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def centralized(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
            dims = param.ndim
            if dims > 1:
                grad = grad - grad.mean(dim=tuple(range(1, dims)), keepdim=True)
            return results(rule, param, grad, states, options)

        return named(replace(rule, function=centralized, dense_alone=(*rule.dense_alone, CENTRALIZED)), rule)
