"""A rule whose states are kept in blocks as three rules, for who decodes states before the rule runs and encodes them after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from compiledopt.rules.rule import Apart, Rule
from compiledopt.storage.codec import SCALE, Codec
from compiledopt.storage.derived import Kept, keep, makers

VALUES = "values"


Blocked = dict[str, tuple[Codec, float]]  # {state: its codec, and where it starts from}


def keep_apart(rule: Rule, kept: Kept) -> Rule:
    """The rule with its values kept so, which knows itself as three where some are kept in blocks."""
    made = keep(rule, kept)
    if not kept.has_blocks:
        return made
    blocked = {name: (codec, start) for name, codec, start in kept.states if codec.block}
    others = Kept(tuple(state for state in kept.states if state[0] not in blocked), kept.rounding, kept.dtype)
    inner = keep(rule, others) if others.states or others.rounding else rule
    inner = replace(inner, initial={**inner.initial, **dict.fromkeys(blocked, _wide)})
    bare = _bare(rule, blocked)
    decode, encode = (replace(bare, function=function) for function in _functions(blocked, bare.states))
    return replace(made, apart=Apart(decode, inner, encode, {name: _of(name)[2] for name in blocked}, made.function))


def _functions(blocked: Blocked, states: tuple[str, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What decodes, and what encodes."""

    def decode(param: Any, grad: Any, *given: Any, **_: Any) -> tuple[Any, ...]:
        known = dict(zip(states, given, strict=True))
        for name, (codec, _start) in blocked.items():
            codes, scale, values = _of(name)
            if known[name] is not None:
                known[values] = codec.decode(known[codes], known[scale])
        return (param, *known.values())

    def encode(param: Any, grad: Any, *given: Any, **_: Any) -> tuple[Any, ...]:
        known = dict(zip(states, given, strict=True))
        for name, (codec, _start) in blocked.items():
            codes, scale, values = _of(name)
            if known[name] is not None:
                known[codes], known[scale] = codec.encode(known[values] * 1.0, None)
        return (param, *known.values())

    return decode, encode


def _bare(rule: Rule, blocked: Blocked) -> Rule:
    """A rule of codes, scales and values alone, without its function."""
    initial: dict[str, Any] = {_of(name)[2]: _wide for name in blocked}
    for name, (codec, start) in blocked.items():
        initial |= makers(rule, name, codec, start)
    optional = {each: rule.optional[name] for name in blocked if name in rule.optional for each in _of(name)}
    return replace(
        rule,
        states=tuple(each for name in blocked for each in _of(name)),
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


def _of(name: str) -> tuple[str, str, str]:
    return name, f"{name}_{SCALE}", f"{name}_{VALUES}"


def _wide(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32), requires_grad=False)
