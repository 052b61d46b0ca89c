"""The states of a parameter: made at its first update, with torch's names, shapes, dtypes and devices."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from compiledopt import storage
from compiledopt.backends.layout import scalar_dtype
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Traced


def is_complete(traced: Traced, param: torch.Tensor, state: Mapping[str, Any]) -> bool:
    return all(isinstance(state.get(name), torch.Tensor) for name in (*traced.scalar_names, *traced.states_of(param)))


class StateMaker:
    """Makes the missing states of many parameters; `undo` takes them away again if the step fails before it wrote."""

    def __init__(self, state: MutableMapping[torch.Tensor, Any]) -> None:
        self.state = state
        self.made: list[tuple[torch.Tensor, str | None]] = []
        self.places: dict[int, dict[torch.Tensor, int]] = {}  # of the parameters in each group
        self.spare: dict[tuple[float, torch.dtype, torch.device], list[torch.Tensor]] = {}

    def make(self, wanted: Sequence[tuple[Traced, torch.Tensor, Mapping[str, Any]]]) -> list[bool]:
        """Fill in what is missing, for (program, parameter, group) each; whether any of the rule's own was."""
        # Made in inference mode, a state could never be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            return [self._make(*one, len(wanted) - number) for number, one in enumerate(wanted)]

    def _make(self, traced: Traced, param: torch.Tensor, group: Mapping[str, Any], expected: int) -> bool:
        """expected: parameters that may follow, with this one. Raises: RuntimeError."""
        present = (*traced.scalar_names, *traced.states_of(param))
        if not present:
            return False  # and no empty dict: as torch's
        if param not in self.state:
            self.made.append((param, None))
        state = self.state[param]
        _check_left_over(traced, param, state)
        missing = [name for name in traced.rule.states if name in present and state.get(name) is None]
        _check_shaped(traced.rule, state, present, missing)
        for name in missing:
            self.made.append((param, name))
            if name in traced.rule.scalars:
                placed = traced.rule.starts_from_place(name)
                value = self._place(param, group) if placed else traced.rule.initial_value(name, group)
                state[name] = self._scalar(value, param, group, 1 if placed else expected)
            elif name in traced.makers:
                state[name] = traced.makers[name](param.detach(), group)
            else:
                state[name] = _like(param, traced.rule, traced.rule.initial_value(name, group))
        return any(name not in traced.rule.added for name in missing)

    def _scalar(self, value: float, param: torch.Tensor, group: Mapping[str, Any], expected: int) -> torch.Tensor:
        """A 0-dim tensor of its own; many are views of one vector, which the launcher reads in fewer cache lines."""
        on_device = group.get("capturable") or group.get("fused")
        device = param.device if on_device else torch.device("cpu")
        if group.get("differentiable"):
            return torch.full((), value, dtype=scalar_dtype(group), device=device)
        spare = self.spare.setdefault((value, scalar_dtype(group), device), [])
        if not spare:
            spare += torch.full((max(1, expected),), value, dtype=scalar_dtype(group), device=device).unbind()[::-1]
        return spare.pop()

    def _place(self, param: torch.Tensor, group: Mapping[str, Any]) -> float:
        if id(group) not in self.places:
            self.places[id(group)] = {each: place for place, each in reversed(list(enumerate(group["params"])))}
        return float(self.places[id(group)][param])

    def undo(self) -> None:
        for param, name in reversed(self.made):
            if name is None:
                self.state.pop(param, None)
            elif param in self.state:
                self.state[param].pop(name, None)


def _check_shaped(rule: Rule, state: Mapping[str, Any], present: Sequence[str], missing: Sequence[str]) -> None:
    """Refuse options by which a parameter has other states than it has: in the middle of a run nobody could fill them
    in. Raises: RuntimeError."""
    if not any(name in state for name in rule.states if name not in rule.added):
        return
    shaped = [name for name in rule.states if rule.is_made_of_options(name)]
    for name in shaped:
        if name in missing or (name in state and name not in present):
            has = "lacks" if name in missing else "has"
            options = [option for option in rule.options if option in rule.static]
            raise RuntimeError(
                f"{rule.name}: a parameter {has} the state {name!r}, and by its group's options it should be otherwise. Set "
                f"{', '.join(options)} back to what they were, or delete optimizer.state[param] to start afresh"
            )


def _check_left_over(traced: Traced, param: torch.Tensor, state: Mapping[str, Any]) -> None:
    """Refuse what belongs to another `rounding` than the group's now: it would be lost, or be added one day to a parameter that
    it does not belong to any more. Raises: RuntimeError."""
    for name, rounding in storage.left_over(state, traced.rule.states).items():
        raise RuntimeError(
            f"state {name!r} is of rounding={rounding!r}, and {param.dtype} parameters of its group are "
            "rounded otherwise now. To change `rounding` between steps, take state_dict(), set the group's, and "
            f"load_state_dict() it, which leaves out {name!r}; or delete it from optimizer.state[param]"
        )


def _like(param: torch.Tensor, rule: Rule, value: float) -> torch.Tensor:
    """A state shaped like its parameter; sparse where the rule works on sparse gradients as they stand, as torch's."""
    if rule.sparse == "linear" and param.grad is not None and param.grad.layout is torch.sparse_coo:
        return torch.zeros_like(param.grad, requires_grad=False)
    fill = complex(value, value) if param.is_complex() else value
    return torch.full_like(param, fill, memory_format=torch.preserve_format, requires_grad=False)
