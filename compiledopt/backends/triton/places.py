"""Where a block's tile lies, and what is in it, as text of Triton."""

from __future__ import annotations

from compiledopt.rules.program import COLUMNS, MATRICES, ROWS, Argument, Node
from compiledopt.rules.reductions import Pass, Reduction

AXES = (MATRICES, ROWS, COLUMNS)


def constant_of(sweep: Pass, reduction: Reduction) -> float | None:
    """What each element of a tile is, if that is one number: each thread would keep all of them, in thousands of registers."""
    value: Argument = sweep.program.outputs[sweep.program.tensors[reduction.source].name]
    while isinstance(value, Node) and value.op == "where" and value.args[1] == value.args[2]:
        value = value.args[1]
    return None if isinstance(value, Node) else value


def elements_of(axes: int) -> str:
    """How many there are in a block's tile."""
    each = [(MATRICES, "matrices - bm * BM", "BM"), (ROWS, "rows - br * BR", "BR"), (COLUMNS, "columns - bc * BC", "BC")]
    return " * ".join(f"tl.minimum({left}, {block})" for axis, left, block in each if axes & axis) or "1"


def size_of(axes: int) -> str:
    return " * ".join(n for axis, n in zip(AXES, ("matrices", "rows", "columns"), strict=True) if axes & axis) or "1"


def shape_of(axes: int) -> str:
    return f"[{', '.join(b if axes & axis else '1' for axis, b in zip(AXES, ('BM', 'BR', 'BC'), strict=True))}]"


def lines_of_places(axes: int) -> list[str]:
    """Where a block's tile lies, along the axes that it has."""
    lines = ["across = tl.cdiv(columns, BC)" if axes & COLUMNS else "across = 1"]
    lines.append("down = tl.cdiv(rows, BR)" if axes & ROWS else "down = 1")
    lines += ["bc = index % across", "br = index // across % down", "bm = index // (across * down)"]
    nowhere = "tl.zeros([1, 1, 1], tl.int64)"
    for axis, place, block, dims in (
        (MATRICES, "m", "BM", ":, None, None"),
        (ROWS, "r", "BR", "None, :, None"),
        (COLUMNS, "c", "BC", "None, None, :"),
    ):
        lines.append(f"{place} = b{place} * {block} + tl.arange(0, {block})[{dims}]" if axes & axis else f"{place} = {nowhere}")
    return lines


def lines_of_place(axes: int) -> list[str]:
    """Where a value that varies along some of a tile's axes lies in its tensor, and whether it is there."""
    place = "m" if axes & MATRICES else ""
    for axis, size, own in ((ROWS, "rows", "r"), (COLUMNS, "columns", "c")):
        if axes & axis:
            place = f"({place}) * {size} + {own}" if place else own
    there = [f"({own} < {n})" for axis, own, n in zip(AXES, "mrc", ("matrices", "rows", "columns"), strict=True) if axes & axis]
    nothing = ("tl.zeros([1, 1, 1], tl.int64)", "tl.full([1, 1, 1], 1, tl.int1)")
    return [f"i{axes} = {place or nothing[0]}", f"k{axes} = {' & '.join(there) or nothing[1]}"]
