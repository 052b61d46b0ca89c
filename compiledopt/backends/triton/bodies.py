"""Inductor's lines for a program, and those of one pass of a rule that reduces or keeps values in blocks, freed of where their
values come from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import torch

from compiledopt.backends import cache
from compiledopt.errors import CompileError
from compiledopt.files import source_of
from compiledopt.rules.program import Program
from compiledopt.stats import STATS, timed

TEXT = source_of(__name__)  # of which kernels in the cache are made
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
CODES = {torch.int8: "int8", torch.uint8: "uint8", torch.int16: "int16", torch.int32: "int32"}  # of storage/
KEPT = NAMES | CODES  # what tensors hold


def kept_source(of: tuple[Any, ...], make: Callable[[], str]) -> str:
    """What `make` gives, made once. of: all that it is made of. Raises: CompileError."""
    name = cache.key(*of)
    content = cache.load(f"{name}.py")
    if content is not None:
        STATS.disk_hits += 1
        return content.decode()
    source = make()
    cache.store(f"{name}.py", source.encode())
    return source


def lowered(program: Program, dtypes: Sequence[torch.dtype]) -> tuple[ast.FunctionDef, tuple[tuple[str, int], ...]]:
    from compiledopt.backends.inductor import lower_triton

    with timed("seconds_lowering"):
        lowered = lower_triton(program, dtypes)
    STATS.kernels_lowered += 1
    function = next(node for node in ast.parse(lowered.body).body if isinstance(node, ast.FunctionDef))
    names = [argument.arg for argument in function.args.args]
    given = [name for name, (kind, _) in zip(names, lowered.arguments, strict=False) if kind == "length"]
    if given != ["xnumel"] or not assigns(function.body[0], "xoffset"):
        raise unknown_form()
    return function, lowered.arguments


def unknown_form() -> CompileError:
    """What another torch may have made."""
    return CompileError(f"the Triton kernel of torch {torch.__version__}'s Inductor has a form that is not known here")


def assigns(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name


class Body(ast.NodeTransformer):
    """Inductor's arithmetic with our names: v for values that are read, w for those that are written, n for numbers.

    dims: of the tiles that are computed."""

    def __init__(
        self, kinds: dict[str, tuple[str, int]], own: str, read: str, written: str, number: str, dims: int = 3
    ) -> None:
        self.kinds, self.own, self.names = kinds, own, {"tensor": read, "column": number, "place": "place"}
        self.one = f"[{', '.join(['1'] * dims)}]"
        self.result = written
        self.read: set[int] = set()
        self.written: set[int] = set()

    def line(self, statement: ast.stmt) -> str | None:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in ("xoffset", "xindex", "xmask", "x0"):
            return None
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            if ast.unparse(statement.value.func) != "tl.store":
                raise unknown_form()
            index = self.kinds[_pointer_of(statement.value)][1]
            self.written.add(index)
            return f"{self.result}{index} = {ast.unparse(self.visit(statement.value.args[1]))}"
        if isinstance(statement, ast.Assign) and ast.unparse(statement.value) == "x0":
            return f"{ast.unparse(self.visit(statement.targets[0]))} = x0.to(tl.int32)"  # int64 here, int32 for Inductor
        return ast.unparse(self.visit(statement))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func)
        if name == "tl.load":
            kind, index = self.kinds[_pointer_of(node)]
            if kind == "tensor":
                self.read.add(index)
            return ast.Name(f"{self.names[kind]}{index}")
        if name == "tl.broadcast_to":
            return self.visit(node.args[0])  # type: ignore[no-any-return]
        if name == "tl.full":
            return ast.parse(f"tl.full({self.one}, {ast.unparse(node.args[1])}, {ast.unparse(node.args[2])})", mode="eval").body
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(f"{self.own}{node.id}") if node.id.startswith("tmp") else node


def _pointer_of(node: ast.Call) -> str:
    return ast.unparse(node.args[0]).split(" + ")[0]
