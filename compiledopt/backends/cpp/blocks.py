"""A program that keeps values in blocks → one C++ kernel that sweeps over memory once: for each block, what comes before its
scales, the scales, and what needs them, with everything between in registers. Both parts are Inductor's functions for one
element, made ones for vectors (lanes.py); where that cannot be, and for float64, they are loops over a block. Where blocks
are of several sizes, the sweep goes by the largest, and both parts by the smallest, in which every scale is one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from compiledopt.backends import block_parts
from compiledopt.backends.block_parts import Cut, Operand, Part
from compiledopt.backends.cpp import draws, functions, lanes
from compiledopt.errors import CompileError
from compiledopt.files import source_of, text_beside
from compiledopt.rules.composed import LARGEST, MARKED
from compiledopt.rules.program import BLOCKS, PACKED, Program

HEADER = text_beside(__name__, "blocks.h")
TEXT = HEADER + lanes.TEXT + block_parts.TEXT + source_of(__name__)  # of which kernels in the cache are made
AHEAD = 512  # elements whose memory is asked for early: streams of a byte an element are too slow for the processor to see
FOUND_BY = {LARGEST: "largest_finite<{}>", MARKED: "largest_finite<{}, true>"}

Lower = Callable[[Program, Sequence[torch.dtype], str], tuple[list[str], list[tuple[str, int]], Sequence[str]]]


def with_headers(functions: list[str]) -> list[str]:
    """The functions of a file, after what those call."""
    vectors = ["#ifndef PLAIN", lanes.HEADER, "#endif"] if any("lanes::" in line for line in functions) else []
    return [HEADER, *vectors, *functions]


def source(program: Program, dtypes: Sequence[torch.dtype], lower: Lower, scalar: str, suffix: str = "") -> list[str]:
    """The functions of both parts, and `run` with this suffix over a piece that begins with a block. lower: a program to the
    lines of a function with a suffix to its name, its arguments and their types; scalar: the C type of the arithmetic. Raises:
    CompileError."""
    size, step = program.blocks[0], program.blocks[-1]
    odd = [one for one in program.blocks if size % one or one % step]
    if odd:
        raise CompileError(f"blocks of {size}, {odd[0]} and {step} do not divide each other")
    writer = _Writer(program, dtypes, scalar, Cut(program), suffix)
    bodies: list[list[str]] = []
    calls: list[list[str]] = [[], []]
    for number, part in enumerate(writer.cut.parts()):
        if not part.program.outputs:
            continue
        wide = {"float": torch.float32, "double": torch.float64}[scalar]
        kinds = [wide if kind == "tile" else dtypes[index] for kind, index in part.operands]
        body, arguments, types = lower(part.program, kinds, f"{suffix}_{number}")
        bodies.append(body)
        calls[number] = writer.call(part, number, arguments, types)
    return [*_either(bodies, scalar), *writer.block(calls), *writer.run()]


def _either(bodies: Sequence[list[str]], scalar: str) -> list[str]:
    """The functions on vectors, and the plain ones for a compiler that does not take those."""
    plain = functions.called([line for body in bodies for line in body])
    made = [lanes.vectored(body) if scalar == "float" else None for body in bodies]
    slow, fast = ("#define largest_finite plain_largest_finite", "#define largest_finite lanes::largest_finite")
    if any(one is None for one in made):
        return ["#undef largest_finite", slow, *plain]
    vectors = [line for one in made if one is not None for line in one]
    return ["#undef largest_finite", "#ifndef PLAIN", fast, *vectors, "#else", slow, *plain, "#endif"]


@dataclass(eq=False)
class _Writer:
    """Writes what calls the parts. scalar: the C type of the arithmetic; suffix: to the names of functions."""

    program: Program
    dtypes: Sequence[torch.dtype]
    scalar: str
    cut: Cut
    suffix: str

    def __post_init__(self) -> None:
        self.size, self.step = self.program.blocks[0], self.program.blocks[-1]
        self.order = [node.name for node in self.program.tensors]
        self.packed = [i for i, node in enumerate(self.program.tensors) if node.axes == PACKED]
        # Of a scale that is computed here, the elements of its blocks.
        self.sizes = {number: int(node.args[1]) for node, number in self.cut.scales.items()}  # type: ignore[arg-type]

    def _elements(self, i: int) -> int:
        """Of a block of tensor i, those that share one of its values: 2 of what is packed."""
        node = self.program.tensors[i]
        return {BLOCKS: self.program.sizes.get(node.name, 1), PACKED: 2}.get(node.axes, 1)

    def _bytes(self, i: int, count: str) -> str:
        """Of tensor i, for so many elements that begin a row."""
        each = self._elements(i)
        values = count if each == 1 else f"({count} + {each - 1}) / {each}"
        return f"{values} * {self.dtypes[i].itemsize}"

    def _number(self, operand: Operand) -> str:
        kind, index = operand
        if kind == "column":
            return f"columns[{index}]"
        if kind == "scale":
            return f"((const float*) data[{index}])[s / {self._elements(index)}]"
        return f"largest{index}[s / {self.sizes[index]}]"

    def call(self, part: Part, number: int, arguments: list[tuple[str, int]], types: Sequence[str]) -> list[str]:
        """What calls a part for a block, step by step."""
        numbers = ", ".join(f"({self.scalar}) {self._number(one)}" for one in part.numbers) or "0"
        given = []
        for (kind, index), type_name in zip(arguments, types, strict=True):
            if kind == "tensor":
                where, at = part.operands[index]
                given.append(f"({type_name}) data[{at}] + s" if where == "tensor" else f"{where}{at} + s")
            else:
                given.append({"column": f"numbers{number} + {index}", "length": str(self.step), "place": "place + s"}[kind])
        count = max(1, len(part.numbers))
        return [
            f"    for (int s = 0; s < {self.size}; s += {self.step}) {{",
            f"      const {self.scalar} numbers{number}[{count}] = {{{numbers}}};",
            f"      kernel{self.suffix}_{number}({', '.join(given)});",
            "    }",
        ]

    def block(self, calls: Sequence[Sequence[str]]) -> list[str]:
        """`block`, which computes one: of whose elements `count` are a row's, and the others are of no concern."""
        place = ", const Places& place" if self.program.is_random else ""
        return [
            "static inline __attribute__((always_inline))",
            f"void block{self.suffix}(const {self.scalar}* columns, char* const* data, int count{place}) {{",
            *(f"    alignas(64) {self.scalar} tile{index}[{self.size}];" for index in self.cut.tiles.values()),
            *(f"    alignas(64) uint8_t codes{i}[{self.size}];" for i in self.packed),
            *(
                f"    unpack<{self.size}, {self._size_of(i)}>((const uint8_t*) data[{i}], codes{i}, count);"
                for i in self.packed
            ),
            *calls[0],
            *self._scales(),
            *calls[1],
            *self._stores(),
            *(f"    pack<{self.size}, {self._size_of(i)}>((uint8_t*) data[{i}], codes{i}, count);" for i in self.packed),
            "}",
        ]

    def _size_of(self, i: int) -> int:
        return self.program.sizes[self.order[i]]

    def _scales(self) -> list[str]:
        """What finds the scales."""
        lines = []
        for node, n in self.cut.scales.items():
            tile, size = self.cut.tiles[node.args[0]], self.sizes[n]  # type: ignore[index]
            found = f"(float) {FOUND_BY[node.op].format(size)}(tile{tile} + i * {size}, count - i * {size})"
            lines.append(f"    float largest{n}[{self.size // size}];")
            lines.append(f"    for (int i = 0; i < {self.size // size}; ++i) largest{n}[i] = {found};")
        return lines

    def _stores(self) -> list[str]:
        """What stores the scales, when nothing reads the old ones any more."""
        outputs, scales = self.program.tensor_outputs, self.cut.scales
        homes = {scales[node]: self.order.index(name) for name, node in outputs.items() if node in scales}
        return [f"    std::memcpy(data[{home}], largest{n}, sizeof largest{n});" for n, home in homes.items()]

    def run(self) -> list[str]:
        """`run`: all blocks of a piece that is made of rows, of which the last block may be short. The launcher says how long
        rows are, after a piece's place."""
        bytes_of = [self.size // self._elements(i) * dtype.itemsize for i, dtype in enumerate(self.dtypes)]
        random = draws.place(self.program)
        row_of, names = [self._bytes(i, "row") for i in range(len(bytes_of))], range(len(bytes_of))
        columns = ", ".join(f"({self.scalar}) table[{i}]" for i in range(len(self.program.columns))) or "0"
        return [
            f'extern "C" void run{self.suffix}(void* const* pointers, const double* table, int64_t length) {{',
            f"  const {self.scalar} columns[{max(len(self.program.columns), 1)}] = {{{columns}}};",
            *random,
            f"  const int64_t row = ((const int64_t*) pointers[{len(self.dtypes)}])[1], blocks = row / {self.size};",
            f"  const int rest = row % {self.size};",
            *(f"  char* t{i} = static_cast<char*>(pointers[{i}]);" for i in names),
            "  for (; length > 0; length -= row) {",
            "    for (int64_t b = 0; b < blocks; ++b) {",
            *(f"      {_ask_for(i, count, self.size)}" for i, count in enumerate(bytes_of)),
            f"      char* const data[] = {{{', '.join(f't{i} + b * {count}' for i, count in enumerate(bytes_of))}}};",
            f"      block{self.suffix}(columns, data, {self.size}{f', place + b * {self.size}' if random else ''});",
            "    }",
            "    if (rest) {",
            *self.rest(bytes_of),
            "    }",
            *(f"    t{i} += {count};" for i, count in enumerate(row_of)),
            *(["    place = place + row;"] if random else []),
            "  }",
            "}",
        ]

    def rest(self, bytes_of: Sequence[int]) -> list[str]:
        """The last block of a row, of fewer elements: in memory of its own, but for what has another place for them (packed
        codes) or one value for a block."""
        own = [i for i in range(len(bytes_of)) if i not in self.packed and self._elements(i) < self.size]
        written = [i for i in own if self.order[i] in self.program.tensor_outputs]
        at = [f"t{i} + blocks * {count}" for i, count in enumerate(bytes_of)]
        place = f", place + blocks * {self.size}" if self.program.is_random else ""
        return [
            *(f"      alignas(64) char own{i}[{bytes_of[i]}];" for i in own),
            *(f"      take<{bytes_of[i]}>(own{i}, {at[i]}, {self._bytes(i, 'rest')});" for i in own),
            f"      char* const data[] = {{{', '.join(f'own{i}' if i in own else at[i] for i in range(len(at)))}}};",
            f"      block{self.suffix}(columns, data, rest{place});",
            *(f"      give<{bytes_of[i]}>({at[i]}, own{i}, {self._bytes(i, 'rest')});" for i in written),
        ]


def _ask_for(tensor: int, count: int, size: int) -> str:
    """Asks for a block of a tensor early. count: its bytes."""
    ahead = AHEAD // size * count
    lines = [f"__builtin_prefetch(t{tensor} + b * {count} + {ahead + offset});" for offset in range(0, count, 64)]
    each = max(1, 64 // count)  # blocks in a line of the cache
    return (f"if (b % {each} == 0) " if each > 1 else "") + " ".join(lines)
