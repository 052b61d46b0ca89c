"""Random bits in a kernel: the key of each tensor, made once for each block of threads, and where its elements begin."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from compiledopt.backends import keys
from compiledopt.rules.program import Program
from compiledopt.rules.random import key


def key_source() -> str:
    """A function that makes a key of int64 values. Integers wrap around."""
    names = ", ".join(f"v_{name}" for name in signature(key).parameters)
    lines = ["", "@triton.jit", f"def key_of({names}):"]
    for name, sign, values in keys.operations(key):
        if sign == keys.INT32:
            lines.append(f"    {name} = {values[0]}.to(tl.int32)")
        elif sign:
            lines.append(f"    {name} = {f' {sign} '.join(values)}")
        else:
            lines.append(f"    return {', '.join(values)}")
    return "\n".join([*lines, ""])


def place(program: Program, column: Callable[[int], str], scalar: str, where: str, shape: str) -> list[str]:
    """Lines after which place0 is where a tensor begins in its parameter, and place1 and place2 are its key. column: what has
    the value of one, which may be a number of Python's under the interpreter; scalar: the dtype to hold it in; where: the
    address of the parameter's number, which that of the tensor's first element follows; shape: of one element of a tile."""
    values = [column(n) if isinstance(n, int) else repr(n) for n in keys.seed_and_step(program)]
    seed, step = (f"tl.full({shape}, {value}, {scalar}).to(tl.int64)" for value in values)
    return [f"place1, place2 = key_of({seed}, {step}, tl.load({where}))", f"place0 = tl.load({where} + 1).to(tl.int32)"]
