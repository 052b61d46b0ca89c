"""What constructors take: the options beside torch's, the bounds of all of them, in torch's words, and what help() says."""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT as ParamsT
from typing_extensions import Unpack as Unpack

from compiledopt import around, storage
from compiledopt.around.transformation import check_one_element as check_one_element
from compiledopt.rules.options import no_number, tuples_of_numbers
from compiledopt.rules.rule import Rule
from compiledopt.rules.schedule import Schedule

LearningRate = float | Tensor | Schedule


class Extras(TypedDict, total=False):
    """What every optimizer takes beside torch's arguments, as keywords or in a group: the options of `around` and of
    `storage`."""

    max_grad_norm: float | None
    ema_decay: float | None
    state_dtype: torch.dtype | str | Mapping[str, torch.dtype | str | None] | None
    min_quantized_numel: int | None
    rounding: str | None
    seed: int | None
    cautious: bool | None
    corrected_decay: bool | float | None
    update_clipping: float | None
    gradient_centralization: bool | None
    grokfast: tuple[float, float] | None
    skip_nonfinite: bool | None


def at_start(lr: Any) -> Any:
    """A learning rate as a number that can be checked: a schedule's first."""
    return lr(0) if isinstance(lr, Schedule) else lr


# ---- bounds ----


@dataclass(frozen=True)
class Bound:
    """The range of an option, or of its elements, and what torch says of a number outside it. NaN is outside of all.

    least, above, below, most: its ends; those that are None do not bound. index: the element; each: all of them.
    optional: None is inside.
    """

    option: str
    words: str
    least: float | None = 0.0
    above: float | None = None
    below: float | None = None
    most: float | None = None
    index: int | None = None
    each: bool = False
    optional: bool = False

    def element(self, index: int) -> Bound:
        """The same of one element."""
        return replace(self, index=index, each=False, words=f"{self.words} at index {index}")

    def elements(self, value: Any) -> list[tuple[Bound, Any]]:
        """What of an option is bounded, with what bounds it. Raises: TypeError or IndexError where it is not there."""
        try:
            if self.each:
                return [(self.element(index), number) for index, number in enumerate(value)]
            return [(self, value if self.index is None else value[self.index])]
        except (TypeError, IndexError) as error:
            raise type(error)(
                f"{self.option} must be a {'tuple' if self.each else 'pair'} of numbers, got {value!r}"
            ) from error

    def check(self, value: Any) -> None:
        """Refuse a number outside. Raises: ValueError; TypeError for what is none, and for a schedule that cannot be."""
        if isinstance(value, Schedule) and self.option != "lr":
            raise TypeError(f"{self.option} is {value}: only lr can be a schedule; change others in param_groups between steps")
        number = at_start(value)
        if number is None and self.optional:
            return
        ends = (self.least, operator.ge), (self.above, operator.gt), (self.below, operator.lt), (self.most, operator.le)
        for end, holds in ((-math.inf, operator.ge), *ends):
            try:
                inside = end is None or holds(number, end)
            except TypeError as error:
                raise no_number(self.option, number) from error
            if not inside:
                raise ValueError(f"{self.words}: {number}")

    def __str__(self) -> str:
        low = f"> {self.above:g}" if self.above is not None else f"≥ {self.least:g}" if self.least is not None else ""
        high = f"< {self.below:g}" if self.below is not None else f"≤ {self.most:g}" if self.most is not None else ""
        return " and ".join(filter(None, (low, high)))


# The numbers whose bounds all agree on. What an algorithm has of its own, or in other words, stands with it.
LR = Bound("lr", "Invalid learning rate")
EPS = Bound("eps", "Invalid epsilon value")
BETA = Bound("betas", "Invalid beta parameter", below=1.0)
MOMENTUM = Bound("momentum", "Invalid momentum value")
WEIGHT_DECAY = Bound("weight_decay", "Invalid weight_decay value")
# In the order in which torch checks them.
BOUNDS = (LR, EPS, BETA.element(0), BETA.element(1), MOMENTUM, WEIGHT_DECAY)


def check_bounds(bounds: Iterable[Bound], options: Mapping[str, Any]) -> None:
    """Refuse the first number outside of its bounds, among the options there are. Raises: ValueError in torch's words."""
    check_one_element(options.get("lr"), "lr")
    for bound in bounds:
        if bound.option in options:
            for one, number in bound.elements(options[bound.option]):
                one.check(number)


def check_matrices(kind: Any, params: Iterable[Tensor]) -> None:
    """Refuse what is no matrix, for a class that takes these alone. Raises: ValueError in torch's words."""
    for param in params:
        if kind.for_matrices and param.ndim != 2:
            words = f"{kind.__name__} only supports 2D parameters whereas we found a parameter with size: {param.size()}"
            raise ValueError(words)


