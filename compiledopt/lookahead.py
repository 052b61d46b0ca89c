"""Lookahead: slow weights, which follow the fast ones of any optimizer every k steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from compiledopt.arguments import Extras, Unpack
from compiledopt.combined import ALGORITHM, Combined
from compiledopt.optimizer import Optimizer, StateDict
from compiledopt.rules.rule import Rule

SLOW, STEPS, ALPHA, DUE = "slow_params", "lookahead_k", "lookahead_alpha", "lookahead_due"


class Lookahead(Combined):
    """Lookahead: every k steps of an optimizer, slow weights move towards the fast ones, which go on from there.

        θ ← base(θ, g);  every k steps:  φ ← φ + α·(θ − φ);  θ ← φ

    optimizers: those that take the steps, as for Combined. alpha: (α) float of 0 to 1; k: int ≥ 1, steps between; both are in
        the groups, as `lookahead_alpha` and `lookahead_k`.
    `with optimizer.evaluating():`, or `optimizer.eval()` and `optimizer.train()`, exchange the parameters for the slow weights.
    State: the base's, and `slow_params` (φ), like the parameter: what it was before its first update. The program of the steps
    between reads none of it. A state_dict of the base can be loaded: φ begins at the parameters there are then.
    Mutates: the parameters and the state.
    Raises: ValueError for numbers out of their bounds, and for an optimizer that has an evaluation of its own.
    Source: Zhang et al. 2019, arXiv:1907.08610.
    Names: timm's, whose slow weights begin at the first k-th step, so that nothing is drawn back before the second.
    """

    def __init__(self, *optimizers: Optimizer, alpha: float = 0.5, k: int = 6, **extras: Unpack[Extras]) -> None:
        _check(alpha, k)
        self._numbers = {ALPHA: alpha, STEPS: k}
        super().__init__(*optimizers, **extras)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        whole = {**self._numbers, **param_group}
        _check(whole[ALPHA], whole[STEPS])
        super().add_param_group(whole)

    def rule_of(self, group: Mapping[str, Any]) -> Rule:
        return looking_ahead(super().rule_of(group))

    def load_state_dict(self, state_dict: StateDict) -> None:
        """As any optimizer's; also what the base saved, without slow weights, where all groups are of one algorithm."""
        names = {group[ALGORITHM] for group in self.param_groups}
        if len(names) == 1:
            groups = [{ALGORITHM: min(names), **group} for group in state_dict["param_groups"]]
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_numbers": self._numbers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._numbers = state.pop("_numbers", self.__dict__.get("_numbers", {}))
        for group in state["param_groups"]:  # those of the base alone have no such numbers
            for name, value in self._numbers.items():
                group.setdefault(name, value)
        super().__setstate__(state)


def _check(alpha: float, k: int) -> None:
    """Raises: ValueError."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"Invalid alpha value: {alpha}; it is a number of 0 to 1")
    if not k >= 1:
        raise ValueError(f"Invalid k value: {k}; it is a number of steps, 1 or more")


@cache
def looking_ahead(rule: Rule) -> Rule:
    """A rule with slow weights. Raises: ValueError where it has an evaluation of its own."""
    if rule.evaluated is not None:
        raise ValueError(f"Lookahead evaluates slow weights, and {rule.name} has an evaluation of its own; use one of the two")

    def ahead(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
        *own, slow = states
        alpha, due = options.pop(ALPHA), options.pop(DUE)
        options.pop(STEPS)
        returned = rule(param, grad, *own, **options)
        new, *others = returned if isinstance(returned, tuple) else (returned,)
        if due:
            new = slow = slow + alpha * (new - slow)
        return (new, *others, slow)

    ahead.__name__ = rule.function.__name__
    ahead.__wrapped__ = rule.function  # type: ignore[attr-defined]
    return replace(
        rule,
        function=ahead,
        states=(*rule.states, SLOW),
        options=(*rule.options, ALPHA, STEPS, DUE),
        initial={**rule.initial, SLOW: lambda param: param.clone()},
        every={**rule.every, DUE: (STEPS, 0)},
        added=rule.added | {SLOW},
        evaluated=SLOW,
    )
