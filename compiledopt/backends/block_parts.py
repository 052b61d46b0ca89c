"""A program that keeps values in blocks, cut where the scales of a block are known: what comes before, and what needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compiledopt.errors import CompileError
from compiledopt.files import source_of
from compiledopt.rules import collector
from compiledopt.rules.collector import Collector
from compiledopt.rules.composed import SCALES
from compiledopt.rules.program import BLOCKS, PACKED, Argument, Node, Program, node_args

TEXT = source_of(__name__) + source_of(collector.__name__)  # of which kernels in the cache are made

Operand = tuple[str, int]  # ("tensor", its index), ("codes", index of a packed one), ("tile", its index); of numbers ("column",
#                            index), ("scale", index of a tensor), ("largest", index)


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
        if not isinstance(node, Node):
            raise CompileError(f"{self.program.rule} keeps a number in blocks")
        self.tiles.setdefault(node, len(self.tiles))

    def parts(self) -> list[Part]:
        """What comes before scales are known, and what after; of which one may have no outputs."""
        outputs = {name: node for name, node in self.program.tensor_outputs.items() if node not in self.scales}
        first = {name: node for name, node in outputs.items() if node not in self.late}
        last = {name: node for name, node in outputs.items() if node in self.late}
        return [_Collector(self, False).finish(first), _Collector(self, True).finish(last)]


class _Collector(Collector[Operand, Operand]):
    """Collects one part."""

    def __init__(self, cut: Cut, late: bool) -> None:
        super().__init__()
        self.cut, self.late = cut, late

    def finish(self, outputs: Mapping[str, Node]) -> Part:
        if not self.late:
            for node, index in self.cut.tiles.items():
                self.write(("tile", index), node)
        order = [node.name for node in self.cut.program.tensors]
        for name, node in outputs.items():
            self.write(self._home(order.index(name)), node)
        # A tile has no values before the first part has written it.
        anchor = next((node for node, operand in self.tensors.items() if operand[0] != "tile" or self.late), None)
        program = self.program(f"{self.cut.program.rule}_{'late' if self.late else 'early'}", anchor)
        return Part(program, list(self.tensors.values()), [self.numbers[node] for node in program.columns])

    def _home(self, index: int) -> Operand:
        return "codes" if self.cut.program.tensors[index].axes == PACKED else "tensor", index

    def given(self, node: Node) -> Node | None:
        whole = self.cut.program
        if node in self.cut.scales:
            return self.number(("largest", self.cut.scales[node]))
        if node.scalar:
            return self.number(("column", whole.columns.index(node)))
        if self.late and node in self.cut.tiles:
            return self.tensor(("tile", self.cut.tiles[node]))
        if node.op == "input":
            index = whole.tensors.index(node)
            return self.number(("scale", index)) if node.axes == BLOCKS else self.tensor(self._home(index))
        return None
