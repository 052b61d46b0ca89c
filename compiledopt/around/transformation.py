"""The interface of what stands around a rule. One file here and one line in TRANSFORMATIONS (around/__init__.py) each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from compiledopt.rules.options import no_number
from compiledopt.rules.rule import Rule


class Transformation(ABC):
    """Makes a rule of a rule: every executor, the formula and explain then have it without knowing of it.

    option: the option of a group that asks for it, where there is one; described: what help() says of that.
    letters: {a name in the derived rule: the letter for it in formulas}.
    """

    option: str | None = None
    described: str = ""
    letters: Mapping[str, str] = {}

    @abstractmethod
    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        """What a group asks for around its rule, or None: two with the same answer share what is derived."""

    @abstractmethod
    def derive(self, rule: Rule, wanted: Any) -> Rule:
        """The rule with it."""

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        """Refuse what cannot stand around a rule. rule: None for an optimizer without one. Raises: ValueError."""
        if rule is None and self.option is not None and group.get(self.option) is not None:
            raise ValueError(f"{self.option} is for optimizers that are one rule for each parameter, which this one is not")

    def completed(self, rule: Rule, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a group that was just added, and checked, leaves open: options with their values."""
        return {}


def asked(rule: Rule | None, group: Mapping[str, Any], name: str) -> bool:
    """Whether a group asks for what an option switches on; not where the rule has an option of that name itself."""
    value = group.get(name)
    return value is not None and value is not False and (rule is None or name not in rule.options)


def results(rule: Rule, param: Any, grad: Any, states: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a rule returns, always as a tuple."""
    returned = rule(param, grad, *states, **options)
    return returned if isinstance(returned, tuple) else (returned,)


def named(made: Rule, rule: Rule) -> Rule:
    """Messages name the author's function, and its place."""
    made.function.__name__ = rule.function.__name__
    made.function.__wrapped__ = rule.function  # type: ignore[attr-defined]
    return made


def check_flag(value: Any, name: str) -> None:
    """Refuse what is neither True nor False. Raises: ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"Invalid {name} value: {value}; it is True or False")


def check_dense(rule: Rule | None, name: str) -> None:
    """Refuse a rule that takes sparse gradients alone. Raises: ValueError."""
    if rule is not None and not rule.dense:
        raise ValueError(f"{name} is for rules that take dense gradients, {rule.name} does not")


def check_reducing(rule: Rule | None, name: str) -> None:
    """Refuse a rule that cannot take a mean over its parameter into it. Raises: ValueError."""
    check_dense(rule, name)
    if rule is not None and rule.shared:
        raise ValueError(
            f"{name} is not for rules whose parameters share a state, as {rule.name}: it reduces over each of them"
        )


def check_number(value: Any, name: str, is_inside: Callable[[Any], Any], words: str) -> None:
    """Refuse a flag, a tensor of several elements, and a number outside of its bounds. Raises: ValueError, with these words;
    TypeError for what is no number."""
    check_one_element(value, name)
    try:
        inside = not isinstance(value, bool) and is_inside(value)
    except TypeError as error:
        raise no_number(name, value) from error
    if not inside:
        raise ValueError(words)


def check_one_element(value: Any, name: str) -> None:
    """Refuse a tensor of several elements as a number. Raises: ValueError in torch's words."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element")
