"""A rule that calls one function of whole matrices (rules/products.py) → the programs before it and after it.

What the function is given, and what it makes of that, lies in a tensor like the parameter: the last operand of the program
before it, which writes it, and of the program after it, which reads it. Both are programs like any other, in passes where they
reduce. A state is written by the first where nothing in the second reads what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from compiledopt.rules.author import TraceError
from compiledopt.rules.options import NORM
from compiledopt.rules.products import WholeMatrices
from compiledopt.rules.program import OUTER, Node, Program, depends_on, sources
from compiledopt.rules.rule import Initial, Rule
from compiledopt.rules.scalar_part import ScalarPart
from compiledopt.rules.trace import named
from compiledopt.rules.traced import Traced, Variant

MATRIX = "matrix"  # the tensor between the programs
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Part(Traced):
    """The rule before the function, or after it, for parameters of one number of dimensions, dtype and order in memory."""

    def __init__(self, rule: Rule, present: tuple[str, ...], reason: str, group: Mapping[str, Any], only: Variant) -> None:
        super().__init__(rule, present, None, reason, group)
        self.only = only

    def variant(self, param: torch.Tensor) -> Variant | str:
        return self.only


@dataclass(frozen=True, eq=False)
class MatrixProgram:
    """function: of whole matrices; arguments: those after the first; dtype: of the matrices that it is given."""

    before: Part
    after: Part
    function: WholeMatrices
    arguments: tuple[Any, ...]
    dtype: torch.dtype
    whole: Program  # both, with the function's result as an input, and what it is given as an output


def matrix_program(traced: Traced, param: torch.Tensor, device: str | None = None) -> MatrixProgram | str:
    """What to run for a parameter like this one, or the reason why that cannot be. device: the kind, where not the
    parameter's."""
    device = device or param.device.type
    if traced.elementwise or traced.rule.shared or traced.rule.lists or traced.rule.every:
        return traced.reason or f"{traced.rule.name} is elementwise"
    crossing = traced.made.get((Crossing, device))
    if crossing is None:
        crossing = traced.made[Crossing, device] = Crossing(traced, device)
    variant = crossing.traced.variant(param)
    key = (MatrixProgram, variant, device)
    if key not in traced.made:
        traced.made[key] = variant if isinstance(variant, str) else crossing.cut(variant)
    return traced.made[key]  # type: ignore[no-any-return]


