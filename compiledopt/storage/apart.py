"""A rule whose states are kept in blocks as three rules, for who decodes states before the rule runs and encodes them after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from compiledopt.rules.rule import Apart, Rule
from compiledopt.storage.codec import SCALE
from compiledopt.storage.derived import Kept, keep, makers

VALUES = "values"


def keep_apart(rule: Rule, kept: Kept) -> Rule:
    """The rule with its values kept so, which knows itself as three where some are kept in blocks."""
    made = keep(rule, kept)
    if not kept.has_blocks:
        return made
    blocked = {name: (codec, start) for name, codec, start in kept.states if codec.block}
    values = {name: f"{name}_{VALUES}" for name in blocked}
    states = tuple(each for name in blocked for each in (name, f"{name}_{SCALE}", values[name]))
    initial: dict[str, Any] = {values[name]: _wide for name in blocked}
    for name, (codec, start) in blocked.items():
        initial |= makers(rule, name, codec, start)
    optional = {each: rule.optional[name] for name in blocked if name in rule.optional for each in _of(name)}
    bare = replace(
        rule,
        states=states,
        options=tuple(dict.fromkeys(optional.values())),
        scalars=frozenset(),
        optional=optional,
        initial=initial,
        branches=frozenset(),
        static=frozenset(),
        elementwise=True,
        added=frozenset(),
        follows_norm=False,
        in_blocks={f"{name}_{SCALE}": codec.block for name, (codec, _) in blocked.items()},
        packed={name: codec.block for name, (codec, _) in blocked.items() if codec.packed},
    )

    def decode(param: Any, grad: Any, *given: Any, **_: Any) -> tuple[Any, ...]:
        known = dict(zip(states, given, strict=True))
        for name, (codec, _start) in blocked.items():
            if known[name] is not None:
                known[values[name]] = codec.decode(known[name], known[f"{name}_{SCALE}"])
        return (param, *known.values())

    def encode(param: Any, grad: Any, *given: Any, **_: Any) -> tuple[Any, ...]:
        known = dict(zip(states, given, strict=True))
        for name, (codec, _start) in blocked.items():
            if known[name] is not None:
                known[name], known[f"{name}_{SCALE}"] = codec.encode(known[values[name]] * 1.0, None)
        return (param, *known.values())

    others = Kept(tuple(state for state in kept.states if state[0] not in blocked), kept.rounding, kept.dtype)
    inner = keep(rule, others) if others.states or others.rounding else rule
    inner = replace(inner, initial={**inner.initial, **dict.fromkeys(blocked, _wide)})
    parts = (replace(bare, function=decode), inner, replace(bare, function=encode))
    return replace(made, apart=Apart(*parts, values, made.function))


def _of(name: str) -> tuple[str, str, str]:
    return name, f"{name}_{SCALE}", f"{name}_{VALUES}"


def _wide(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32), requires_grad=False)
