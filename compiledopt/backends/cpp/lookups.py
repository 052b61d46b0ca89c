"""Choices among numbers by where a value stands among growing edges, as maps of storage/ make them → one look-up in a vector
(lanes.h): a comparison and a choice for each edge took half of the time of a step with such states."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiledopt.files import source_of

TEXT = source_of(__name__)  # of which kernels in the cache are made
FEWEST, MOST, OCTAVES = 3, 15, 32  # edges that are worth it, and that fit; powers of two that a table has
NAMED = re.compile(r"const auto (\w+) = (.*)")
NUMBER = re.compile(r"lanes::to<float>\((-?[\d.e+-]+)\)")
COMPARED = re.compile(r"(\w+) >= (\w+)")
CHOSEN = re.compile(r"lanes::select\((\w+), (\w+), (\w+)\)")


@dataclass(frozen=True)
class Chain:
    """values[i] where x is at or above i of the edges, which grow; without an edge, a number."""

    x: str
    edges: tuple[float, ...]
    values: tuple[float, ...]


def looked_up(statements: Sequence[str]) -> list[str]:
    """The statements with such choices as look-ups, and without what nothing needs any more."""
    chains = _chains(statements)
    places: dict[tuple[str, tuple[float, ...]], str] = {}
    found: list[str] = []
    for one in statements:
        named = NAMED.fullmatch(one)
        chain = chains.get(named[1]) if named else None
        if named is None or chain is None or not FEWEST <= len(chain.edges) <= MOST or (first := _first(chain)) is None:
            found.append(one)
            continue
        name = places.setdefault((chain.x, chain.edges), f"place_{named[1]}")
        if name == f"place_{named[1]}":
            found += _place(name, chain, first)
        turned = first + 127 if _is_by_octaves(chain) else 0
        row = [0.0] * 16
        for i, value in enumerate(chain.values):
            row[(i + turned) % 16] = value
        found.append(f"alignas(64) static const float row_{named[1]}[16] = {{{_listed(row)}}}")
        found.append(f"const auto {named[1]} = lanes::at<{len(chain.edges)}, {turned % 16}>({name}, row_{named[1]})")
    return _needed(found)


def _chains(statements: Sequence[str]) -> dict[str, Chain]:
    """{name: the choice that it is}, of numbers too."""
    found: dict[str, Chain] = {}
    compared: dict[str, tuple[str, float]] = {}
    for one in statements:
        named = NAMED.fullmatch(one)
        if named is None:
            continue
        if number := NUMBER.fullmatch(named[2]):
            found[named[1]] = Chain("", (), (float(number[1]),))
        elif (truth := COMPARED.fullmatch(named[2])) and _is_number(found.get(truth[2])):
            compared[named[1]] = truth[1], _float32(found[truth[2]].values[0])
        elif (choice := CHOSEN.fullmatch(named[2])) and choice[1] in compared and _is_number(found.get(choice[2])):
            (x, edge), below = compared[choice[1]], found.get(choice[3])
            if below is not None and (not below.edges or (below.x == x and below.edges[-1] < edge)):
                found[named[1]] = Chain(x, (*below.edges, edge), (*below.values, found[choice[2]].values[0]))
    return found


def _is_number(chain: Chain | None) -> bool:
    return chain is not None and not chain.edges


def _first(chain: Chain) -> int | None:
    """The power of two, by its exponent, from which on the tables of a choice reach; None where they do not reach its end."""
    if min(chain.edges) < 2.0**-120 or max(chain.edges) > 2.0**100:
        return None
    octaves = [_octave(edge) for edge in chain.edges]
    inside = [octave for octave, edge in zip(octaves, chain.edges, strict=True) if edge != 2.0**octave]
    fits = len(set(inside)) == len(inside) and octaves[-1] - octaves[0] + 3 <= OCTAVES
    return octaves[0] - 1 if fits else None


def _is_by_octaves(chain: Chain) -> bool:
    """Whether the edges are powers of two, one after the other."""
    first = _octave(chain.edges[0])
    return chain.edges == tuple(2.0 ** (first + i) for i in range(len(chain.edges)))


def _place(name: str, chain: Chain, first: int) -> Iterator[str]:
    """What finds where the value stands."""
    edges, count = chain.edges, len(chain.edges)
    yield f"alignas(64) static const float edges_{name}[{count}] = {{{_listed(edges)}}}"
    if _is_by_octaves(chain):
        yield f"const auto {name} = lanes::octave_among({chain.x}, edges_{name})"
        return
    inside, below = [math.nan] * OCTAVES, [0] * OCTAVES
    for octave in range(first, first + OCTAVES):
        at = (octave + 127) % OCTAVES
        below[at] = sum(edge <= 2.0**octave for edge in edges)
        inside[at] = next((edge for edge in edges if 2.0**octave < edge < 2.0 ** (octave + 1)), math.nan)
    yield f"alignas(64) static const float inside_{name}[{OCTAVES}] = {{{_listed(inside)}}}"
    yield f"alignas(64) static const int32_t below_{name}[{OCTAVES}] = {{{', '.join(map(str, below))}}}"
    yield f"const auto {name} = lanes::place_among({chain.x}, edges_{name}, inside_{name}, below_{name})"


def _needed(statements: Sequence[str]) -> list[str]:
    """Those of which something is stored."""
    found: list[str] = []
    names: set[str] = set()
    for one in reversed(statements):
        named = re.match(r"(?:alignas\(64\) static )?const (?:auto|float|int32_t) (\w+)", one)
        if named is None or named[1] in names:
            found.append(one)
            names.update(re.findall(r"\b[a-z]\w*", one))
    return found[::-1]


def _octave(x: float) -> int:
    return math.frexp(x)[1] - 1


def _float32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join('__builtin_nanf("")' if one != one else repr(one) for one in numbers)