def numbers(constructor: Any, bounds: Iterable[Bound]) -> tuple[Bound, ...]:
    """Of the options that are numbers by default and have no bounds, that they are numbers."""
    known, found = {bound.option for bound in bounds}, []
    for name, parameter in inspect.signature(constructor).parameters.items():
        default = parameter.default if isinstance(parameter.default, tuple) else (parameter.default,)
        kinds = {type(number) for number in default}
        if name not in known and float in kinds and kinds <= {float, int}:
            free = Bound(name, f"Invalid {name} value", least=None, optional="None" in str(parameter.annotation))
            found.append(replace(free, each=default is parameter.default))
    return tuple(found)


# ---- what a signature says ----

# What every optimizer of one's own takes beside the options of its rule, and what is off unless it is asked for.
HABITS: dict[str, Any] = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False}
HABITS |= {"fused": None, "compiled": None}
# What an option means wherever it stands.
DESCRIBED = {
    "params": "parameters, named parameters, or dicts of groups with options of their own",
    "lr": "(γ) float, 1-element tensor or schedule (compiledopt.schedules)",
    "betas": "(β₁, β₂) two floats",
    "eps": "(ε) float",
    "weight_decay": "(λ) float",
    "momentum": "(μ) float",
    "maximize": "follow the gradient upwards",
    "decoupled_weight_decay": "θ ← (1 − γ·λ)·θ instead of adding λ·θ to the gradient",
    "foreach": "True runs lists of tensors, False one tensor after the other, whatever could be compiled",
    "fused": "True is compiled=True, False the for-loop, as in torch",
    "compiled": "True wants one kernel over the whole model or an error; None falls back with a warning; False declines it",
    "capturable": "keep the 0-dim states on the parameter's device, and read nothing on the host, as a CUDA graph needs",
    "differentiable": "let autograd differentiate through the step",
    **storage.DESCRIBED,
    **around.described(),
}


def flags_off(constructor: Any, rule: Rule | None) -> dict[str, Any]:
    """The flags of a signature that are off by default, which groups of older versions lack."""
    known = {*HABITS, *(rule.options if rule is not None else ())}
    parameters = inspect.signature(constructor).parameters
    off = {name: p.default for name, p in parameters.items() if p.default is False or (name in HABITS and p.default is None)}
    return {name: value for name, value in off.items() if name in known}


def complete(kind: Any, constructor: Any) -> None:
    """What a class has from its constructor's signature: what old groups lack, that its numbers are numbers, and help().
    What torch's classes take is torch's. Mutates: the class."""
    rule = getattr(kind, "rule", None)
    kind.missing = {**flags_off(constructor, rule), **kind.missing}
    if rule is not None:
        defaults = {name: p.default for name, p in inspect.signature(constructor).parameters.items() if name in rule.options}
        rule.of_numbers.update({**tuples_of_numbers(defaults), **rule.of_numbers})
    if kind.__module__ == __package__ and not hasattr(torch.optim, kind.__name__):
        kind.bounds = (*kind.bounds, *numbers(constructor, kind.bounds))
    if kind.__doc__ is not None:  # as it is under python -OO
        own = inspect.cleandoc(kind.__doc__)
        kind.__doc__ = f"{own}\n\n{description(own, constructor, rule, kind.bounds)}"


def description(own: str, constructor: Any, rule: Rule | None, bounds: Iterable[Bound]) -> str:
    """What help() says below an algorithm's own words: its arguments with their bounds and defaults, and what all share.

    own: the algorithm's own words; an argument that they describe, as `name:` or `name (letter):`, is not described again.
    """
    lines = ["Arguments (how the flags choose what runs: docs/executors.md):"]
    for name, parameter in inspect.signature(constructor).parameters.items():
        if name == "self":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            lines += [f"    {name}: {DESCRIBED[name]}; default None" for name in Extras.__annotations__]
            continue
        within = dict.fromkeys(str(bound) for bound in bounds if bound.option == name)
        default = () if parameter.default is parameter.empty else (f"default {parameter.default!r}",)
        meaning = "" if re.search(rf"\b{name}( \([^)]*\))?:", own) else DESCRIBED.get(name, "")
        lines.append(f"    {name}: {'; '.join(filter(None, (meaning, *within, *default)))}")
    if rule is not None and "step" in rule.scalars:
        lines.append("State, beside the above: `step`, a 0-dim float, how often the parameter was updated.")
    lines.append("Mutates: the parameters and the state, never a gradient.")
    lines.append("Raises: ValueError for a number out of its bounds, RuntimeError for flags that contradict each other.")
    return "\n".join(lines)
