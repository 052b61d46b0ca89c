"""A program that keeps values in blocks → one C++ kernel that sweeps over memory once: for each block, what comes before its
scales, the scales, and what needs them, with everything between in an array of a block's length. Where blocks are of several
sizes, the sweep goes by the largest, and both parts by the smallest, in which every scale is one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compiledopt.errors import CompileError
from compiledopt.rules.composed import LARGEST, MARKED, SCALES
from compiledopt.rules.program import BLOCKS, PACKED, Argument, Node, Program, node_args

HEADER = (Path(__file__).parent / "blocks.h").read_text()
TEXT = HEADER + Path(__file__).read_text()  # of which kernels in the cache are made
AHEAD = 512  # elements whose memory is asked for early: streams of a byte each are too slow for the processor to see
FOUND_BY = {LARGEST: "largest_finite", MARKED: "marked_largest"}

Operand = tuple[str, int]  # ("tensor", its index), ("codes", index of a packed one), ("tile", its index); of numbers ("column",
#                            index), ("scale", index of a tensor), ("largest", index)


@dataclass(eq=False)
class Part:
    """What is computed for the elements of one block, before or after its scales are known."""

    program: Program
    operands: list[Operand]
    numbers: list[Operand]


@dataclass(eq=False)
class _Cut:
    """Splits a program at the largest sizes of its blocks."""

    program: Program
    late: set[Node] = field(default_factory=set)  # what needs a scale that is computed here
    tiles: dict[Node, int] = field(default_factory=dict)
    scales: dict[Node, int] = field(default_factory=dict)  # the largest sizes, by number

    def __post_init__(self) -> None:
        for node in self.program.elementwise_part:
            if node.op in SCALES:
                self.scales[node] = len(self.scales)
                self._keep(node.args[0])
            if any(arg in self.late or arg in self.scales for arg in node_args(node)):
                if node.op in SCALES or node.axes == BLOCKS:
                    raise CompileError(f"{self.program.rule} computes with the scales of blocks more than once")
                self.late.add(node)
        for node in self.late:
            for arg in node_args(node):
                if not arg.scalar and arg.op != "input" and arg not in self.late and arg not in self.scales:
                    self._keep(arg)

    def _keep(self, node: Argument) -> None:
        if not isinstance(node, Node) or node.op == "input":
            raise CompileError(f"{self.program.rule} keeps a value in blocks that it does not compute")
        self.tiles.setdefault(node, len(self.tiles))

    def parts(self) -> list[Part]:
        outputs = {name: node for name, node in self.program.tensor_outputs.items() if node not in self.scales}
        first = {name: node for name, node in outputs.items() if node not in self.late}
        last = {name: node for name, node in outputs.items() if node in self.late}
        return [_Part(self, False).finish(first), _Part(self, True).finish(last)]


class _Part:
    """Collects the operands of one part."""

    def __init__(self, cut: _Cut, late: bool) -> None:
        self.cut, self.late = cut, late
        self.made: dict[Node, Node] = {}
        self.tensors: dict[Node, Operand] = {}
        self.numbers: dict[Node, Operand] = {}

    def finish(self, outputs: Mapping[str, Node]) -> Part:
        results: dict[Node, Node] = {}
        if not self.late:
            for node, index in self.cut.tiles.items():
                results[self._tensor(("tile", index))] = self.visit(node)  # type: ignore[assignment]
        order = [node.name for node in self.cut.program.tensors]
        for name, node in outputs.items():
            result, place = self.visit(node), self._home(order.index(name))
            home = next((known for known, operand in self.tensors.items() if operand == place), None) or self._tensor(place)
            results[home] = result  # type: ignore[assignment]
        if len(results) > 1:  # let every result read one input, or Inductor makes several kernels
            anchor = next(node for node, operand in self.tensors.items() if operand[0] != "tile" or self.late)
            same = Node("eq", (anchor, anchor), False)
            results = {home: Node("where", (same, value, value), False) for home, value in results.items()}
        named = {home.name: value for home, value in results.items()}
        program = Program(f"{self.cut.program.rule}_{'late' if self.late else 'early'}", (*self.tensors, *self.numbers), named)
        return Part(program, list(self.tensors.values()), [self.numbers[node] for node in program.columns])

    def _home(self, index: int) -> Operand:
        return "codes" if self.cut.program.tensors[index].axes == PACKED else "tensor", index

    def _tensor(self, operand: Operand) -> Node:
        node = Node("input", (), False, f"t{len(self.tensors)}")
        self.tensors[node] = operand
        return node

    def _number(self, operand: Operand) -> Node:
        node = Node("input", (), True, f"c{len(self.numbers)}", axes=0)
        self.numbers[node] = operand
        return node

    def visit(self, node: Argument) -> Argument:
        if not isinstance(node, Node):
            return node
        if node not in self.made:
            self.made[node] = self._make(node)
        return self.made[node]

    def _make(self, node: Node) -> Node:
        program = self.cut.program
        if node in self.cut.scales:
            return self._number(("largest", self.cut.scales[node]))
        if node.scalar:
            return self._number(("column", program.columns.index(node)))
        if node.op == "input":
            index = program.tensors.index(node)
            return self._number(("scale", index)) if node.axes == BLOCKS else self._tensor(self._home(index))
        if self.late and node in self.cut.tiles:
            return self._tensor(("tile", self.cut.tiles[node]))
        return Node(node.op, tuple(self.visit(arg) for arg in node.args), False, line=node.line)


Lower = Callable[[Program, Sequence[torch.dtype], str], tuple[list[str], list[tuple[str, int]], Sequence[str]]]


def source(program: Program, dtypes: Sequence[torch.dtype], lower: Lower, scalar: str, key: Sequence[str]) -> list[str]:
    """The functions of both parts, and `run` over a piece that begins with a block. lower: a program to the lines of a
    function with a suffix to its name, its arguments and their types; scalar: the C type of the arithmetic; key: the lines that
    know `place`. Raises: CompileError."""
    sweep, cut = _Sweep(program, scalar), _Cut(program)
    wide = {"float": torch.float32, "double": torch.float64}[scalar]
    lines, calls = [HEADER], []
    for number, part in enumerate(cut.parts()):
        kinds = [wide if kind == "tile" else dtypes[index] for kind, index in part.operands]
        body, arguments, types = lower(part.program, kinds, str(number))
        lines += body
        calls.append(sweep.call(part, number, arguments, types))
    return [*lines, *sweep.run(cut, calls, dtypes, key)]


class _Sweep:
    """Writes `run`: for each block, of the largest size, both parts, in steps of the smallest."""

    def __init__(self, program: Program, scalar: str) -> None:
        self.program, self.scalar = program, scalar
        self.block, self.step = program.blocks[0], program.blocks[-1]
        odd = [size for size in program.blocks if self.block % size or size % self.step]
        if odd:
            raise CompileError(f"blocks of {self.block}, {odd[0]} and {self.step} do not divide each other")
        self.order = [node.name for node in program.tensors]
        self.packed = [i for i, node in enumerate(program.tensors) if node.axes == PACKED]

    def run(self, cut: _Cut, calls: Sequence[Sequence[str]], dtypes: Sequence[torch.dtype], key: Sequence[str]) -> list[str]:
        program, block, scalar = self.program, self.block, self.scalar
        columns = ", ".join(f"({scalar}) table[{i}]" for i in range(len(program.columns))) or "0"
        ahead = max(1, AHEAD // block)
        streams = [(i, dtypes[i].itemsize, 1) for i, node in enumerate(program.tensors) if node.axes not in (BLOCKS, PACKED)]
        streams += [(i, 1, 2) for i in self.packed]
        return [
            'extern "C" void run(void* const* pointers, const double* table, int64_t length) {',
            f"  const {scalar} columns[{max(len(program.columns), 1)}] = {{{columns}}};",
            *key,
            "  const auto one = [&](int64_t b, auto n) __attribute__((always_inline)) {",
            *(f"    alignas(64) {scalar} tile{index}[{block}];" for index in cut.tiles.values()),
            *(f"    alignas(64) uint8_t codes{i}[{block}];" for i in self.packed),
            *(self._packing("unpack", i) for i in self.packed),
            *calls[0],
            *self._scales(cut),
            *calls[1],
            *(self._packing("pack", i) for i in self.packed),
            "  };",
            f"  const int64_t blocks = length / {block};",
            "  for (int64_t b = 0; b < blocks; ++b) {",
            f"    if (b % {ahead} == 0) {{",
            *(
                f"      ask_for(pointers[{i}], (b + {ahead}) * {block * n // m}, {ahead * block * n // m}, length * {n} / {m});"
                for i, n, m in streams
            ),
            "    }",
            f"    one(b, std::integral_constant<int64_t, {block}>());",
            "  }",
            f"  if (length % {block}) one(blocks, length % {block});",
            "}",
        ]

    def _packing(self, what: str, i: int) -> str:
        size = self.program.sizes[self.order[i]]
        return f"    {what}<{size}>(static_cast<uint8_t*>(pointers[{i}]) + b * {self.block // 2}, codes{i}, n);"

    def _scales(self, cut: _Cut) -> list[str]:
        """What finds the scales and stores them."""
        homes, lines = {node: name for name, node in self.program.tensor_outputs.items()}, []
        for node, number in cut.scales.items():
            tile, size = cut.tiles[node.args[0]], int(node.args[1])  # type: ignore[index, arg-type]
            found = f"(float) {FOUND_BY[node.op]}(tile{tile} + s, m)"
            lines += [
                f"    {self.scalar} largest{number}[{self.block // size}];",
                f"    each<{size}>(n, [&](int64_t s, auto m) __attribute__((always_inline)) {{",
                f"      largest{number}[s / {size}] = {found};",
            ]
            if node in homes:
                home = f"static_cast<float*>(pointers[{self.order.index(homes[node])}])[{self._at(size)}]"
                lines.append(f"      {home} = largest{number}[s / {size}];")
            lines.append("    });")
        return lines

    def _at(self, size: int) -> str:
        """The place of a block of a size, of those that the piece has."""
        return "b" if size == self.block else f"(b * {self.block} + s) / {size}"

    def _number(self, cut_sizes: Sequence[int], operand: Operand) -> str:
        kind, index = operand
        if kind == "column":
            return f"columns[{index}]"
        if kind == "scale":
            return f"static_cast<const float*>(pointers[{index}])[{self._at(self.program.sizes[self.order[index]])}]"
        return f"largest{index}[s / {cut_sizes[index]}]"

    def call(self, part: Part, number: int, arguments: list[tuple[str, int]], types: Sequence[str]) -> list[str]:
        """What calls a part for the n elements of block b, step by step."""
        sizes = [int(node.args[1]) for node in self.program.elementwise_part if node.op in SCALES]  # type: ignore[arg-type]
        numbers = ", ".join(f"({self.scalar}) {self._number(sizes, one)}" for one in part.numbers) or "0"
        given = []
        for (kind, index), type_name in zip(arguments, types, strict=True):
            if kind == "tensor":
                where, at = part.operands[index]
                known = f"({type_name}) pointers[{at}] + b * {self.block} + s"
                given.append(known if where == "tensor" else f"{where}{at} + s")
            else:
                given.append({"column": f"numbers{number} + {index}", "length": "m", "place": "place"}[kind])
        place = f"      const int32_t place[3] = {{int32_t(at[0] + b * {self.block} + s), key.first, key.second}};"
        return [
            f"    each<{self.step}>(n, [&](int64_t s, auto m) __attribute__((always_inline)) {{",
            f"      const {self.scalar} numbers{number}[{max(1, len(part.numbers))}] = {{{numbers}}};",
            *([place] if any(kind == "place" for kind, _ in arguments) else []),
            f"      kernel{number}({', '.join(given)});",
            "    });",
        ]
