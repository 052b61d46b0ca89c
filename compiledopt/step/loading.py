"""A state that does not fit is refused before anything changes; the first mismatch is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from compiledopt import around, storage
from compiledopt.around.every import STEPS
from compiledopt.backends.distributed import local
from compiledopt.backends.layout import scalar_dtype
from compiledopt.rules.options import RESERVED
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Traced
from compiledopt.step.precision import converted as converted
from compiledopt.step.precision import in_precision as in_precision

Group = Mapping[str, Any]


def check_groups(rules: Sequence[Rule], groups: Sequence[Group], owner: str) -> None:
    """Refuse groups that lack what their rule reads of them, as those of another optimizer do. Raises: ValueError."""
    for index, (rule, group) in enumerate(zip(rules, groups, strict=True)):
        read = (*rule.options, *rule.shared)
        lacking = [name for name in read if name not in RESERVED and name not in group and name not in rule.every]
        if lacking:
            raise ValueError(
                f"loaded state dict does not fit {owner}: param_groups[{index}] has no {lacking[0]!r}; it has "
                f"{sorted(str(key) for key in group if key != 'params')}. Was it saved by another optimizer?"
            )


def check_states(rules: Sequence[Rule], groups: Sequence[Group], state: Mapping[Any, Any], owner: str) -> None:
    """Refuse states that are not what the rule has for a parameter. Raises: ValueError."""
    number = 0
    for rule, group in zip(rules, groups, strict=True):
        programs = around.Programs(rule, group)
        for param in group["params"]:
            if state.get(param):
                _check(programs.of(param), param, state[param], f"state of parameter {_name(group, param, number)}", owner)
            number += 1


def _name(group: Group, param: torch.Tensor, number: int) -> str:
    names = group.get("param_names")
    if names is None:
        return str(number)
    return repr(next(name for name, one in zip(names, group["params"], strict=True) if one is param))


def _check(program: Traced, param: torch.Tensor, state: Mapping[str, Any], what: str, owner: str) -> None:
    rule = program.rule
    for name, shape in program.shapes_of(param).items():
        value = state.get(name)
        if isinstance(value, torch.Tensor) and value.shape != shape:
            raise ValueError(
                f"loaded state dict does not fit {owner}: the {what} has {name!r} of shape {tuple(value.shape)}, and the "
                f"parameter, of shape {tuple(param.shape)}, wants {tuple(shape)}. Load it for the model that it was saved of, "
                "with its parameters in the same order and groups"
            )
    wanted = (*program.scalar_names, *program.shapes_of(param))
    lacking = [name for name in wanted if name not in {*rule.added, *rule.optional, *state}]
    if lacking:
        raise ValueError(
            f"loaded state dict does not fit {owner}: the {what} has no {lacking[0]!r}; it has {sorted(map(str, state))}. "
            "Was it saved by another optimizer?"
        )
    for name in program.scalar_names:
        value = state.get(name)
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"loaded state dict does not fit {owner}: the {what} has {name!r} with {value.numel()} elements")


def restore_dtypes(rules: Sequence[Rule], groups: Sequence[Group], state: Mapping[Any, Any], saved: Mapping[str, Any]) -> None:
    """Bring states back to the dtype that the rule makes, from the values that were saved: torch's load_state_dict has cast
    them to their parameter's. 0-dim ones stay floating point numbers as they were saved. Mutates: `state`."""
    for rule, group, theirs in zip(rules, groups, saved["param_groups"], strict=True):
        programs = around.Programs(rule, group)
        on_device = group.get("capturable") or group.get("fused")
        for param, number in zip(group["params"], theirs["params"], strict=True):
            values, found = state.get(param, {}), saved["state"].get(number, {})
            program = programs.of(param)
            for name, dtype in program.dtypes_of(param).items():
                if isinstance(found.get(name), torch.Tensor) and values[name].dtype != dtype:
                    values[name] = found[name].to(param.device, dtype)
            for name in program.scalar_names:
                value = found.get(name)
                if not isinstance(value, torch.Tensor):
                    continue
                dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else scalar_dtype(group)
                if values[name].dtype != dtype:
                    values[name] = value.to(param.device if on_device else "cpu", dtype)


def keep_as_now(group: dict[str, Any], now: Group) -> None:
    """A loaded group keeps its values as the optimizer does that loads it. Mutates: `group`."""
    for name in (storage.STATE_DTYPE, storage.MIN_NUMEL, storage.ROUNDING):
        group.pop(name, None)
        if name in now:
            group[name] = now[name]


def tensor_scalars(rules: Sequence[Rule], groups: Sequence[Group], state: Mapping[Any, Any]) -> None:
    """Old checkpoints keep `step` as a number. Mutates: `state`."""
    for rule, group in zip(rules, groups, strict=True):
        on_device = group.get("capturable") or group.get("fused")
        for param in group["params"]:
            values = state.get(param, {})
            for name in rule.scalars & set(values):
                if not isinstance(values[name], torch.Tensor):
                    device = param.device if on_device else torch.device("cpu")
                    with torch.inference_mode(False):  # later steps write to it
                        values[name] = torch.tensor(float(values[name]), dtype=scalar_dtype(group), device=device)


def tensors_of(state_dict: Mapping[str, Any]) -> set[tuple[int, int]]:
    """What tells the caller's tensors: their objects' and their memory's addresses."""
    return {_identity(tensor) for tensor in _leaves(state_dict["state"])}


def _leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)


def _identity(tensor: torch.Tensor) -> tuple[int, int]:
    part = local(tensor)
    return (0, part.data_ptr()) if part.layout is torch.strided and part.numel() and part.data_ptr() else (id(tensor), 0)


def own(state: Mapping[Any, Any], theirs: set[tuple[int, int]]) -> None:
    """Copy what would share memory with the caller's tensors: a step would change those too. Mutates: `state`."""
    for values in state.values():
        if isinstance(values, dict):
            values.update({name: _owned(value, theirs) for name, value in values.items()})


def _owned(value: Any, theirs: set[tuple[int, int]]) -> Any:
    if isinstance(value, list):  # LBFGS keeps its history in lists
        return [_owned(part, theirs) for part in value]
    return value.clone() if isinstance(value, torch.Tensor) and _identity(value) in theirs else value


def own_numbers(group: Mapping[str, Any], rule: Rule | None) -> dict[str, Any]:
    """A group to be saved: states that its parameters share are copied, since later steps write to them."""
    shared = () if rule is None else (*rule.shared, *((STEPS,) if rule.every else ()))
    return {name: value.clone() if name in shared else value for name, value in group.items()}
