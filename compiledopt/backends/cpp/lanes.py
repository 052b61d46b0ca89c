"""Inductor's function for one element after the other → the same for as many neighbours at once as a vector has (lanes.h)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiledopt.backends.cpp import functions, lookups
from compiledopt.files import source_of, text_beside

HEADER = text_beside(__name__, "lanes.h")
TEXT = HEADER + lookups.TEXT + source_of(__name__)  # of which kernels in the cache are made
FUNCTIONS = frozenset(re.findall(r"^INLINE F (\w+)\(F ", HEADER, re.MULTILINE)) | functions.NAMES
FUNCTIONS |= {"to", "bits", "infinity", "quiet_NaN"}
PLACE = r"\[static_cast<int64_t>\(x0\)\]"
TYPES = r"(float|int32_t|int8_t|uint8_t|int16_t|at::BFloat16|at::Half)"
# What Inductor writes as functions without a name.
UNNAMED = (
    (re.compile(r"\[&\]\(\)\{autoleft=(\w+)>0\?.*;returnleft-right;\}\(\)"), r"lanes::sign(\1)"),
    (re.compile(r"\[&\]\(\)\{.*returndecltype\((\w+)\)\(\1>>(\w+)\);\}\(\)"), r"lanes::shifted(\1, \2)"),
)


def vectored(lines: Sequence[str]) -> list[str] | None:
    """The lines of the function, or None where it has what lanes.h has not."""
    text = "\n".join(lines)
    head, found, rest = text.partition("INDEPENDENT")
    loop = re.match(r"\s*for\(int64_t x0=[^;]*; x0<static_cast<int64_t>\((\w+)\); x0\+=static_cast<int64_t>\(1L\)\)", rest)
    if not found or loop is None:
        return None
    statements = [_statement(one) for one in _split(rest[loop.end() :])]
    if not statements or None in statements:
        return None
    signature = head[: head.index("{")].rstrip()
    body = (f"    {one};" for one in _with_extremes(lookups.looked_up([one for one in statements if one])))
    return [signature + " {", f"  for (int64_t x0 = 0; x0 < {loop[1]}; x0 += lanes::kCount) {{", *body, "  }", "}"]


def _with_extremes(statements: Sequence[str]) -> list[str]:
    """`a > b ? a : b` and `a < b ? a : b` are one instruction each, NaN and zeros of either sign included."""
    compared: dict[str, tuple[str, ...]] = {}
    found = []
    for one in statements:
        if truth := re.fullmatch(r"const auto (\w+) = (\w+) ([<>]) (\w+)", one):
            compared[truth[1]] = truth.groups()[1:]
        if choice := re.fullmatch(r"(const auto \w+ = )lanes::select\((\w+), (\w+), (\w+)\)", one):
            a, sign, b = compared.get(choice[2], ("", "", ""))
            if (choice[3], choice[4]) == (a, b):
                one = f"{choice[1]}lanes::{'larger' if sign == '>' else 'smaller'}_of({a}, {b})"
        found.append(one)
    return found


def _split(block: str) -> list[str]:
    """The statements of a block within blocks."""
    inner = block.strip().lstrip("{ \n")
    inner = inner[: inner.rindex(";") + 1]
    statements, depth, start = [], 0, 0
    for at, letter in enumerate(inner):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == ";" and depth == 0:
            statements.append(inner[start:at].strip())
            start = at + 1
    return statements


def _statement(statement: str) -> str | None:
    if stored := re.fullmatch(rf"(\w+){PLACE} = (.*)", statement, re.DOTALL):
        value = _value(stored[2])
        return value and f"lanes::store({stored[1]} + x0, {value})"
    if named := re.fullmatch(r"auto (\w+) =\s*(.*)", statement, re.DOTALL):
        value = _value(named[2])
        return value and f"const auto {named[1]} = {value}"
    return None


def _value(value: str) -> str | None:
    if loaded := re.fullmatch(rf"(\w+){PLACE}", value):
        return f"lanes::load({loaded[1]} + x0)"
    if chosen := re.fullmatch(r"(\w+) \? (\w+) : (\w+)", value):
        return f"lanes::select({', '.join(chosen.groups())})"
    value = value.replace("[static_cast<int64_t>(0L)]", "[0]")
    if value.startswith("["):
        words = re.sub(r"\s", "", value)
        return next((form.sub(name, words) for form, name in UNNAMED if form.fullmatch(words)), None)
    value = re.sub(r"decltype\(\w+\)\(", "(", value)
    value = re.sub(rf"(?:static_cast|c10::convert)<{TYPES}>\(", r"lanes::to<\1>(", value)
    value = re.sub(rf"c10::bit_cast<{TYPES}>\(", r"lanes::bits<\1>(", value)
    value = re.sub(rf"(?<![\w:<]){TYPES}\(", r"lanes::to<\1>(", value)
    value = re.sub(r"std::(\w+)\(", r"lanes::\1(", value)
    value = re.sub(r"(?<![\w:])(m\w\w_propagate_nan)\(", r"lanes::\1(", value)
    return value if set(re.findall(r"(\w+)(?:<[\w:]+>)?\(", value)) <= FUNCTIONS and "x0" not in value else None
