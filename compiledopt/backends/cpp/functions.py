"""What Inductor's functions call of libm → what functions.h has instead, without branches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiledopt.files import source_of, text_beside

HEADER = text_beside(__name__, "functions.h")
TEXT = HEADER + source_of(__name__)  # of which kernels in the cache are made
NAMES = frozenset(re.findall(r"\bDO\((\w+)\)", HEADER))
ANY = "|".join(sorted(NAMES))
CALLED = re.compile(rf"std::({ANY})\(")
NEEDED = re.compile(rf"\braised<|\b({ANY})_of\(|lanes::({ANY})\(")


def header(lines: Sequence[str]) -> list[str]:
    """What must stand before these lines: most rules call none, and a compiler reads it for a tenth of their compilation."""
    return [HEADER] if any(NEEDED.search(line) for line in lines) else []


def called(lines: Sequence[str]) -> list[str]:
    return [CALLED.sub(r"\1_of(", line) for line in lines]


def exponents(lines: Sequence[str]) -> tuple[list[str], list[int]]:
    """The lines of a function as a template of whether each exponent that is one number for all elements is ½, and which of its
    arguments point to those numbers. By default most powers in rules are roots, which take a fourth of the time."""
    text = "\n".join(lines)
    numbers = dict(re.findall(r"auto (\w+) = (\w+)\[static_cast<int64_t>\(0L\)\];", text))
    found = {value for value in re.findall(r"std::pow\(\w+, (\w+)\)", text) if value in numbers}
    if not found:
        return list(lines), []
    text = re.sub(rf"std::pow\((\w+), ({'|'.join(found)})\)", r"raised<is_root>(\1, \2)", text)
    head = text.partition("{")[0]
    names = [one.split()[-1].lstrip("*") for one in head[head.rindex("(") + 1 : head.rindex(")")].split(",")]
    return ["template <bool is_root>", *text.splitlines()], sorted(names.index(numbers[value]) for value in found)
