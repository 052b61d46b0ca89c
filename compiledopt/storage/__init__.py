"""How values are kept, one file each: as they are, rounded, or in blocks; and how parameters in half types are rounded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from compiledopt.rules.rule import Rule
from compiledopt.storage.blocks import Int8, UInt8
from compiledopt.storage.codec import Codec
from compiledopt.storage.converting import converted
from compiledopt.storage.derived import ROUNDING, SEED, STATE_DTYPE, Kept, keep
from compiledopt.storage.parameters import NEAREST_NAME, ROUNDINGS
from compiledopt.storage.rounded import StochasticallyRounded, Stored
from compiledopt.storage.signs import never_negative

__all__ = ["CODECS", "DESCRIBED", "OPTIONS", "ROUNDING", "STATE_DTYPE", "Kept", "check", "complete", "converted", "is_asked"]
__all__ += ["keep", "kept", "kind_of", "reading", "wanted"]

OPTIONS = (STATE_DTYPE, ROUNDING, SEED)
DESCRIBED = {
    STATE_DTYPE: "how states are kept: a dtype, a name of docs/precision.md, or {state: one of these}",
    ROUNDING: f'of parameters in half types: "{NEAREST_NAME}", {", ".join(repr(name) for name in ROUNDINGS)}'.replace("'", '"'),
    SEED: "of the random bits by which values are rounded, an integer of 0 to 2^24",
}
MOST_SEED = 2**24  # a float32, which kernels read numbers as, has no larger integers without gaps

CODECS: dict[str, Codec] = {
    one.name: one
    for one in (
        Stored("float32", torch.float32),
        StochasticallyRounded("bfloat16", torch.bfloat16),
        StochasticallyRounded("float16", torch.float16),
        Stored("bfloat16_nearest", torch.bfloat16),
        Stored("float16_nearest", torch.float16),
        Int8(),
        UInt8(),
    )
}


def is_asked(group: Mapping[str, Any]) -> bool:
    return group.get(STATE_DTYPE) is not None or group.get(ROUNDING) not in (None, NEAREST_NAME)


def name_of(asked: Any) -> str:
    """The name of a codec, of what stands in a group. Raises: ValueError."""
    name = str(asked).removeprefix("torch.") if isinstance(asked, torch.dtype) else asked
    if name not in CODECS:
        raise ValueError(f"Invalid {STATE_DTYPE} value: {asked!r}; it is one of {', '.join(CODECS)}, or the torch.dtype of one")
    return str(name)


def asked_for(group: Mapping[str, Any]) -> dict[str, str]:
    """{state: name of a codec}, "*" for those that are not named. Raises: ValueError."""
    asked = group.get(STATE_DTYPE)
    if asked is None:
        return {}
    return {k: name_of(v) for k, v in asked.items() if v is not None} if isinstance(asked, Mapping) else {"*": name_of(asked)}


def check(rule: Rule | None, group: Mapping[str, Any]) -> None:
    """Refuse what cannot be kept so. Raises: ValueError."""
    for name in OPTIONS:
        if rule is None and group.get(name) is not None:
            raise ValueError(f"{name} is for optimizers that are one rule for each parameter, which this one is not")
    rounding, seed = group.get(ROUNDING), group.get(SEED, 0)
    if rounding not in (None, NEAREST_NAME, *ROUNDINGS):
        raise ValueError(f"Invalid {ROUNDING} value: {rounding!r}; it is one of {', '.join((NEAREST_NAME, *ROUNDINGS))}")
    if not (isinstance(seed, int) and 0 <= seed <= MOST_SEED):
        raise ValueError(f"Invalid {SEED} value: {seed!r}; it is an integer of 0 to {MOST_SEED}")
    known = asked_for(group)
    if rule is None or not is_asked(group):
        return
    states = [name for name in rule.states if name not in rule.scalars and name not in rule.shared]
    for name in known:
        if name != "*" and name not in states:
            raise ValueError(
                f"Invalid {STATE_DTYPE}: {name!r} is no state of {rule.name}, which has {', '.join(states) or 'none'}"
            )
    if group.get("differentiable"):
        raise ValueError(f"{STATE_DTYPE} and {ROUNDING} do not go with differentiable=True: rounding has no derivative")
    blocks = [name for name in known.values() if CODECS[name].block]
    if blocks and not rule.elementwise:
        raise ValueError(f"{blocks[0]!r} is for rules that are elementwise, {rule.name} is not")
    randomly = [
        name for name in (*known.values(), rounding) if (name in CODECS and CODECS[name].random) or name == "stochastic"
    ]
    if randomly and not rule.elementwise:
        raise ValueError(
            f"{randomly[0]!r} rounds with random bits, which rules that are not elementwise do not have, as {rule.name}"
        )


def wanted(group: Mapping[str, Any]) -> Hashable | None:
    """What a group asks for: two with the same answer keep their values alike."""
    return (tuple(sorted(asked_for(group).items())), group.get(ROUNDING)) if is_asked(group) else None


def reading(rule: Rule, group: Mapping[str, Any]) -> Rule:
    """The rule as one that reads all numbers that any parameter of the group needs."""
    return replace(rule, options=(*rule.options, SEED)) if is_asked(group) and SEED not in rule.options else rule


def complete(group: dict[str, Any]) -> None:
    """Fill in what a group that was added leaves open. Mutates: `group`."""
    if is_asked(group):
        group.setdefault(SEED, 0)


def kind_of(group: Mapping[str, Any], param: torch.Tensor) -> Hashable:
    """What parameters of a group have in common whose values are kept alike."""
    return param.dtype, CODECS["int8"].objection(param) is None


def kept(rule: Rule, group: Mapping[str, Any], param: torch.Tensor) -> Kept | None:
    """How the values of one parameter are kept where that is not as the rule makes them."""
    if not is_asked(group):
        return None
    asked, states = asked_for(group), []
    unsigned = any(CODECS[name].unsigned for name in asked.values())
    positive = never_negative(rule, group) if unsigned else frozenset()
    for name in rule.states_for(group):
        codec = CODECS.get(asked.get(name, asked.get("*", "") if name not in rule.added else ""))
        if codec is not None and codec.unsigned and name in positive:
            codec = CODECS[codec.unsigned]
        if (
            name in rule.scalars
            or name in rule.shared
            or codec is None
            or rule.is_made_of_options(name)
            or not _is_like(rule, name, param)
            or codec.objection(param) is not None
        ):
            continue
        if codec.block and rule.maker(name) is not None:
            continue
        states.append((name, codec, 0.0 if rule.maker(name) else rule.initial_value(name, group)))
    rounding = ROUNDINGS.get(group.get(ROUNDING) or NEAREST_NAME)
    if rounding is not None and param.dtype not in rounding.dtypes:
        rounding = None
    return Kept(tuple(states), rounding, param.dtype) if states or rounding else None


def _is_like(rule: Rule, state: str, param: torch.Tensor) -> bool:
    """Whether a state is floating point and has its parameter's shape."""
    made = rule.maker(state)
    if made is None:
        return True
    value = made(torch.empty(param.shape, dtype=param.dtype, device="meta"))
    return value is not None and value.shape == param.shape and value.is_floating_point()
