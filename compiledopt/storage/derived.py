"""A rule whose states and parameter are kept in other ways: decode before it, encode after it, in one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from compiledopt.backends.blocks import packed_shape, scales_of
from compiledopt.backends.distributed import local
from compiledopt.backends.layout import as_operand
from compiledopt.rules.options import NOISE, SEED, STEP
from compiledopt.rules.rule import Rule
from compiledopt.rules.trace import named as by_name
from compiledopt.storage.codec import SCALE, Codec, Rounding
from compiledopt.storage.cut import decoded, encoded, placed
from compiledopt.storage.rounded import more_bits, upper_half

STATE_DTYPE, MIN_NUMEL, ROUNDING = "state_dtype", "min_quantized_numel", "rounding"
_LIKE: dict[str, Any] = {"memory_format": torch.preserve_format, "requires_grad": False}


@dataclass(frozen=True)
class Kept:
    """What is asked for one kind of parameter. states: (name, codec, where it starts from) of those that are kept in another
    way than the rule makes them; rounding: of the parameter, None for the store's own; dtype: the parameter's."""

    states: tuple[tuple[str, Codec, float], ...]
    rounding: Rounding | None
    dtype: torch.dtype

    @property
    def has_blocks(self) -> bool:
        return any(codec.block for _, codec, _ in self.states)

    @property
    def is_random(self) -> bool:
        return any(codec.random for _, codec, _ in self.states) or bool(self.rounding and self.rounding.random)

    @property
    def draws_from(self) -> tuple[str, ...]:
        """The options that random bits come with."""
        return (SEED, NOISE) if self.is_random else ()


def keep(rule: Rule, kept: Kept) -> Rule:
    """The rule with its values kept so; it is one like any other."""
    own = {} if kept.rounding is None else kept.rounding.states
    made_by = {name: _like(dtype) for name, dtype in own.items() if dtype is not None}
    for name, codec, start in kept.states:
        made_by |= makers(rule, name, codec, start)
    scales = {f"{name}_{SCALE}": name for name, codec, _ in kept.states if codec.block}
    blocks = {f"{name}_{SCALE}": codec.block for name, codec, _ in kept.states if codec.block}
    added = (STEP,) if kept.is_random and STEP not in rule.states else ()
    states = (*rule.states, *scales, *own, *added)
    return replace(
        rule,
        function=_stored(rule, kept, states),
        states=states,
        options=(*rule.options, *(name for name in kept.draws_from if name not in rule.options)),
        scalars=rule.scalars | set(added),
        optional={**rule.optional, **{scale: rule.optional[name] for scale, name in scales.items() if name in rule.optional}},
        initial={**rule.initial, **made_by},
        added=rule.added | {*own, *added},
        in_blocks=blocks,
        packed={name: codec.block for name, codec, _ in kept.states if codec.packed},
        dense_alone=(*rule.dense_alone, STATE_DTYPE if kept.states else ROUNDING),
    )


def _stored(rule: Rule, kept: Kept, states: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """The function of such a rule. states: all that it has."""
    codecs, rounding = {name: codec for name, codec, _ in kept.states}, kept.rounding
    own, drawing = () if rounding is None else tuple(rounding.states), kept.draws_from

    def stored(param: Any, grad: Any, *values: Any, **options: Any) -> tuple[Any, ...]:
        given = dict(zip(states, values, strict=True))
        noise: Any = options.get(NOISE)
        options = {name: value for name, value in options.items() if name not in drawing or name in rule.options}
        present = {name: codec for name, codec in codecs.items() if given[name] is not None}
        values_of = {name: _read(codec, given[name], given.get(f"{name}_{SCALE}"), param) for name, codec in present.items()}
        before = [values_of.get(name, given[name]) for name in rule.states]
        master = param if rounding is None else rounding.before(param, *(given[name] for name in own))
        after: dict[str, Any] = by_name(rule, rule(master, grad, *before, **options), rule.states, object)
        bits = _draws(noise.bits()) if kept.is_random else iter(())
        for name, codec in present.items():
            after[name], after[f"{name}_{SCALE}"] = _written(codec, after[name], param, next(bits) if codec.random else None)
        if rounding is not None:
            found = rounding.after(after["param"], kept.dtype, next(bits) if rounding.random else None)
            after |= dict(zip(("param", *own), found, strict=True))
        if STEP not in rule.states and kept.is_random:
            after[STEP] = given[STEP] + 1
        return tuple(after.get(name) for name in ("param", *states))

    stored.__name__ = rule.function.__name__
    stored.__wrapped__ = rule.function  # type: ignore[attr-defined]  # messages name the author's function, and its place
    return stored


def _read(codec: Codec, codes: Any, scale: Any, param: Any) -> Any:
    """The values of a state: of symbols, in the blocks of whoever runs the program; of tensors, where a rule is called on
    them, in those of the parameter."""
    if codec.block and isinstance(param, torch.Tensor):
        return decoded(codec, codes, scale, param)
    values = codec.decode(codes, scale)
    # Of tensors, which torch does not widen in operations like lerp: states in float32 of a parameter in float64.
    return values.to(torch.promote_types(values.dtype, param.dtype)) if isinstance(param, torch.Tensor) else values


def _written(codec: Codec, values: Any, param: Any, bits: Any) -> tuple[Any, Any]:
    """(codes, scale or None), as in `_read`."""
    if codec.block and isinstance(param, torch.Tensor):
        return encoded(codec, values, param)
    return codec.encode(values, bits)


def _like(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    def zeros(param: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(param, dtype=dtype, **_LIKE)

    return zeros


def makers(rule: Rule, name: str, codec: Codec, start: float) -> Mapping[str, Callable[..., Any]]:
    """What makes the codes of a state, and its scales where it has some."""
    given = rule.initial.get(name)

    def part(index: int) -> Callable[..., Any]:
        if not callable(given):
            return lambda param: _full(codec, start, param)[index]
        if rule.is_made_of_options(name):
            return lambda param, options: _encoded(codec, given(param, options), param)[index]
        return lambda param: _encoded(codec, given(param), param)[index]

    return {name: part(0), f"{name}_{SCALE}": part(1)} if codec.block else {name: part(0)}


def _encoded(codec: Codec, value: Any, param: torch.Tensor) -> tuple[Any, Any]:
    return (value, value) if value is None else encoded(codec, value, param)


def _full(codec: Codec, start: float, param: torch.Tensor) -> tuple[Any, Any]:
    """(codes, scales) of a state that starts from a number, without its values in a wider dtype."""
    if not codec.block:
        fill = complex(start, start) if param.is_complex() else codec.converted(torch.tensor(start)).item()
        return torch.full_like(param, fill, dtype=codec.dtype, **_LIKE), None
    code, scale = (part[0, 0].item() for part in codec.encode(torch.full((1, codec.block), start), None))
    part = local(param)
    if codec.packed:
        codes = torch.full(packed_shape(part.shape), 17 * int(code), dtype=codec.dtype, device=part.device)  # in both halves
    else:
        codes = torch.empty_like(part, dtype=codec.dtype, **_LIKE)
        as_operand(codes).fill_(code)
    scales = torch.full(scales_of(part.shape, codec.block), scale, dtype=torch.float32, device=part.device)
    return placed(codec, codes, scales, param)


def _draws(bits: Any) -> Iterator[Any]:
    """Random bits for several values of an element from as few hashes as there can be: 16 are enough for one value."""
    while True:
        yield bits
        yield upper_half(bits)
        bits = more_bits(bits)
