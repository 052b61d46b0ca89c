"""How values are kept, one file each: as they are, rounded, or in blocks; and how parameters in half types are rounded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from compiledopt.rules.options import SEED
from compiledopt.rules.rule import Rule
from compiledopt.storage.apart import keep_apart
from compiledopt.storage.choosing import is_asked, kept, kind_of, told
from compiledopt.storage.codec import SMALLEST
from compiledopt.storage.codecs import CODECS, asked_for
from compiledopt.storage.converting import converted, fits
from compiledopt.storage.derived import MIN_NUMEL, ROUNDING, STATE_DTYPE, Kept
from compiledopt.storage.parameters import NEAREST_NAME, ROUNDINGS, left_over
from compiledopt.storage.signs import never_negative

__all__ = ["CODECS", "DESCRIBED", "MIN_NUMEL", "OPTIONS", "ROUNDING", "STATE_DTYPE", "Kept", "check", "complete", "converted"]
__all__ += ["fits", "is_asked", "keep_apart", "kept", "kind_of", "left_over", "reading", "told", "wanted"]

OPTIONS = (STATE_DTYPE, MIN_NUMEL, ROUNDING, SEED)
DESCRIBED = {
    STATE_DTYPE: "how states are kept: a dtype, a name of docs/precision.md, or {state: one of these}",
    MIN_NUMEL: f"of a parameter, from which on its states are kept in blocks, vectors too; None: {SMALLEST}, of 2 dimensions",
    ROUNDING: f'of parameters in half types: "{NEAREST_NAME}", {", ".join(repr(name) for name in ROUNDINGS)}'.replace("'", '"'),
    SEED: "of the random bits by which values are rounded, an integer of 0 to 2^24",
}
MOST_SEED = 2**24  # a float32, which kernels read numbers as, has no larger integers without gaps


def check(rule: Rule | None, group: Mapping[str, Any]) -> None:
    """Refuse what cannot be kept so. Raises: ValueError."""
    for name in OPTIONS:
        if rule is None and group.get(name) is not None:
            raise ValueError(f"{name} is for optimizers that are one rule for each parameter, which this one is not")
    rounding, seed, least = group.get(ROUNDING), group.get(SEED, 0), group.get(MIN_NUMEL)
    if rounding not in (None, NEAREST_NAME, *ROUNDINGS):
        raise ValueError(f"Invalid {ROUNDING} value: {rounding!r}; it is one of {', '.join((NEAREST_NAME, *ROUNDINGS))}")
    if not (_is_integer(seed) and 0 <= seed <= MOST_SEED):
        raise ValueError(f"Invalid {SEED} value: {seed!r}; it is an integer of 0 to {MOST_SEED}")
    if least is not None and not (_is_integer(least) and least >= 0):
        raise ValueError(f"Invalid {MIN_NUMEL} value: {least!r}; it is an integer >= 0, 0 for all, or None for {SMALLEST}")
    known = asked_for(group)
    if rule is None or not is_asked(group):
        return
    _check_states(rule, group, known)
    if group.get("differentiable"):
        raise ValueError(f"{STATE_DTYPE} and {ROUNDING} do not go with differentiable=True: rounding has no derivative")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_states(rule: Rule, group: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Refuse states that there are not, and codes without a sign for those that may be negative. Raises: ValueError."""
    states = [name for name in rule.states if name not in rule.scalars and name not in rule.shared]
    for name, codec in known.items():
        if name != "*" and name not in states:
            raise ValueError(
                f"Invalid {STATE_DTYPE}: {name!r} is no state of {rule.name}, which has {', '.join(states) or 'none'}"
            )
        if not CODECS[codec].signed:
            asked = [name] if name != "*" else [one for one in states if one not in known and one not in rule.added]
            odd = [one for one in asked if one not in never_negative(rule, group)]
            if odd:
                signed = next((other.name for other in CODECS.values() if other.unsigned == codec), "a codec with a sign")
                raise ValueError(
                    f"Invalid {STATE_DTYPE}: {codec!r} is for states that are never negative, which is not proved of {odd[0]} "
                    f"of {rule.name}; {signed!r} takes {codec!r} where it is"
                )


def wanted(group: Mapping[str, Any]) -> Hashable | None:
    """What a group asks for: two with the same answer keep their values alike."""
    if not is_asked(group):
        return None
    return tuple(sorted(asked_for(group).items())), group.get(MIN_NUMEL), group.get(ROUNDING)


def reading(rule: Rule, group: Mapping[str, Any]) -> Rule:
    """The rule as one that reads all numbers that any parameter of the group needs."""
    return replace(rule, options=(*rule.options, SEED)) if is_asked(group) and SEED not in rule.options else rule


def complete(group: dict[str, Any]) -> None:
    """Fill in what a group that was added leaves open. Mutates: `group`."""
    if is_asked(group):
        group.setdefault(SEED, 0)
