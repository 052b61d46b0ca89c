"""The scalar part of a program as a Python function of floats."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from compiledopt.rules.ops import OPS
from compiledopt.rules.program import Node, Program


def literal(value: float) -> str:
    """A number as Python source."""
    return repr(value) if value == value and abs(value) != float("inf") else f"float({str(value)!r})"


def scalar_source(program: Program) -> str:
    """A function of the 0-dim inputs, in the order of `program.scalars`, to ([columns], [new 0-dim states])."""
    names: dict[Node, str] = {node: f"a{i}" for i, node in enumerate(program.scalars)}
    lines = [f"def scalars({', '.join(names.values())}):  # {', '.join(node.name for node in program.scalars)}"]
    for node in program.scalar_part:
        args = [names[arg] if isinstance(arg, Node) else literal(arg) for arg in node.args]
        infix = OPS[node.op].infix
        value = f"{args[0]} {infix} {args[1]}" if infix else f"{node.op}({', '.join(args)})"
        names[node] = f"s{len(lines)}"
        lines.append(f"    {names[node]} = {value}")
    columns = ", ".join(names[node] for node in program.columns)
    states = ", ".join(names[node] for node in program.scalar_outputs.values())
    return "\n".join([*lines, f"    return [{columns}], [{states}]"])


def scalar_function(program: Program) -> Callable[..., tuple[list[float], list[float]]]:
    namespace: dict[str, Any] = {name: op.number for name, op in OPS.items()}
    exec(compile(scalar_source(program), f"<scalar part of {program.rule}>", "exec"), namespace)
    return namespace["scalars"]  # type: ignore[no-any-return]


# (number of inputs, constants, (operation, and the places of its operands), places of the columns, places of the 0-dim states)
# of values: the inputs, the constants, then one for each operation.
Lines = tuple[int, tuple[float, ...], tuple[tuple[str, int, int, int], ...], tuple[int, ...], tuple[int, ...]]


def scalar_lines(program: Program, known: Collection[str]) -> Lines | None:
    """The scalar part for who knows these operations on float64; None where it has others."""
    places: dict[Any, int] = {node: index for index, node in enumerate(program.scalars)}
    inputs = len(places)
    numbers = [arg for node in program.scalar_part for arg in node.args if not isinstance(arg, Node)]
    constants = {_key(number): number for number in numbers}
    places |= {key: inputs + index for index, key in enumerate(constants)}
    lines: list[tuple[str, int, int, int]] = []
    for node in program.scalar_part:
        if node.op not in known:
            return None
        first, second, third = ([places[_key(arg)] for arg in node.args] * 3)[:3]
        lines.append((node.op, first, second, third))
        places[node] = inputs + len(constants) + len(lines) - 1
    columns, states = (tuple(map(places.__getitem__, of)) for of in (program.columns, program.scalar_outputs.values()))
    return inputs, tuple(map(float, constants.values())), tuple(lines), columns, states


def _key(arg: Node | float) -> Any:
    """0.0 and -0.0 are two constants, and NaN is one."""
    return arg if isinstance(arg, Node) else (type(arg), repr(arg))
