"""What a group holds for a rule, read and typed in one place: for programs, tables, mirrors on a device and eager calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch

# Options that do not come from the group: what a step knows of itself, and of the parameter.
NORM = "grad_norm"  # of all gradients
SCALE, FOUND = "grad_scale", "found_inf"  # of GradScaler: what losses were multiplied by, and whether that overflowed
STEP_NUMBERS = (NORM, SCALE, FOUND)
NOISE, SEED, STEP = "noise", "seed", "step"  # random numbers, and the option and the state that they follow from
RESERVED = ("first", "dtype", NOISE, *STEP_NUMBERS)


class Read(NamedTuple):
    """flags: what selects a program: flags, which branching numbers are zero, which elements of a tuple are None. numbers: by
    their names in a program ("lr", "betas[0]"), floats or tensors as they stand; to change one is no other program."""

    flags: tuple[Any, ...]
    numbers: dict[str, Any]


def read(group: Mapping[str, Any], options: Iterable[str], branches: frozenset[str], static: frozenset[str]) -> Read:
    """Read the options of a rule from a group. Raises: KeyError for one that is not there."""
    flags: list[Any] = []
    numbers: dict[str, Any] = {}
    for name in options:
        if name in RESERVED:
            flags.append(None)
            continue
        value = group[name]
        if name in static:
            flags.append((value,))
        elif isinstance(value, (tuple, list)):
            for one in value:
                if isinstance(one, str):
                    raise no_number(name, one)
            flags.append("".join("-" if one is None else "n" for one in value))
            numbers.update((f"{name}[{index}]", one) for index, one in enumerate(value) if one is not None)
        elif is_number(value):
            flags.append(truthy(value) if name in branches else None)
            numbers[name] = value
        else:
            refuse_text(name, value)
            if isinstance(value, (dict, set)):  # no program can be known by it
                raise TypeError(f"{name} must be a number, a flag, text or a tuple of numbers, got {value!r}")
            flags.append((value,))
    return Read(tuple(flags), numbers)


def is_number(value: Any) -> bool:
    """Whether an option is a number (an entry of the table) rather than a flag (a choice of program). NumPy's are numbers too,
    and its arrays without dimensions, as for torch."""
    if type(value) in (float, int):
        return True
    if isinstance(value, bool) or str(getattr(value, "dtype", None)) == "bool":
        return False
    return isinstance(value, (torch.Tensor, Real)) or getattr(value, "ndim", None) == 0


def refuse_text(name: str, value: Any) -> None:
    """Refuse a number that is written as text, as YAML has 1e-3. Raises: TypeError."""
    if isinstance(value, str) and _mend(value):
        raise no_number(name, value)


def tuples_of_numbers(defaults: Mapping[str, Any]) -> dict[str, bool]:
    """Of the options that are numbers by default, or tuples of them, which are tuples."""
    several = {name: isinstance(value, tuple) for name, value in defaults.items()}
    return {name: many for name, many in several.items() if all(map(is_number, defaults[name] if many else [defaults[name]]))}


def check_numbers(several: Mapping[str, bool], group: Mapping[str, Any]) -> None:
    """Refuse what is no number where one belongs; None, flags and schedules may stand there. Raises: TypeError, naming it."""
    for name, many in several.items():
        # What a schedule says is not asked for: that reads a step.
        value = dict.get(group, name) if isinstance(group, dict) else group.get(name)
        if many and not isinstance(value, (tuple, list)):
            raise TypeError(f"{name} must be a tuple of numbers, got {value!r}")
        for one in value if many else (value,):  # type: ignore[union-attr]
            if not (one is None or isinstance(one, bool) or callable(one) or is_number(one)):
                raise no_number(name, one)


def no_number(name: str, value: Any) -> TypeError:
    """What to raise for an option that is no number."""
    return TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}){_mend(value)}")


def _mend(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return f"; float({value!r}) makes one"


def as_float(value: Any) -> float:
    """A number or a tensor of one element as a float."""
    return float(value.detach() if hasattr(value, "detach") else value)


def truthy(value: Any) -> bool:
    """Whether a number is not zero, nor None. A tensor that is not on the host counts as such: its value may change in place,
    under a captured graph too, and reading it would wait for the device at every step."""
    there = isinstance(value, torch.Tensor) and value.device.type != "cpu"
    if value is None:
        return False
    return there or bool(value != 0)
