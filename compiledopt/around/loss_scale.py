"""torch.amp.GradScaler: its scale and its verdict are two more numbers of the step, read where they are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, named, results
from compiledopt.rules.ops import apply
from compiledopt.rules.options import FOUND, NORM, SCALE
from compiledopt.rules.rule import Rule


class LossScaled(Transformation):
    """g ← g / grad_scale, and every result stays as it was where found_inf is not 0. A step has it, no group asks for it."""

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return None

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def scaled(param: Any, grad: Any, *states: Any, grad_scale: Any, found_inf: Any, **options: Any) -> tuple[Any, ...]:
            share = 1.0 / grad_scale
            if NORM in options:
                options[NORM] = options[NORM] * share
            new = results(rule, param, grad * share, states, options)
            kept = zip((param, *states), new, strict=True)
            return tuple(_unless(found_inf, old, value) for old, value in kept)

        return named(replace(rule, function=scaled, options=(*rule.options, SCALE, FOUND)), rule)

    def hold_codes(self, rule: Rule) -> Rule:
        """A scaled rule whose values are kept in blocks: what was left out keeps its codes too, bit for bit. The scale of a
        block is the largest of its values then as before, and kernels take no other for it."""
        made = _held(rule)
        if (apart := rule.apart) is None:
            return made
        inner, encode = _held(apart.inner), _held(apart.encode)
        return replace(made, apart=replace(apart, inner=inner, encode=encode, function=made.function))


def _held(rule: Rule) -> Rule:
    """A rule whose results stay as they were where found_inf is not 0, but for the scales of blocks."""
    names, reads = ("param", *rule.states), FOUND in rule.options

    def held(param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
        found_inf = options[FOUND] if reads else options.pop(FOUND)
        new = results(rule, param, grad, states, options)
        kept = zip(names, (param, *states), new, strict=True)
        return tuple(v if v is old or name in rule.in_blocks else _unless(found_inf, old, v) for name, old, v in kept)

    return named(replace(rule, function=held, options=rule.options if reads else (*rule.options, FOUND)), rule)


def _unless(found_inf: Any, old: Any, new: Any) -> Any:
    return None if old is None else apply("where", found_inf != 0.0, old, new)


class Scaling:
    """`grad_scale` and `found_inf` on each device of an optimizer. Where they are never moves, so that a captured graph may
    read them."""

    def __init__(self) -> None:
        self.values: dict[torch.device, dict[str, torch.Tensor]] = {}
        self.last: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        if device not in self.values:
            with torch.inference_mode(False):  # later steps write to them
                made = {name: torch.ones((), dtype=torch.float32, device=device) for name in (SCALE, FOUND)}
            self.values[device] = made
            self.set(*self.last)
        return self.values[device]

    def set(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Take over the scaler's tensors, without waiting for them."""
        self.last = (grad_scale, found_inf)
        for values in self.values.values():
            for name, value, without in ((SCALE, grad_scale, 1.0), (FOUND, found_inf, 0.0)):
                if value is None:
                    values[name].fill_(without)
                else:
                    values[name].copy_(value.reshape(()), non_blocking=True)
