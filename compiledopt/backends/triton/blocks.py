"""A program that keeps values in blocks → the body of one kernel that moves each tensor once: a row of a tile is a block, and
what comes before its scales, the scales, and what needs them follow each other in registers.

Of blocks of several sizes a row of a tile is the largest, and the scales of smaller ones are spread over their elements. Codes
of 4 bits are bytes of a tile half as wide: where rows are whole blocks a byte's two codes are taken apart in registers, and its
memory is read in vectors; a ragged block is cut in half elsewhere (backends/blocks.py), so that each element finds its byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compiledopt.backends.block_parts import Cut, Part
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.triton.bodies import KEPT, NAMES, Body, lowered
from compiledopt.errors import CompileError
from compiledopt.rules.composed import MARKED
from compiledopt.rules.program import BLOCKS, PACKED, Program, node_args

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
# Of smaller blocks: where their scales are, several in a row of a tile.
SMALLER = """\
part{size} = tl.arange(0, {many})[None, :]
if FLAT:
    b{size} = b * {many} + part{size}
    known{size} = tl.broadcast_to(known, [XBLOCK // {block}, {many}])
else:
    b{size} = b // many * tl.cdiv(row, {size}) + b % many * {many} + part{size}
    known{size} = known & (b % many * {block} + part{size} * {size} < row)
"""
# Of codes of 4 bits in blocks of `size`, n: the bytes that a row of a tile has, and in a ragged row, of each the two elements,
# counted from the first of the row of the tile.
BYTES = """\
y{n} = tl.arange(0, {half})[None, :]
if FLAT:
    z{n} = b * {half} + y{n}
    there{n} = tl.broadcast_to(known, [XBLOCK // {block}, {half}])
else:
    first{n} = y{n} // {own} * {size}
    length{n} = tl.minimum(tl.maximum(row - b % many * {block} - first{n}, 0), {size})
    low{n} = first{n} + y{n} % {own}
    high{n} = low{n} + (length{n} + 1) // 2
    z{n} = b // many * ((row + 1) // 2) + b % many * {half} + y{n}
    there{n} = known & (y{n} % {own} < (length{n} + 1) // 2)
"""
UNPACK = """\
if FLAT:
    e{n} = tl.load(p{n} + z{n}, there{n}, other=0)
    e{n} = tl.reshape(tl.join(e{n} & 15, e{n} >> 4), [XBLOCK // {block}, {many}, {own}, 2])
    v{n} = tl.reshape(tl.permute(e{n}, (0, 1, 3, 2)), [XBLOCK // {block}, {block}])
else:
    within{n} = across % {size}
    cut{n} = (tl.minimum(tl.maximum(row - at + within{n}, 0), {size}) + 1) // 2
    byte{n} = (at - within{n}) // 2 + tl.where(within{n} < cut{n}, within{n}, within{n} - cut{n})
    v{n} = tl.load(p{n} + b // many * ((row + 1) // 2) + byte{n}, inside, other=0)
    v{n} = tl.where(within{n} < cut{n}, v{n} & 15, v{n} >> 4)
"""
PACK = """\
codes{n} = tl.broadcast_to(new{n}, inside.shape).to(tl.int32)
if FLAT:
    codes{n} = tl.permute(tl.reshape(codes{n}, [XBLOCK // {block}, {many}, 2, {own}]), (0, 1, 3, 2))
    lower{n}, upper{n} = tl.split(tl.reshape(codes{n}, [XBLOCK // {block}, {half}, 2]))
else:
    lower{n} = tl.gather(codes{n}, tl.broadcast_to(low{n}, there{n}.shape).to(tl.int32), 1)
    upper{n} = tl.gather(codes{n}, tl.minimum(tl.broadcast_to(high{n}, there{n}.shape), {block} - 1).to(tl.int32), 1)
    upper{n} = tl.where(high{n} - first{n} < length{n}, upper{n}, 0)
tl.store(p{n} + z{n}, (lower{n} | (upper{n} << 4)).to(tl.uint8), there{n})
"""


def update_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The body of `update`. Raises: CompileError."""
    check(program, dtypes)
    return _Writer(program, dtypes).source()


def check(program: Program, dtypes: Sequence[torch.dtype]) -> None:
    """Raises: CompileError, where values are kept in a way that these kernels do not have."""
    strange = [str(dtype) for dtype in dtypes if dtype not in KEPT]
    if strange:
        raise CompileError(f"values are kept as {strange[0]}, which the Triton kernel does not have")
    for size in program.blocks:
        if size & (size - 1) or size > MOST:
            raise CompileError(f"values are kept in blocks of {size}, and powers of 2 up to {MOST} are possible")


class _Writer:
    """Writes the body. block: elements of a row of a tile; sizes: of the blocks of each scale that is computed here."""

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype]) -> None:
        self.program, self.dtypes = program, dtypes
        self.block, self.cut, self.wide = program.blocks[0], Cut(program), compute_dtype(dtypes)
        self.sizes = {number: int(node.args[1]) for node, number in self.cut.scales.items()}  # type: ignore[arg-type]
        self.order = {node.name: index for index, node in enumerate(program.tensors)}

    def source(self) -> str:
        lines = [PLACES.format(block=self.block)]
        smaller = {size for size in self._scale_sizes() if size != self.block}
        lines += [SMALLER.format(size=size, many=self.block // size, block=self.block) for size in sorted(smaller)]
        read = {arg for node in self.program.nodes for arg in node_args(node)} | {*self.program.outputs.values()}
        for index, node in enumerate(self.program.tensors):
            if node.axes == PACKED:
                lines += [template.format(**self._packed(index)) for template in (BYTES, UNPACK)[: 1 + (node in read)]]
            elif node not in read:
                continue
            elif node.axes == BLOCKS:
                lines += self._read_scale(index, self.program.sizes[node.name])
            else:
                lines.append(f"v{index} = tl.load(p{index} + x0, inside, other=0)")
        early, late = self.cut.parts()
        lines += _part(early, "early", self.dtypes, self.wide)
        for node, number in self.cut.scales.items():
            tile = f"tile{self.cut.tiles[node.args[0]]}"  # type: ignore[index]
            lines += _largest(number, tile, node.op == MARKED, self.sizes[number], self.block)
        lines += _part(late, "late", self.dtypes, self.wide)
        for name, node in self.program.tensor_outputs.items():
            lines.append(self._store(self.order[name], self.cut.scales.get(node)))
        return "\n".join(lines)

    def _scale_sizes(self) -> set[int]:
        return {self.program.sizes[node.name] for node in self.program.tensors if node.axes == BLOCKS} | {*self.sizes.values()}

    def _packed(self, index: int) -> dict[str, int]:
        size = self.program.sizes[self.program.tensors[index].name]
        known = {"n": index, "block": self.block, "half": self.block // 2, "size": size}
        return {**known, "own": size // 2, "many": self.block // size}

    def _read_scale(self, index: int, size: int) -> list[str]:
        if size == self.block:
            return [f"v{index} = tl.load(p{index} + b, known, other=0)"]
        return [f"v{index} = tl.load(p{index} + b{size}, known{size}, other=0)", _spread(f"v{index}", size, self.block)]

    def _store(self, index: int, scale: int | None) -> str:
        if scale is not None:
            own = "" if self.sizes[scale] == self.block else self.sizes[scale]
            return f"tl.store(p{index} + b{own}, scale{scale}, known{own})"
        if self.program.tensors[index].axes == PACKED:
            return PACK.format(**self._packed(index))
        return f"tl.store(p{index} + x0, tl.broadcast_to(new{index}, inside.shape), inside)"


def _spread(name: str, size: int, block: int) -> str:
    """Values of smaller blocks, over their elements."""
    shape = f"[XBLOCK // {block}, {block // size}, {size}]"
    return f"{name} = tl.reshape(tl.broadcast_to({name}[:, :, None], {shape}), [XBLOCK // {block}, {block}])"


def _largest(number: int, tile: str, marked: bool, size: int, block: int) -> list[str]:
    """The scale of each block, as it is stored and as it is computed with. marked: with a minus where an element is not
    finite."""
    axis, keep = (1, ", keep_dims=True") if size == block else (2, "")
    found = [
        f'finite{number} = ~inside | (tl.abs({tile}) < float("inf"))',
        f"size{number} = tl.where(inside & finite{number}, tl.abs({tile}), 0.0)",
    ]
    if size != block:
        shape = f"[XBLOCK // {block}, {block // size}, {size}]"
        found += [f"{name}{number} = tl.reshape({name}{number}, {shape})" for name in ("finite", "size")]
    found.append(f"scale{number} = tl.max(size{number}, {axis}{keep}).to(tl.float32)")
    if marked:
        all_of_them = f"tl.min(finite{number}.to(tl.int32), {axis}{keep}) > 0"
        found.append(f"scale{number} = tl.where({all_of_them}, scale{number}, -scale{number})")
    found.append(f"largest{number} = scale{number}")
    return found if size == block else [*found, _spread(f"largest{number}", size, block)]


def _part(part: Part, own: str, dtypes: Sequence[torch.dtype], wide: torch.dtype) -> list[str]:
    """Computes one part; its results are called new0, new1, ... by their tensors, and tile0, tile1, ..."""
    if not part.program.outputs:
        return []
    kinds = [wide if kind == "tile" else dtypes[index] for kind, index in part.operands]
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
            lines.append(f"{own}_v{j} = {'tile' if kind == 'tile' else 'v'}{index}")
    names = {"column": "tl.full([1, 1], s{}, {})", "scale": "v{}.to({})", "largest": "largest{}.to({})"}
    for j, (kind, index) in enumerate(part.numbers):
        lines.append(f"{own}_n{j} = {names[kind].format(index, f'tl.{NAMES[wide]}')}")
    lines += statements
    for j in sorted(body.written):
        kind, index = part.operands[j]
        lines.append(f"{'tile' if kind == 'tile' else 'new'}{index} = {own}_w{j}")
    return lines
