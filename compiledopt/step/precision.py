"""States that were kept in one way, brought into another: between a file and an optimizer, or for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compiledopt import around, storage
from compiledopt.rules.rule import Rule

Group = Mapping[str, Any]


def converted(rules: Sequence[Rule], groups: Sequence[Group], state: dict[Any, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """What was saved, with states kept as the groups ask. groups: those to be loaded into; saved: as its own groups say.

    Mutates: `state`, by parameter, where that is another way.
    """
    packed = dict(saved["state"])
    for rule, group, theirs in zip(rules, groups, saved["param_groups"], strict=True):
        plain = not storage.is_asked(group) and not storage.is_asked(theirs)
        for param, number in zip(group["params"], theirs["params"], strict=True):
            if number not in packed or (plain and not storage.left_over(packed[number], rule.states)):
                continue
            found = _in_another_way(rule, theirs, group, param, packed[number])
            if found is not None:
                packed[number] = state[param] = found
    return {**saved, "state": packed}


def in_precision(rules: Sequence[Rule], groups: Sequence[Group], packed: dict[str, Any], precision: Any) -> dict[str, Any]:
    """A state_dict with its states kept as `precision` says, and groups that ask for nothing. groups: the optimizer's own.

    Raises: ValueError for a precision that there is not.
    """
    state, plain = dict(packed["state"]), []
    storage.wanted({storage.STATE_DTYPE: precision})  # refuses what there is not, also where there is no state yet
    for rule, group, theirs in zip(rules, groups, packed["param_groups"], strict=True):
        asked = {**group, storage.STATE_DTYPE: precision, storage.ROUNDING: None}
        for param, number in zip(group["params"], theirs["params"], strict=True):
            found = _in_another_way(rule, group, asked, param, state[number]) if number in state else None
            state[number] = found if found is not None else state.get(number, {})
        kept = {name: value for name, value in theirs.items() if name not in storage.OPTIONS}
        plain.append(kept if precision in ("float32", torch.float32) else {**kept, storage.STATE_DTYPE: precision})
    return {**packed, "state": {number: values for number, values in state.items() if values}, "param_groups": plain}


def _in_another_way(rule: Rule, old: Group, new: Group, param: torch.Tensor, values: Any) -> dict[str, Any] | None:
    """The states of a parameter as a group asks, from how another one does; None where that is the same."""
    known = around.derived(rule, new)
    before = storage.kept(known, {**new, **{name: old.get(name) for name in storage.OPTIONS}}, param)
    after = storage.kept(known, new, param)
    if not storage.fits(values, before, after, param):
        return None  # refused with the other states
    found = values if before == after else storage.converted(values, before, after, param)
    states = known.states if after is None or after.rounding is None else (*known.states, *after.rounding.states)
    stale = storage.left_over(found, states)
    if before == after and not stale:
        return None
    return {name: value for name, value in found.items() if name not in stale}
