"""A traced rule: a list of operations, split into a scalar part and the part that runs over tensors. That part is pointwise,
unless the rule reduces: then rules/reductions.py cuts it at its reductions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from compiledopt.rules.composed import COMPOSED, RANDOM
from compiledopt.rules.ops import OPS

# The axes along which a value varies, as a set of bits. A parameter is seen as matrices of rows and columns.
MATRICES, ROWS, COLUMNS = 1, 2, 4
ELEMENTS, NUMBER = MATRICES | ROWS | COLUMNS, 0
BLOCKS = 8  # of as many neighbours in a row as share a scale (storage/)
PACKED = 16  # elements, two to a byte: one of the first half of a block and one of the second
AXES = {
    ELEMENTS: "element",
    MATRICES | ROWS: "row",
    MATRICES | COLUMNS: "column",
    MATRICES: "matrix",
    NUMBER: "parameter",
    BLOCKS: "block",
    PACKED: "element",
}
# How a parameter lies in memory: in any dense order; row after row; column after column. In the last, its columns are what
# the rest calls rows, so that neighbours in memory always differ in COLUMNS.
ANY_ORDER, ROW_AFTER_ROW, COLUMN_AFTER_COLUMN = range(3)
# Shifted by so many bits: how many dimensions, from the first, make up a row each, where not the last two are rows and columns.
OUTER = 2
REDUCTIONS = ("sum", "mean", "amax", "amin")
GIVEN = ("input", "total")  # what a program does not compute
# Numbers of the parameter, as inputs: how many elements it has, and, followed by [i], one of its sizes.
SIZES = ("param.numel", "param.shape")


@dataclass(frozen=True, eq=False)
class Node:
    """One value. op: a name in OPS or REDUCTIONS, "input", or "total", a sum over all parameters of its argument; args: nodes
    and Python numbers; scalar: whether it is 0-dim and known before the update reads a tensor; axes: those along which it
    varies, none for a scalar."""

    op: str
    args: tuple[Node | float, ...]
    scalar: bool
    name: str = ""
    line: str = field(default="", repr=False)
    axes: int = ELEMENTS

    @property
    def is_of_group(self) -> bool:
        """Of a total: whether it is summed over a group, and not over the model."""
        return ".group_total[" in self.name


Argument = Node | float


def node_args(node: Node) -> Iterable[Node]:
    return (arg for arg in node.args if isinstance(arg, Node))


@dataclass(frozen=True, eq=False)
class Program:
    """What a rule computes, under one choice of its flags.

    inputs: the tensors (param, grad, states) and then the 0-dim values (states, numbers and totals).
    outputs: {"param" or a state's name: its new value}. shared: those of them that are not a parameter's own.
    sizes: {input: elements of a block} of scales and of what is packed. asked: the totals by name, in the order in which the
        rule asks for them, and as often as it does.
    """

    rule: str
    inputs: tuple[Node, ...]
    outputs: dict[str, Node]
    shared: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    @cached_property
    def nodes(self) -> list[Node]:
        """All operations that an output needs, in an order that can be executed."""
        seen: set[Node] = set()
        ordered: list[Node] = []

        def visit(node: Node) -> None:
            if node in seen:
                return
            seen.add(node)
            if node.op not in GIVEN:
                for arg in node_args(node):
                    visit(arg)
                ordered.append(node)

        for output in self.outputs.values():
            visit(output)
        return ordered

    @cached_property
    def tensors(self) -> tuple[Node, ...]:
        return tuple(node for node in self.inputs if not node.scalar)

    @cached_property
    def scalars(self) -> tuple[Node, ...]:
        return tuple(node for node in self.inputs if node.scalar)

    @cached_property
    def scalar_part(self) -> list[Node]:
        return [node for node in self.nodes if node.scalar]

    @cached_property
    def elementwise_part(self) -> list[Node]:
        return [node for node in self.nodes if not node.scalar]

    @cached_property
    def columns(self) -> list[Node]:
        """The 0-dim values that the elementwise part reads: the columns of the scalar table."""
        found: dict[Node, None] = {}
        for node in self.elementwise_part:
            found.update((arg, None) for arg in node_args(node) if arg.scalar)
        found.update((node, None) for name, node in self.tensor_outputs.items() if node.scalar)
        return list(found)

    @cached_property
    def tensor_outputs(self) -> dict[str, Node]:
        """The new values of the parameter and of the states shaped like it, where they change."""
        tensors = {node.name: node for node in self.tensors}
        return {n: node for n, node in self.outputs.items() if n in tensors and node is not tensors[n]}

    @cached_property
    def scalar_outputs(self) -> dict[str, Node]:
        """The new 0-dim states of a parameter."""
        own = {node.name for node in self.tensors} | self.shared
        return {name: node for name, node in self.outputs.items() if name not in own}

    @cached_property
    def totals(self) -> tuple[Node, ...]:
        return tuple(node for node in self.inputs if node.op == "total")

    @cached_property
    def shared_part(self) -> Program:
        """The new values of the shared states, from numbers alone."""
        outputs = {name: self.outputs[name] for name in sorted(self.shared)}
        used = [n for n in self.scalars if n.name in outputs or any(_follows_from(value, n) for value in outputs.values())]
        unread = [Node("input", (), True, name) for name in outputs if name not in {node.name for node in used}]
        return Program(f"{self.rule}_shared", (*used, *unread), outputs)

    @cached_property
    def text(self) -> str:
        """One line per operation. Two programs with the same text compute the same."""
        known = [node for node in self.inputs if node.op == "input"]
        names = {node: f"{'' if node.scalar else 'tensor '}{node.name}" for node in known}
        lines = [f"inputs {', '.join(names.values())}"]
        names.update((node, node.name) for node in known)
        for node in self._with_totals:
            names[node] = node.name if node.op == "total" else f"%{len(lines) - 1}"
            args = ", ".join(names[arg] if isinstance(arg, Node) else repr(arg) for arg in node.args)
            lines.append(f"{names[node]} = {node.op}({args}){_remark(node)}")
        lines += [f"{name} <- {names[node]}" for name, node in self.outputs.items()]
        return "\n".join(lines)

    @property
    def _with_totals(self) -> list[Node]:
        """All operations, with those that totals are summed from, in an order that can be executed."""
        seen: dict[Node, None] = {}

        def visit(node: Node) -> None:
            for arg in node_args(node):
                if arg not in seen and arg.op != "input":
                    visit(arg)
            seen[node] = None

        for node in (*self.totals, *self.nodes):
            if node not in seen:
                visit(node)
        return list(seen)

    @cached_property
    def kernel_text(self) -> str:
        """The elementwise part alone, by positions: two programs with the same one share their kernels, however their
        columns come about (another schedule of the learning rate is no other kernel)."""
        names = {node: f"tensor{i}" for i, node in enumerate(self.tensors)}
        names |= {node: f"column{i}" for i, node in enumerate(self.columns)}
        lines = [f"{len(self.tensors)} tensors, {len(self.columns)} columns"]
        for index, node in enumerate(self.elementwise_part):
            names[node] = f"%{index}"
            args = ", ".join(names[arg] if isinstance(arg, Node) else repr(arg) for arg in node.args)
            lines.append(f"%{index} = {node.op}({args})")
        position = {node.name: i for i, node in enumerate(self.tensors)}
        lines += [f"tensor{position[name]} <- {names[node]}" for name, node in self.tensor_outputs.items()]
        known = [(i, node) for i, node in enumerate(self.tensors) if node.name in self.sizes]
        lines += [f"tensor{i} is of blocks of {self.sizes[node.name]}, {node.axes}" for i, node in known]
        made = dict.fromkeys(node.op for node in self.elementwise_part if node.op in COMPOSED)
        lines += [f"{op} is {COMPOSED[op].definition}" for op in made]
        return "\n".join(lines)

    @cached_property
    def is_composed(self) -> bool:
        """Whether it has operations that are made of others: no sequence in place is derived from such a program."""
        return any(node.op in COMPOSED for node in self._with_totals)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """How many elements share a scale, where values are kept in blocks, the largest number first."""
        return tuple(sorted(set(self.sizes.values()), reverse=True))

    @cached_property
    def is_random(self) -> bool:
        """Whether it reads random numbers, for which it must know the parameter and the places of its elements."""
        return any(node.op == RANDOM for node in self.nodes)


def _remark(node: Node) -> str:
    if node.scalar:
        return "  # 0-dim"
    return "" if node.axes == ELEMENTS else f"  # one per {AXES[node.axes]}"


def depends_on(node: Node, name: str, into_totals: bool = True) -> bool:
    """Whether an input of this name is among what a node is computed from; into_totals: or what totals are summed from."""
    return any(one.name == name for one in sources(node, into_totals))


def _follows_from(node: Node, source: Node) -> bool:
    """Whether a node is computed from another, without what totals are summed from."""
    return any(one is source for one in sources(node, into_totals=False))


def sources(node: Node, into_totals: bool = True) -> Iterator[Node]:
    """A node and all that it is computed from."""
    seen: set[Node] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        if one not in seen:
            seen.add(one)
            yield one
            pending += node_args(one) if into_totals or one.op != "total" else ()


def value_of(node: Node, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A node computed by operations of torch."""
    if node.op == "input":
        return inputs[node.name]
    example = next(iter(inputs.values()))
    args = [value_of(arg, inputs) if isinstance(arg, Node) else torch.full_like(example, arg) for arg in node.args]
    result: torch.Tensor = OPS[node.op].tensor(*args)
    return result


def scalar_program(program: Program) -> Program:
    """The scalar part as an elementwise program over rows: its inputs as they are, and each of its results as one more
    input that is written: first `column0`, `column1`, ..., and, in place, the 0-dim states."""
    made: dict[Node, Node] = {node: Node("input", (), False, node.name) for node in program.scalars}

    def vector(node: Node) -> Node:
        if node not in made:
            args = tuple(vector(arg) if isinstance(arg, Node) else arg for arg in node.args)
            made[node] = Node(node.op, args, False, line=node.line)
        return made[node]

    # Every result reads one input in common, or Inductor would make a kernel of those that share none with the others.
    anchor = made[program.scalars[0]]
    same = Node("eq", (anchor, anchor), False)

    def anchored(node: Node) -> Node:
        return Node("where", (same, vector(node), vector(node)), False)

    columns = {f"column{i}": anchored(node) for i, node in enumerate(program.columns)}
    results = {name: anchored(node) for name, node in program.scalar_outputs.items()}
    inputs = (*(made[node] for node in program.scalars), *(Node("input", (), False, name) for name in columns))
    return Program(f"{program.rule}_scalars", inputs, {**columns, **results})
