"""Which states of a parameter are kept in which way, and why others are not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.rules.rule import Rule
from compiledopt.storage.codec import Codec
from compiledopt.storage.codecs import CODECS, asked_for
from compiledopt.storage.derived import MIN_NUMEL, ROUNDING, STATE_DTYPE, Kept
from compiledopt.storage.parameters import NEAREST_NAME, ROUNDINGS
from compiledopt.storage.signs import never_negative, never_written


def is_asked(group: Mapping[str, Any]) -> bool:
    return group.get(STATE_DTYPE) is not None or group.get(ROUNDING) not in (None, NEAREST_NAME)


def kind_of(rule: Rule, group: Mapping[str, Any], param: torch.Tensor) -> Hashable:
    """What parameters of a group have in common whose values are kept alike. What functions make may go by dimensions."""
    dims = param.dim() if any(rule.maker(name) for name in rule.states) else None
    known = {CODECS[name] for name in asked_for(group).values()}
    return param.dtype, dims, frozenset(codec.name for codec in known if codec.objection(param, group.get(MIN_NUMEL)) is None)


def kept(rule: Rule, group: Mapping[str, Any], param: torch.Tensor) -> Kept | None:
    """How the values of one parameter are kept where that is not as the rule makes them."""
    if not is_asked(group):
        return None
    states = []
    for name, codec in _ways(rule, group, param).items():
        if isinstance(codec, Codec):
            states.append((name, codec, 0.0 if rule.maker(name) else rule.initial_value(name, group)))
    rounding = ROUNDINGS.get(group.get(ROUNDING) or NEAREST_NAME)
    if rounding is not None and param.dtype not in rounding.dtypes:
        rounding = None
    return Kept(tuple(states), rounding, param.dtype) if states or rounding else None


def told(rule: Rule, group: Mapping[str, Any], param: torch.Tensor) -> dict[str, str]:
    """{state: how it is kept, or why not as was asked}, of those of which something was asked; and of the parameter."""
    found = {}
    for name, way in _ways(rule, group, param).items():
        found[name] = f"as {way.name}" if isinstance(way, Codec) else way
        if isinstance(way, Codec) and way.block:
            found[name] += f", in blocks of {way.block}"
    rounding = ROUNDINGS.get(group.get(ROUNDING) or NEAREST_NAME)
    if rounding is not None and param.dtype not in rounding.dtypes:
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in rounding.dtypes)
        found["param"] = f'rounded to nearest, not "{rounding.name}", which is for {names}'
    elif rounding is not None:
        found["param"] = f'written with rounding "{rounding.name}"'
    return found


def _ways(rule: Rule, group: Mapping[str, Any], param: torch.Tensor) -> dict[str, Codec | str]:
    """{state: its codec, or why it has not the one that was asked for}."""
    asked, found = asked_for(group), dict[str, Codec | str]()
    unsigned = any(CODECS[name].unsigned for name in asked.values())
    positive = never_negative(rule, group) if unsigned else frozenset()
    fixed = never_written(rule, group) if "*" in asked else frozenset()
    for name in rule.states_for(group):
        wish = asked.get(name, asked.get("*") if name not in rule.added else None)
        if wish is None or name in rule.scalars or name in rule.shared:
            continue
        codec = CODECS[wish]
        codec = CODECS[codec.unsigned] if codec.unsigned and name in positive else codec
        reason = codec.objection(param, group.get(MIN_NUMEL)) or _unlike(rule, name, group, param)
        if reason is None and name in fixed and name not in asked:
            reason = "it is never written, and what is compared with it would be off by its rounding; ask for it by its name"
        if reason is None and name not in asked and _loses(codec, param) and _starts_from_parameter(rule, name, group):
            reason = "it starts from the parameter, which would be off by its rounding; ask for it by its name"
        found[name] = codec if reason is None else f"not as {wish}: {reason}"
    return found


def _loses(codec: Codec, param: torch.Tensor) -> bool:
    """Whether values of the parameter's dtype are rounded."""
    return bool(codec.block) or codec.dtype.itemsize < param.dtype.itemsize


def _starts_from_parameter(rule: Rule, state: str, group: Mapping[str, Any]) -> bool:
    """Whether a state is a copy of the parameter at first, as the weights that Schedule-Free steps from are."""
    made = rule.maker(state)
    if made is None or state in rule.lists:
        return False
    example = torch.tensor([[1.5, -0.5, 3.0], [0.25, 2.0, -4.0]])
    value = made(example, group)
    return isinstance(value, torch.Tensor) and value.shape == example.shape and torch.equal(value.float(), example)


def _unlike(rule: Rule, state: str, group: Mapping[str, Any], param: torch.Tensor) -> str | None:
    """Why a state that a function makes is not like its parameter, or None."""
    if state in rule.lists:
        return "it is a list of tensors"
    made = rule.maker(state)
    if made is None:
        return None
    for shape in dict.fromkeys((tuple(param.shape), _unequal(param.shape))):
        value = made(torch.empty(shape, dtype=param.dtype, device="meta"), group)
        if value is None:
            return "the parameter has no such state"
        if tuple(value.shape) != shape:
            return f"it is of shape {tuple(value.shape)} for a parameter of {shape}"
    return None if value.is_floating_point() else f"it is {value.dtype}".replace("torch.", "")


def _unequal(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with as many dimensions, no two alike: a square matrix has the shape that a matrix for one of its dimensions has,
    and what is kept in float32 for others should not be kept in codes for that; so has a number, or one element, that of one
    number for each tensor."""
    shape, found = [2 if size == 1 else size for size in shape] or [2], list[int]()
    for size in shape:
        found.append(next(many * size for many in range(1, len(shape) + 1) if many * size not in found or not size))
    return tuple(found)
