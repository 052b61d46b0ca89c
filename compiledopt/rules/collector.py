"""A part of a program as a program of its own: what it reads and writes are its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from compiledopt.rules.program import BLOCKS, ELEMENTS, NUMBER, Argument, Node, Program

Place = TypeVar("Place")
Source = TypeVar("Source")


class Collector(ABC, Generic[Place, Source]):
    """Collects the operands and the arithmetic of a part. tensors: {input: where it lives}; numbers: {input: where it comes
    from}; results: {name of an input: what it becomes}."""

    in_blocks: ClassVar[bool] = False  # whether it may compute a value for each block

    def __init__(self) -> None:
        self.made: dict[Node, Node] = {}
        self.tensors: dict[Node, Place] = {}
        self.numbers: dict[Node, Source] = {}
        self.results: dict[str, Node] = {}

    @abstractmethod
    def given(self, node: Node) -> Node | None:
        """The input for what this part does not compute; None for what it does."""

    def tensor(self, place: Place, axes: int = ELEMENTS) -> Node:
        node = Node("input", (), False, f"t{len(self.tensors)}", axes=axes)
        self.tensors[node] = place
        return node

    def number(self, source: Source) -> Node:
        node = Node("input", (), True, f"c{len(self.numbers)}", axes=NUMBER)
        self.numbers[node] = source
        return node

    def visit(self, node: Argument) -> Argument:
        """The node, as one of this part."""
        if not isinstance(node, Node):
            return node
        if node not in self.made:
            self.made[node] = self.given(node) or self._computed(node)
        return self.made[node]

    def _computed(self, node: Node) -> Node:
        axes = BLOCKS if self.in_blocks and node.axes == BLOCKS else ELEMENTS
        return Node(node.op, tuple(map(self.visit, node.args)), False, line=node.line, axes=axes)

    def write(self, place: Place, value: Argument) -> Node:
        """Let a value be written to a place. Returns: the input for it."""
        result = self.visit(value)
        home = next((node for node, known in self.tensors.items() if known == place), None) or self.tensor(place)
        assert isinstance(result, Node)
        self.results[home.name] = result
        return home

    def program(self, name: str, anchor: Node | None, sizes: Mapping[str, int] | None = None) -> Program:
        """All of it. anchor: an input that every result reads, or Inductor makes a kernel of those that share none; sizes: of
        blocks."""
        if anchor is not None and len(self.results) > 1:
            same = Node("eq", (anchor, anchor), False)
            self.results = {name: Node("where", (same, value, value), False) for name, value in self.results.items()}
        return Program(name, (*self.tensors, *self.numbers), self.results, sizes=sizes or {})
