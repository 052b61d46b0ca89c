"""A program that keeps values in blocks → one C++ kernel that sweeps over memory once: for each block, what comes before its
scales, the scales, and what needs them, with everything between in an array of a block's length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compiledopt.errors import CompileError
from compiledopt.rules.composed import LARGEST
from compiledopt.rules.program import BLOCKS, Argument, Node, Program, node_args

HEADER = (Path(__file__).parent / "blocks.h").read_text()
TEXT = HEADER + Path(__file__).read_text()  # of which kernels in the cache are made
AHEAD = 16  # blocks whose memory is asked for early: streams of a byte an element are too slow for the processor to see

Operand = tuple[str, int]  # ("tensor", its index), ("tile", its index); of numbers ("column", index), ("scale", index of a
#                            tensor), ("largest", index)


@dataclass(eq=False)
class Part:
    """What is computed for the elements of one block, before or after its scales are known."""

    program: Program
    operands: list[Operand]
    numbers: list[Operand]


@dataclass(eq=False)
class Cut:
    """Splits a program at the largest sizes of its blocks."""

    program: Program
    late: set[Node] = field(default_factory=set)  # what needs a scale that is computed here
    tiles: dict[Node, int] = field(default_factory=dict)
    scales: dict[Node, int] = field(default_factory=dict)  # the largest sizes, by number

    def __post_init__(self) -> None:
        for node in self.program.elementwise_part:
            if node.op == LARGEST:
                self.scales[node] = len(self.scales)
                self._keep(node.args[0])
            if any(arg in self.late or arg in self.scales for arg in node_args(node)):
                if node.op == LARGEST or node.axes == BLOCKS:
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

    def __init__(self, cut: Cut, late: bool) -> None:
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
            result, place = self.visit(node), ("tensor", order.index(name))
            home = next((known for known, operand in self.tensors.items() if operand == place), None) or self._tensor(place)
            results[home] = result  # type: ignore[assignment]
        if len(results) > 1:  # let every result read one input, or Inductor makes several kernels
            anchor = next(node for node, operand in self.tensors.items() if operand[0] == "tensor" or self.late)
            same = Node("eq", (anchor, anchor), False)
            results = {home: Node("where", (same, value, value), False) for home, value in results.items()}
        named = {home.name: value for home, value in results.items()}
        program = Program(f"{self.cut.program.rule}_{'late' if self.late else 'early'}", (*self.tensors, *self.numbers), named)
        return Part(program, list(self.tensors.values()), [self.numbers[node] for node in program.columns])

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
            return self._number(("scale", index)) if node.axes == BLOCKS else self._tensor(("tensor", index))
        if self.late and node in self.cut.tiles:
            return self._tensor(("tile", self.cut.tiles[node]))
        return Node(node.op, tuple(self.visit(arg) for arg in node.args), False, line=node.line)


Lower = Callable[[Program, Sequence[torch.dtype], str], tuple[list[str], list[tuple[str, int]], Sequence[str]]]


def source(program: Program, dtypes: Sequence[torch.dtype], lower: Lower, scalar: str, key: Sequence[str]) -> list[str]:
    """The functions of both parts, and `run` over a piece that begins with a block. lower: a program to the lines of a
    function with a suffix to its name, its arguments and their types; scalar: the C type of the arithmetic; key: the lines that
    know `place`. Raises: CompileError."""
    if len(program.blocks) != 1:
        raise CompileError(
            f"values are kept in blocks of {' and of '.join(map(str, program.blocks))}, and one size is possible"
        )
    block, cut = program.blocks[0], Cut(program)
    wide = {"float": torch.float32, "double": torch.float64}[scalar]
    lines, calls = [HEADER], []
    for number, part in enumerate(cut.parts()):
        kinds = [dtypes[index] if kind == "tensor" else wide for kind, index in part.operands]
        body, arguments, types = lower(part.program, kinds, str(number))
        lines += body
        calls.append(_call(part, number, arguments, types, block, scalar))
    order = [node.name for node in program.tensors]
    stores = [
        f"    static_cast<float*>(pointers[{order.index(name)}])[b] = largest{cut.scales[node]};"
        for name, node in program.tensor_outputs.items()
        if node in cut.scales
    ]
    sizes = {cut.tiles[node.args[0]]: number for node, number in cut.scales.items()}  # type: ignore[index]
    declared = [f"    alignas(64) {scalar} tile{index}[{block}];" for index in cut.tiles.values()]
    known = [f"    const {scalar} largest{n} = (float) largest_finite(tile{tile}, n);" for tile, n in sizes.items()] + stores
    streams = [(i, dtypes[i].itemsize) for i, node in enumerate(program.tensors) if node.axes != BLOCKS]
    return [*lines, *_run(program, block, scalar, key, declared, calls, known, streams)]


def _run(
    program: Program,
    block: int,
    scalar: str,
    key: Sequence[str],
    declared: Sequence[str],
    calls: Sequence[Sequence[str]],
    known: Sequence[str],
    streams: Sequence[tuple[int, int]],
) -> list[str]:
    """`run`. declared: the arrays of a block; calls: of both parts; known: the scales, between them; streams: (operand, bytes
    of an element) of what is read and written."""
    columns = ", ".join(f"({scalar}) table[{i}]" for i in range(len(program.columns))) or "0"
    return [
        'extern "C" void run(void* const* pointers, const double* table, int64_t length) {',
        f"  const {scalar} columns[{max(len(program.columns), 1)}] = {{{columns}}};",
        *key,
        "  const auto one = [&](int64_t b, auto n) __attribute__((always_inline)) {",
        *declared,
        *calls[0],
        *known,
        *calls[1],
        "  };",
        f"  const int64_t blocks = length / {block};",
        "  for (int64_t b = 0; b < blocks; ++b) {",
        f"    if (b % {AHEAD} == 0) {{",
        *(f"      ask_for(pointers[{i}], (b + {AHEAD}) * {block * n}, {AHEAD * block * n}, length * {n});" for i, n in streams),
        "    }",
        f"    one(b, std::integral_constant<int64_t, {block}>());",
        "  }",
        f"  if (length % {block}) one(blocks, length % {block});",
        "}",
    ]


def _call(
    part: Part, number: int, arguments: list[tuple[str, int]], types: Sequence[str], block: int, scalar: str
) -> list[str]:
    """What calls a part for block b of n elements."""
    values = {"column": "columns[{}]", "scale": "static_cast<const float*>(pointers[{}])[b]", "largest": "largest{}"}
    numbers = ", ".join(f"({scalar}) {values[kind].format(index)}" for kind, index in part.numbers) or "0"
    given = []
    for (kind, index), type_name in zip(arguments, types, strict=True):
        if kind == "tensor":
            where, at = part.operands[index]
            given.append(f"tile{at}" if where == "tile" else f"({type_name}) pointers[{at}] + b * {block}")
        else:
            given.append({"column": f"numbers{number} + {index}", "length": "n", "place": f"place + {index}"}[kind])
    lines = [f"    const {scalar} numbers{number}[{max(1, len(part.numbers))}] = {{{numbers}}};"]
    if any(kind == "place" for kind, _ in arguments):
        lines.append(f"    const int32_t place[3] = {{int32_t(at[0] + b * {block}), key.first, key.second}};")
    return [*lines, f"    kernel{number}({', '.join(given)});"]
