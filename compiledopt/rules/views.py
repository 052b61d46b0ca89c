"""How the values of a rule that reduces are shaped: which dimensions of the parameter each of their own stands for.

A view has one entry for each dimension of a value: the dimensions of the parameter that it runs over, which are none where the
size is 1, and several where they were flattened into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiledopt.rules.author import not_compiled
from compiledopt.rules.program import COLUMNS, ELEMENTS, MATRICES, NUMBER, ROWS

Entry = tuple[int, ...]
View = tuple[Entry, ...]


class Frame:
    """How a parameter is seen as matrices of rows and columns. dims: how many it has; outer: 0, and the last two are rows and
    columns; or how many, from the first, make up a row each, while all others are its columns; turned: whether it lies in
    memory column after column."""

    def __init__(self, dims: int, outer: int = 0, turned: bool = False) -> None:
        split = max(dims - 2, 0) if outer == 0 else 0
        rows = range(split, dims - 1) if outer == 0 else range(outer)
        columns = range(dims - 1, dims) if outer == 0 else range(outer, dims)
        above, last = (COLUMNS, ROWS) if turned else (ROWS, COLUMNS)
        self.dims, self.split = dims, frozenset(range(split))
        self.is_matrix = outer == 0 and dims == 2
        self.parts = ((frozenset(rows), above), (frozenset(columns), last))
        self.whole: View = tuple((dim,) for dim in range(dims))

    def axes(self, kept: frozenset[int]) -> int | None:
        """The axes along which a value varies that runs over these dimensions; None where it would need others."""
        if len(kept) == self.dims:
            return ELEMENTS
        if not kept:
            return NUMBER
        inside = [(part, bit) for part, bit in self.parts if part and part <= kept]
        if kept - self.split != frozenset().union(*(part for part, _ in inside)) or not self.split <= kept:
            return None
        return MATRICES | sum(bit for _, bit in inside)

    def dims_of(self, axes: int) -> frozenset[int]:
        """The other way round."""
        if axes == NUMBER:
            return frozenset()
        return self.split.union(*(part for part, bit in self.parts if axes & bit))


def dims_of(view: View) -> frozenset[int]:
    return frozenset(dim for entry in view for dim in entry)


def broadcast(views: Sequence[View]) -> View:
    """The view of what is computed from several values, as torch aligns them: at their last dimensions."""
    result: list[Entry] = []
    for place in range(1, max(map(len, views), default=0) + 1):
        entries = {view[-place] for view in views if len(view) >= place} - {()}
        if len(entries) > 1:
            raise not_compiled("two values run over different dimensions; reduce with keepdim=True, or unsqueeze")
        result.insert(0, entries.pop() if entries else ())
    return tuple(result)


def place_of(view: View, dim: int, more: int = 0) -> int:
    """A dimension counted from the front. more: that may be added."""
    count = len(view) + more
    if not -count <= dim < max(count, 1):
        raise not_compiled(f"dimension {dim} of a value that has {len(view)}")
    return dim % count if count else 0


def places_of(view: View, dim: Any) -> list[int]:
    """Of a `dim` as torch takes it: all where it is None or empty."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(len(view)))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [place_of(view, one) for one in dims]


def reduced(view: View, places: Sequence[int], keepdim: bool) -> View:
    if keepdim:
        return tuple(() if place in places else entry for place, entry in enumerate(view))
    return tuple(entry for place, entry in enumerate(view) if place not in places)


def flattened(view: View, start: int = 0, end: int = -1) -> View:
    if not view:
        return ((),)
    first, last = place_of(view, start), place_of(view, end)
    return (*view[:first], tuple(dim for entry in view[first : last + 1] for dim in entry), *view[last + 1 :])


def reshaped(view: View, wanted: Sequence[Entry | None]) -> View:
    """wanted: entries, of which one may be None: what is left."""
    source = tuple(dim for entry in view for dim in entry)
    unknown = [place for place, entry in enumerate(wanted) if entry is None]
    if len(unknown) > 1:
        raise not_compiled("reshape with two sizes of -1")
    head = sum(len(entry or ()) for entry in (wanted[: unknown[0]] if unknown else wanted))
    tail = sum(len(entry or ()) for entry in wanted[unknown[0] + 1 :]) if unknown else 0
    rest = source[head : len(source) - tail]
    found = tuple(rest if entry is None else entry for entry in wanted)
    if tuple(dim for entry in found for dim in entry) != source:
        raise not_compiled("reshape to other sizes than the parameter's; write them as param.shape[i]")
    return found


def indexed(view: View, key: Any) -> View:
    """By None, full slices and the ellipsis, which choose nothing."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(not (one is None or one is Ellipsis or one == slice(None)) for one in keys):
        raise not_compiled("indexing is not a pointwise operation; None, : and ... may stand there")
    taken = sum(one is not None and one is not Ellipsis for one in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    result: list[Entry] = []
    rest = list(view)
    for one in keys:
        count = len(view) - taken if one is Ellipsis else 0 if one is None else 1
        result += [()] if one is None else rest[:count]
        rest = rest[count:]
    return tuple(result)
