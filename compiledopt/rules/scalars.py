"""The scalar part of a program as a Python function of floats."""

from __future__ import annotations

from collections.abc import Callable
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
