"""`max_grad_norm`: the norm over all gradients, and clipping by it. The norm is not read on the host where the gradients are on
a device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from compiledopt.around.transformation import Transformation, asked, check_number, named, results
from compiledopt.backends.batch import Batch, Value
from compiledopt.backends.registry import compiled_for
from compiledopt.rules.ops import apply
from compiledopt.rules.options import NORM, as_float
from compiledopt.rules.rule import Rule

CLIP = "max_grad_norm"


class Clipped(Transformation):
    """g ← min(1, max_grad_norm / (‖all g‖ + 1e-6))·g, as torch.nn.utils.clip_grad_norm_."""

    option = CLIP
    described = "clip the gradients, as they are read, to this norm over all of them; `optimizer.grad_norm` is the norm"
    letters = {CLIP: "G", NORM: "N"}

    def wanted(self, rule: Rule, group: Mapping[str, Any]) -> Hashable | None:
        return asked(rule, group, CLIP) or None

    def check(self, rule: Rule | None, group: Mapping[str, Any]) -> None:
        super().check(rule, group)
        if asked(rule, group, CLIP):
            words = f"Invalid {CLIP} value: {group[CLIP]}; it must be a number >= 0"
            check_number(group[CLIP], CLIP, lambda norm: norm >= 0.0, words)

    def derive(self, rule: Rule, wanted: Any) -> Rule:
        def clipped(param: Any, grad: Any, *states: Any, max_grad_norm: Any, grad_norm: Any, **options: Any) -> tuple[Any, ...]:
            share = max_grad_norm / (grad_norm + 1e-6)
            return results(rule, param, grad * apply("where", share > 1.0, 1.0, share), states, options)

        options = (*rule.options, CLIP, NORM)
        return named(replace(rule, function=clipped, options=options, dense_alone=(*rule.dense_alone, CLIP)), rule)


class Clipping:
    """The norm, for each device of an optimizer: a number on the host, elsewhere a tensor that never moves, so that a
    captured graph may read it. norm: that of the gradients themselves, after GradScaler's scale is taken out of it."""

    def __init__(self, on_host: bool = True) -> None:
        """on_host: whether a norm may be read on the host, where the gradients are there."""
        self.norm: Value | None = None
        self.on_host = on_host
        self.given: dict[torch.device, dict[str, Any]] = {}
        self.places: dict[torch.device, torch.Tensor] = {}  # [sum of squares, norm], of which the second is given
        self.is_in_place = False  # whether the batches left the last norm where it is given

    def on(self, device: torch.device) -> dict[str, Any]:
        """The norm as a number of the step, for batches on a device; changed in place."""
        if device not in self.given:
            backend = compiled_for(device)
            on_host = self.on_host and device.type == "cpu" and (backend is None or backend.numbers_on_host)
            with torch.inference_mode(False):  # later steps write to it
                if not on_host:
                    self.places[device] = torch.zeros(2, dtype=torch.float64, device=device)
            self.given[device] = {NORM: 0.0 if on_host else self.places[device][1]}
        return self.given[device]

    def measure(self, batches: Sequence[Batch], grad_scale: torch.Tensor | None, again: bool = False) -> None:
        """Measure the gradients that were gathered. grad_scale: what they were multiplied by. again: those of parameters that
        are listed twice, which were measured before."""
        clipped = [batch for batch in batches if batch.is_clipped]
        there = None if again else self._in_place(clipped)
        self.is_in_place = there is not None and grad_scale is None
        with nullcontext() if there is not None and grad_scale is None else torch.no_grad():  # entering it takes 2 µs
            if not again:
                self._set(self._given([batch.squares() for batch in clipped]) if there is None else there, grad_scale)
            for batch in clipped:
                batch.renew()

    def take(self, squares: Sequence[Value]) -> float:
        """The norm, given the sums of squares of all batches that are clipped; none of those is renewed."""
        self._set(norm := self._given(squares), None)
        return as_float(norm)

    def _in_place(self, clipped: Sequence[Batch]) -> torch.Tensor | None:
        """The norm where it is given, left there by the batches themselves, or None."""
        if len(self.given) != 1 or not self.places or not clipped:
            return None
        ((device, place),) = self.places.items()
        places = [(number == 0, number == len(clipped) - 1) for number in range(len(clipped))]
        done = all(batch.measure_into(place, *each) for batch, each in zip(clipped, places, strict=True))
        return self.given[device][NORM] if done else None

    def _given(self, squares: Sequence[Value]) -> Value:
        norm = _root(squares)
        for device, given in self.given.items():
            if isinstance(given[NORM], float):
                given[NORM] = as_float(norm)
            else:
                given[NORM].copy_(_on(norm, device))
        return norm

    def _set(self, norm: Value, grad_scale: torch.Tensor | None) -> None:
        if grad_scale is not None:
            norm = norm / (as_float(grad_scale) if isinstance(norm, float) else _on(grad_scale.reshape(()), norm.device))
        self.norm = norm


def _on(value: Value, device: torch.device) -> torch.Tensor:
    """A 0-dim float64 tensor on a device, without waiting for another one."""
    if isinstance(value, float):
        return torch.full((), value, dtype=torch.float64, device=device)
    return value.to(device, torch.float64, non_blocking=True)


def _root(squares: Sequence[Value]) -> Value:
    """√Σ, on the host where all of it is there, else on the device of the first that is not."""
    known = math.fsum(value for value in squares if isinstance(value, float))
    tensors = [value for value in squares if isinstance(value, torch.Tensor)]
    if not tensors:
        return math.sqrt(known)
    total = tensors[0] + known
    for value in tensors[1:]:
        total = total + _on(value, total.device)
    return total.sqrt()
