"""The random bits of a kernel's elements: functions of its file, so that Inductor sees an operand like any other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from compiledopt.backends import keys
from compiledopt.files import source_of
from compiledopt.rules.program import Program
from compiledopt.rules.random import bits_at, key

TEXT = source_of(__name__)  # of which kernels in the cache are made
PLACES = """struct Key { int32_t first, second; };
// Of an element and those that follow it in a parameter.
struct Places {
  int32_t from;
  Key key;
  int32_t operator[](int64_t i) const;
  Places operator+(int64_t i) const { return {int32_t(from + i), key}; }
};"""
AT = "inline int32_t Places::operator[](int64_t i) const { return bits_at(key.first, key.second, int32_t(from + i)); }"


def functions() -> list[str]:
    """The key of random bits and the bits of an element, operation by operation."""

    def flat(first: Any, second: Any, element: Any) -> Any:
        return bits_at((first, second), element)

    return [
        PLACES,
        *_function("static inline Key key_of({})", "int64_t", key),
        "template <class T>",
        *_function("static inline __attribute__((always_inline)) T bits_at({})", "T", flat),
        AT,
    ]


def _function(signature: str, kind: str, function: Callable[..., Any]) -> list[str]:
    """Integers wrap around, as -fwrapv says."""
    lines = []
    for name, sign, values in keys.operations(function):
        if sign == keys.INT32:
            lines.append(f"  const auto {name} = (int32_t) {values[0]};")
        elif sign:
            lines.append(f"  const auto {name} = {values[0]} {sign} ({values[1]});")
        else:
            lines.append(f"  return {{{', '.join(values)}}};" if len(values) > 1 else f"  return {values[0]};")
    names = list(inspect.signature(function).parameters)
    # Of a key, the words are numbers, whatever the elements are.
    kinds = [kind] * len(names) if kind != "T" else ["int32_t", "int32_t", "T"]
    arguments = ", ".join(f"{one} v_{name}" for one, name in zip(kinds, names, strict=True))
    return [f"{signature.format(arguments)} {{", *lines, "}"]


def as_argument(lines: list[str], index: int) -> list[str]:
    """Inductor's function with what is a pointer to random bits there, its argument `index`, as Places."""
    text = "\n".join(lines)
    head, brace, rest = text.partition("{")
    before, parenthesis, listed = head.rpartition("(")  # the first may be that of an attribute
    arguments = listed.rsplit(")", 1)[0].split(",")
    name = arguments[index].split("*")[-1].strip()
    arguments[index] = f" const Places {name}"
    return f"{before}{parenthesis}{','.join(arguments)})\n{brace}{rest}".splitlines()


def place(program: Program) -> list[str]:
    """Where a piece is in its parameter, of what the launcher says of it, and the key of its random bits, as `place`."""
    if not program.is_random:
        return []
    seed, step = (f"table[{n}]" if isinstance(n, int) else repr(n) for n in keys.seed_and_step(program))
    return [
        f"  const auto at = (const int32_t*) pointers[{len(program.tensors)}];",
        f"  Places place = {{at[0], key_of((int64_t) ({seed}), (int64_t) ({step}), at[1])}};",
    ]
