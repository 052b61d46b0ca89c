"""The key of random bits (rules/random.py), operation by operation, for sources of kernels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from compiledopt.errors import CompileError
from compiledopt.rules.composed import RANDOM
from compiledopt.rules.program import Node, Program
from compiledopt.rules.random import key

SIGNS = {"xor": "^", "and_": "&", "rshift": ">>", "mul": "*"}
INT32 = "int32"


def arguments() -> list[str]:
    return [f"v_{name}" for name in inspect.signature(key).parameters]


def operations() -> Iterator[tuple[str, str, list[str]]]:
    """(name, what it is, of which values): a sign of two, INT32 of one; last ("", "", the two words). The names are words of no
    language. Integers wrap around.

    Inductor would write what is used twice out twice, and take 6 s for this chain, in which every value is.
    """
    from torch.fx import symbolic_trace

    for node in symbolic_trace(key).graph.nodes:
        values = [str(arg) if isinstance(arg, int) else f"v_{arg}" for arg in node.args]
        if node.op == "call_method":
            yield f"v_{node}", INT32, values[:1]
        elif node.op == "call_function":
            yield f"v_{node}", SIGNS[node.target.__name__], values
        elif node.op == "output":
            yield "", "", [f"v_{word}" for word in node.args[0]]


def seed_and_step(program: Program) -> tuple[int | float, int | float]:
    """Of a program that is random: an int is the index of a column, a float a number. Raises: CompileError."""
    draws = [node for node in program.elementwise_part if node.op == RANDOM]
    if len(draws) > 1:
        raise CompileError(f"{program.rule} draws random numbers of several seeds or steps")
    seed, step = (program.columns.index(arg) if isinstance(arg, Node) else float(arg) for arg in draws[0].args)
    return seed, step
