"""The functions of random bits (rules/random.py), operation by operation, for sources of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from compiledopt.errors import CompileError
from compiledopt.rules.composed import RANDOM
from compiledopt.rules.program import Node, Program

SIGNS = {"xor": "^", "and_": "&", "rshift": ">>", "mul": "*"}
INT32 = "int32"


def operations(function: Callable[..., Any]) -> Iterator[tuple[str, str, list[str]]]:
    """(name, what it is, of which values): a sign of two, INT32 of one; last ("", "", the results). Each is named v_ and
    its name, which so is a word of no language. Integers wrap around."""
    from torch.fx import symbolic_trace

    for node in symbolic_trace(function).graph.nodes:
        values = [str(arg) if isinstance(arg, int) else f"v_{arg}" for arg in node.args]
        if node.op == "call_method":
            yield f"v_{node}", INT32, values[:1]
        elif node.op == "call_function":
            yield f"v_{node}", SIGNS[node.target.__name__], values
        elif node.op == "output":
            found = node.args[0] if isinstance(node.args[0], tuple) else node.args
            yield "", "", [f"v_{value}" for value in found]


def seed_and_step(program: Program) -> tuple[int | float, int | float]:
    """Of a program that is random: an int is the index of a column, a float a number. Raises: CompileError."""
    draws = [node for node in program.elementwise_part if node.op == RANDOM]
    if len(draws) > 1:
        raise CompileError(f"{program.rule} draws random numbers of several seeds or steps")
    seed, step = (program.columns.index(arg) if isinstance(arg, Node) else float(arg) for arg in draws[0].args)
    return seed, step
