"""How a parameter is evaluated, where that is not how it is trained: Schedule-Free's average, Lookahead's slow weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from compiledopt.around.average import exchange
from compiledopt.backends.eager.given import number, operand
from compiledopt.interrupts import Whole
from compiledopt.rules.rule import Rule

MODE = "train_mode"  # of a group whose rule says how a parameter is evaluated: as schedulefree has it

Group = MutableMapping[str, Any]


def give_modes(rules: Sequence[Rule], groups: Sequence[Group]) -> None:
    """Give each group whose rule has one its mode; a group that is added later has that of the others. Mutates: the groups."""
    modal = [group for rule, group in zip(rules, groups, strict=True) if rule.evaluated is not None]
    known = next((group[MODE] for group in modal if MODE in group), True)
    for group in modal:
        group.setdefault(MODE, known)


@torch.no_grad()
def set_mode(rules: Sequence[Rule], groups: Sequence[Group], state: Mapping[Any, Any], training: bool) -> None:
    """Let parameters be what is trained, or what is evaluated. One without states is the same in both.

    Mutates: the parameters, or the parameter and a state, exchanged; the groups' mode.
    """
    with Whole():
        for rule, group in zip(rules, groups, strict=True):
            if rule.evaluated is None or bool(group[MODE]) is training:
                continue
            for param in dict.fromkeys(group["params"]):
                _let_be(rule.evaluated, param, state.get(param, {}), group, training)
            group[MODE] = training


def _let_be(evaluated: Any, param: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any], training: bool) -> None:
    if not isinstance(evaluated, str):
        _convert(evaluated[training], param, state, group)
    elif evaluated in state:
        exchange(param, state[evaluated])


def _convert(function: Callable[..., Any], param: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Write a function of a parameter, of states by their names, and of options, into the parameter."""
    parameters = inspect.signature(function).parameters
    names = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
    if not all(isinstance(state.get(name), torch.Tensor) for name in names):
        return
    options = {name: number(group[name]) for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    new = function(operand(param), *(operand(state[name]) for name in names), **options)
    param.copy_(new.reshape(param.shape))