class Crossing:
    """A rule whose function of whole matrices gives back a state of its own, and whose argument is the new value of that."""

    def __init__(self, traced: Traced, device: str) -> None:
        self.rule, self.reason, self.device = traced.rule, traced.reason, torch.device(device)
        self.group = traced.options
        self.found: tuple[WholeMatrices, tuple[Any, ...]] | None = None
        known = {*traced.state_names, *traced.scalar_names}
        present = (*(name for name in self.rule.states if name in known), MATRIX)
        made = replace(self.rule, function=self._crossed, states=(*self.rule.states, MATRIX))
        self.traced = Traced(made, present, None, traced.reason, self.group)

    def _crossed(self, param: Any, grad: Any, *states: Any, **options: Any) -> tuple[Any, ...]:
        *own, matrix = states
        tracer = param.tracer
        tracer.device, tracer.given_back = self.device, matrix
        returned = self.rule(param, grad, *own, **options)
        if tracer.taken is None:
            raise TraceError(f"{self.reason}, and calls no function of whole matrices")
        function, value, arguments = tracer.taken
        self.found = (function, arguments)
        values = named(self.rule, returned, self.rule.states, object)
        return (*values.values(), value)

    def cut(self, variant: Variant) -> MatrixProgram | str:
        if variant.fed or variant.order >> OUTER:
            return f"{self.rule.name} reduces into a 0-dim state, or over all but the first dimensions"
        if variant.measures:
            return f"{self.rule.name} sums over all parameters beside a function of whole matrices"
        program = variant.program
        assert self.found is not None
        second = _after(program)
        scalars = {*program.scalar_outputs}
        first = {name for name in program.tensor_outputs if name not in second}
        value = program.outputs[MATRIX]
        dtype = HALVES.get(value.op, torch.float32)
        return MatrixProgram(
            self._part(variant, {name: program.outputs[name] for name in first}, dtype, frozenset()),
            self._part(variant, {name: program.outputs[name] for name in second}, dtype, frozenset(scalars)),
            *self.found,
            dtype,
            _told(program, self.found[0].__name__, first),
        )

    def _part(self, variant: Variant, outputs: dict[str, Node], dtype: torch.dtype, scalars: frozenset[str]) -> Part:
        """The program of some outputs. scalars: the 0-dim states that it writes; it leaves others as they are."""
        program = variant.program
        used = {one for node in outputs.values() for one in sources(node)}
        kept = {"param", "grad", MATRIX, *outputs, *scalars}
        more = {one for name in scalars for one in sources(program.outputs[name])}
        inputs = tuple(node for node in program.inputs if node in used or node in more or node.name in kept)
        names = [node.name for node in inputs]
        numbers = tuple(name for name in variant.scalar_names if name in names)
        known = {node.name: node for node in inputs}
        outputs = {name: outputs[name] for name in program.outputs if name in outputs}
        outputs |= {name: program.outputs[name] if name in scalars else known[name] for name in numbers}
        states = tuple(name for name in (*self.rule.states, MATRIX) if name in names)
        read = {name.split("[")[0] for name in names}
        initial = {
            name: start_of(self.rule, name, start, self.group) for name, start in self.rule.initial.items() if name in states
        }
        rule = replace(
            self.rule,
            states=states,
            options=tuple(name for name in self.rule.options if name in read),
            scalars=frozenset(numbers),
            optional={},
            initial={**initial, MATRIX: lambda param: _matrix(param, dtype)},
            branches=self.rule.branches & read,
            static=self.rule.static & read,
            added=self.rule.added & {*states},
        )
        sizes = {name: size for name, size in program.sizes.items() if name in names}
        made = Variant(rule, Program(self.rule.name, inputs, outputs, sizes=sizes), numbers, variant.order)
        made.scalars = _counted(program, made)
        return Part(rule, states, self.reason, self.group, made)


def start_of(rule: Rule, name: str, start: Initial, group: Mapping[str, Any]) -> Initial:
    """What a state of a part starts from: a part has not all of the options of the rule, which a function may read."""
    maker = rule.maker(name)
    return start if maker is None else partial(maker, group=group)


def _counted(program: Program, part: Variant) -> ScalarPart:
    """The scalar part of a part on the host, with what becomes of the 0-dim states of which it reads what they were: written by
    both parts, they are at the next step what each expects, and no rows are made anew."""
    fresh = {name: program.outputs[name] for name in part.scalar_names if not depends_on(program.outputs[name], NORM)}
    used = {*part.program.inputs}.union(*(sources(node) for node in fresh.values()))
    inputs = tuple(node for node in program.inputs if node in used)
    made = Program(program.rule, inputs, {**part.program.outputs, **fresh}, sizes=part.program.sizes)
    return ScalarPart(made, part.scalar_names)


def _matrix(param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(param, dtype=dtype, requires_grad=False)


def _told(program: Program, function: str, first: set[str]) -> Program:
    """Both programs in their order, for people: what the function made of the matrix is an input by that name."""
    made: dict[Node, Node] = {}

    def again(node: Node) -> Node:
        if node not in made:
            name = f"{function}({MATRIX})" if node.name == MATRIX else node.name
            args = tuple(again(arg) if isinstance(arg, Node) else arg for arg in node.args)
            made[node] = Node(node.op, args, node.scalar, name, node.line, node.axes)
        return made[node]

    order = sorted(program.outputs, key=lambda name: (name not in first, name == MATRIX, name == "param"))
    outputs = {name: again(program.outputs[name]) for name in order}
    home = Node("input", (), False, MATRIX)
    return Program(program.rule, (*map(again, program.inputs), home), outputs, sizes=program.sizes)


def _after(program: Program) -> set[str]:
    """The tensors that are written after the function: those that follow from its result, and what those read as it was."""
    own = {name: node for name, node in program.tensor_outputs.items() if name != MATRIX}
    found = {name for name, node in own.items() if depends_on(node, MATRIX)} | {"param"} & {*own}
    while True:
        read = {one.name for name in found for one in sources(own[name]) if one.op == "input"}
        more = {name for name in own if name in read} - found
        if not more:
            return found
        found |= more
