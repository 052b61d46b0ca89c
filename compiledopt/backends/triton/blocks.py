"""A program that keeps values in blocks → the body of one kernel that moves each tensor once: a row of a tile is a block, and
what comes before its scales, the scales, and what needs them follow each other in registers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compiledopt.backends.block_parts import Cut, Part
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.triton.bodies import CODES, NAMES, Body, lowered
from compiledopt.errors import CompileError
from compiledopt.rules.composed import MARKED
from compiledopt.rules.program import BLOCKS, PACKED, Program

MOST = 512  # elements of a block: fewer than a block of threads has

# FLAT: a tensor whose rows are whole numbers of blocks is one row, so that its blocks are neighbours.
PLACES = """\
b = xoffset // {block} + tl.arange(0, XBLOCK // {block})[:, None]
across = tl.arange(0, {block})[None, :]
if FLAT:
    x0 = b * {block} + across
    known = b * {block} < xnumel
    inside = tl.broadcast_to(known, [XBLOCK // {block}, {block}])
else:
    many = tl.cdiv(row, {block})
    at = b % many * {block} + across
    x0 = b // many * row + at
    known = b // many * row < xnumel
    inside = (at < row) & (x0 < xnumel)
"""


def update_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The body of `update`. Raises: CompileError."""
    check(program, dtypes)
    block, cut = program.blocks[0], Cut(program)
    wide = compute_dtype(dtypes)
    lines = [PLACES.format(block=block)]
    for index, node in enumerate(program.tensors):
        where, there = ("b", "known") if node.axes == BLOCKS else ("x0", "inside")
        lines.append(f"v{index} = tl.load(p{index} + {where}, {there}, other=0)")
    early, late = cut.parts()
    lines += _part(early, "early", dtypes, wide)
    for node, number in cut.scales.items():
        lines += _largest(number, f"tile{cut.tiles[node.args[0]]}", node.op == MARKED)  # type: ignore[index]
    lines += _part(late, "late", dtypes, wide)
    order = {node.name: index for index, node in enumerate(program.tensors)}
    for name, node in program.tensor_outputs.items():
        index = order[name]
        if node in cut.scales:
            lines.append(f"tl.store(p{index} + b, largest{cut.scales[node]}, known)")
        else:
            lines.append(f"tl.store(p{index} + x0, tl.broadcast_to(new{index}, inside.shape), inside)")
    return "\n".join(lines)


def check(program: Program, dtypes: Sequence[torch.dtype]) -> None:
    """Raises: CompileError, where values are kept in a way that these kernels do not have."""
    if any(node.axes == PACKED for node in program.tensors):
        raise CompileError("values are kept in 4 bits, two to a byte, which the Triton kernel does not have")
    strange = [str(dtype) for dtype in dtypes if dtype not in NAMES | CODES]
    if strange:
        raise CompileError(f"values are kept as {strange[0]}, which the Triton kernel does not have")
    if len(program.blocks) != 1:
        sizes = " and of ".join(map(str, program.blocks))
        raise CompileError(f"values are kept in blocks of {sizes}, and the Triton kernel has one size")
    if program.blocks[0] & (program.blocks[0] - 1) or program.blocks[0] > MOST:
        raise CompileError(f"values are kept in blocks of {program.blocks[0]}, and powers of 2 up to {MOST} are possible")


def _largest(number: int, tile: str, marked: bool) -> list[str]:
    """The scale of each block. marked: with a minus where an element is not finite."""
    found = [
        f'finite{number} = ~inside | (tl.abs({tile}) < float("inf"))',
        f"size{number} = tl.where(inside & finite{number}, tl.abs({tile}), 0.0)",
        f"largest{number} = tl.max(size{number}, 1, keep_dims=True).to(tl.float32)",
    ]
    if marked:
        all_of_them = f"tl.min(finite{number}.to(tl.int32), 1, keep_dims=True) > 0"
        found.append(f"largest{number} = tl.where({all_of_them}, largest{number}, -largest{number})")
    return found


def _part(part: Part, own: str, dtypes: Sequence[torch.dtype], wide: torch.dtype) -> list[str]:
    """Computes one part; its results are called new0, new1, ... by their tensors, and tile0, tile1, ..."""
    kinds = [dtypes[index] if kind == "tensor" else wide for kind, index in part.operands]
    function, arguments = lowered(part.program, kinds)
    body = Body(
        dict(zip([argument.arg for argument in function.args.args], arguments, strict=False)),
        f"{own}_",
        f"{own}_v",
        f"{own}_w",
        f"{own}_n",
        dims=2,
    )
    statements = [line for line in map(body.line, function.body) if line is not None]
    lines = []
    for j, (kind, index) in enumerate(part.operands):
        if j in body.read:
            lines.append(f"{own}_v{j} = {'v' if kind == 'tensor' else 'tile'}{index}")
    names = {"column": "tl.full([1, 1], s{}, {})", "scale": "v{}.to({})", "largest": "largest{}.to({})"}
    for j, (kind, index) in enumerate(part.numbers):
        lines.append(f"{own}_n{j} = {names[kind].format(index, f'tl.{NAMES[wide]}')}")
    lines += statements
    for j in sorted(body.written):
        kind, index = part.operands[j]
        lines.append(f"{'new' if kind == 'tensor' else 'tile'}{index} = {own}_w{j}")
    return lines
