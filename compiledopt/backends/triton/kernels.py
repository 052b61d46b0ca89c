"""Inductor's Triton kernel for one tensor → one kernel over a whole model.

The kernel's body stays as Inductor wrote it. What changes is where its arguments come from: a table of pointers, a table
of lengths, the scalars, and for each block of threads the tensor and the part of it that it works on. The scalars are arguments
of the kernel where tensors share one row of them, or a few, else a table.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import textwrap
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from compiledopt.backends import block_parts, cache
from compiledopt.backends.inductor import compute_dtype
from compiledopt.backends.triton import blocks, bodies, files, random
from compiledopt.errors import CompileError
from compiledopt.files import source_of
from compiledopt.rules.options import NORM
from compiledopt.rules.program import Node, Program, depends_on

ALIGNMENT = 16  # bytes of a pointer, elements of a length: what vector loads and stores need
PART = 256  # elements: two for each of 128 threads
FEW = 4  # rows of scalars that are arguments: of the parameters that are decayed, of the others, and of both in a second rate
NAMES = bodies.NAMES
# The names that a signature for triton.compile uses.
SHORT = {torch.float32: "fp32", torch.float64: "fp64"}

# Whether vector loads can serve a block is decided in the block: where all its pointers are aligned, and it is whole or the
# tensor's length is a multiple of ALIGNMENT. The length that is told then is cut down to such a multiple, which leaves nothing
# of the block out. The casts to pointers stand in the branches: what is told of a value is told wherever it is used. Other
# blocks go in parts: with an address for each element, AdamW's kernel took 111 registers on sm_90, in parts 62.
HEAD = """\
import triton
import triton.language as tl
{imports}
{key}
@triton.jit
def update({pointers}{columns}{place}xoffset, {row}xnumel, XBLOCK: tl.constexpr{flat}):
{body}

@triton.jit(do_not_specialize={names})
def whole_model(pointers, lengths, rows, blocks, table, {arguments}ROWS: tl.constexpr, XBLOCK: tl.constexpr):
    tensor = tl.load(blocks + 2 * tl.program_id(0)).to(tl.int64)
    xoffset = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * XBLOCK
{extents}
{addresses}
{scalars}
    bits = {bits}
    if (bits % {alignment} == 0) & ({whole}):
        update({aligned}{columns}{place}xoffset, {row}xnumel // {alignment} * {alignment}, XBLOCK{is_flat})
    else:
        for part in range(0, XBLOCK, {part}):
            update({general}{columns}{place}xoffset + part, {row}xnumel, {part}{is_not_flat})
"""

WHOLE = f"(xnumel % {ALIGNMENT} == 0) | (xoffset + XBLOCK <= xnumel)"

# Over rows instead: element i of operand k is where entry (i, k) of the table of pointers says.
ROWS_HEAD = """\
import triton
import triton.language as tl
{imports}

@triton.jit(do_not_specialize=["pointers", "xnumel"])
def whole_model(pointers, xnumel, XBLOCK: tl.constexpr):
    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
    xmask = xindex < xnumel
    x0 = xindex * 0
"""


@dataclass(frozen=True)
class TritonKernel:
    """source: the file; operands: pointers per tensor; columns: scalars per row; scalar: the dtype of the table; block: how
    many elements share a scale, 0 where there is none; extents: numbers per tensor in the table of lengths."""

    source: str
    operands: int
    columns: int
    scalar: torch.dtype
    block: int = 0
    extents: int = 1
    launches = 1

    @cached_property
    def function(self) -> Any:
        """The function under triton.jit, or under the interpreter where TRITON_INTERPRET=1."""
        files.settle()
        name = cache.key("triton file", self.source)
        path = cache.scratch(f"k{name}.py")
        path.write_text(self.source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"compiledopt_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.whole_model


# Of which kernels in the cache are made.
OWN = ("kernels", "blocks", "bodies", "random")
TEXT = block_parts.TEXT + "".join(source_of(f"{__package__}.{name}") for name in OWN)
# None is ever let go of: Triton 3.8 and later unload what nobody holds, and a captured graph may launch it still.
_kernels: dict[tuple[str, tuple[torch.dtype, ...], bool], TritonKernel | CompileError] = {}
_lock = threading.RLock()


def missing() -> str | None:
    """Why no Triton kernel can be had, or None."""
    return None if importlib.util.find_spec("triton") is not None else "triton is not installed"


def version() -> str:
    """Of triton: what another one makes of a kernel is another kernel."""
    return str(importlib.import_module("triton").__version__)


def kernel(program: Program, dtypes: Sequence[torch.dtype], rows: bool = False) -> TritonKernel:
    """The kernel of a program for these dtypes: from memory, from disk, or lowered now. Raises: CompileError."""
    identity = (program.kernel_text, tuple(dtypes), rows)
    with _lock:
        known = _kernels.get(identity)
        if known is None:
            try:
                known = _find(program, dtypes, rows)
            except CompileError as error:
                known = error
            _kernels[identity] = known
        if isinstance(known, CompileError):
            raise known
        return known


def rows_kernel(program: Program, dtypes: Sequence[torch.dtype]) -> TritonKernel:
    """The kernel of a `scalar_program` over rows, whose operands are scattered over the device. Raises: CompileError."""
    return kernel(program, dtypes, rows=True)


def usual_dtypes(scalars: Program, states: Container[str]) -> list[torch.dtype]:
    """The dtypes of a `scalar_program` where states and columns are float32 and the numbers of a group are mirrored."""
    single = [node.name in states or node.name.startswith("column") for node in scalars.tensors]
    return [torch.float32 if is_single else torch.float64 for is_single in single]


def forget() -> None:
    """Drop every kernel from memory, failures included."""
    with _lock:
        _kernels.clear()


def _find(program: Program, dtypes: Sequence[torch.dtype], rows: bool) -> TritonKernel:
    if (reason := missing()) is not None:
        raise CompileError(reason)
    scalar = compute_dtype(dtypes)
    of = "triton", program.kernel_text, [str(dtype) for dtype in dtypes], rows, TEXT
    source = bodies.kept_source(of, lambda: (rows_source if rows else whole_model_source)(program, dtypes))
    block = next(iter(program.blocks), 0)
    return TritonKernel(source, len(program.tensors), len(program.columns), scalar, block, extents_of(program))


def extents_of(program: Program) -> int:
    """How many numbers of a tensor its kernel reads: its length; where there are blocks or random bits, as `extents` of the
    launcher has them."""
    return 4 if program.blocks or program.is_random else 1


def measured_columns(program: Program) -> dict[int, Node]:
    """The columns that depend on the norm."""
    return {column: node for column, node in enumerate(program.columns) if depends_on(node, NORM)}


def rows_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The Python file with the kernel over rows. Raises: CompileError."""
    function, arguments = bodies.lowered(program, dtypes)
    lines = []
    for name, (kind, index) in zip([argument.arg for argument in function.args.args], arguments, strict=False):
        if kind == "tensor":
            address = f"tl.load(pointers + xindex * {len(program.tensors)} + {index}, xmask, other=0)"
            lines.append(f"{name} = {address}.to(tl.pointer_type(tl.{NAMES[dtypes[index]]}))")
    kept = [s for s in function.body if not any(bodies.assigns(s, name) for name in ("xoffset", "xindex", "xmask", "x0"))]
    body = "\n".join([*lines, *(ast.unparse(statement) for statement in kept)])
    return ROWS_HEAD.format(imports=imports_of(body)) + textwrap.indent(body, "    ") + "\n"


def whole_model_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The Python file with the kernel over a whole model. Raises: CompileError."""
    if program.blocks:
        return framed(program, dtypes, list(range(len(program.tensors))), blocks.update_source(program, dtypes))
    function, arguments = bodies.lowered(program, dtypes)
    names, body = _renamed(function, arguments, f"tl.{NAMES[compute_dtype(dtypes)]}")
    return framed(program, dtypes, sorted(set(names.values())), body)


def framed(program: Program, dtypes: Sequence[torch.dtype], used: Sequence[int], body: str) -> str:
    """The file around the body of `update`. used: the tensors that it reads or writes."""
    count, scalar, block = len(program.columns), SHORT[compute_dtype(dtypes)], next(iter(program.blocks), 0)
    measured = measured_columns(program)  # on the device, whatever the rows
    types = {index: f"tl.pointer_type(tl.{bodies.KEPT[dtypes[index]]})" for index in used}
    addresses = [f"    a{i} = tl.load(pointers + tensor * {len(program.tensors)} + {i})" for i in used]
    given = _scalars(count, measured, scalar) if count else []
    if program.is_random:
        wide = f"tl.{NAMES[compute_dtype(dtypes)]}"
        given += ["    " + line for line in random.place(program, "s{}".format, wide, "lengths + tensor * 4 + 2", "[1]")]
    width = extents_of(program)
    extents = ["    xnumel = tl.load(lengths + tensor" + (f" * {width})" if width > 1 else ")")]
    extents += [f"    row = tl.load(lengths + tensor * {width} + 1)"] if block else []
    return HEAD.format(
        imports=imports_of(body),
        key=random.key_source() if program.is_random else "",
        pointers="".join(f"p{i}, " for i in used),
        columns="".join(f"s{i}, " for i in range(count)),
        place="place0, place1, place2, " if program.is_random else "",
        row="row, " if block else "",
        flat=", FLAT: tl.constexpr" if block else "",
        is_flat=", True" if block else "",
        is_not_flat=", False" if block else "",
        body=textwrap.indent(body, "    "),
        names=["pointers", "lengths", "rows", "blocks", "table", *arguments_of(count)],
        arguments="".join(f'{name}: "{scalar}", ' for name in arguments_of(count)),
        extents="\n".join(extents),
        addresses="\n".join(addresses),
        scalars="\n".join(given),
        bits=" | ".join(f"a{i}" for i in used),
        whole=f"(row == xnumel) & (xnumel % {block} == 0)" if block else WHOLE,
        alignment=ALIGNMENT,
        part=max(PART, block),
        aligned="".join(f"tl.multiple_of(a{i}.to({types[i]}), {ALIGNMENT}), " for i in used),
        general="".join(f"a{i}.to({types[i]}), " for i in used),
    )


def arguments_of(columns: int) -> list[str]:
    """The scalars that are arguments of the kernel, row after row."""
    return [f"c{row}_{column}" for row in range(FEW) for column in range(columns)]


def _scalars(count: int, measured: Container[int], scalar: str) -> list[str]:
    """Lines that give s0, s1, ... to a tensor: of the only row; of that of the few which is its own, chosen from the arguments;
    or of a table."""
    one = [f"        s{i} = " + (f"tl.load(table + {i})" if i in measured else f"c0_{i}") for i in range(count)]
    few = ["        which = tl.load(rows + tensor)"]
    for i in range(count):
        chosen = _typed(f"c{FEW - 1}_{i}", scalar)
        for row in reversed(range(FEW - 1)):
            chosen = f"tl.where(which == {row}, {_typed(f'c{row}_{i}', scalar)}, {chosen})"
        few.append(f"        s{i} = " + (f"tl.load(table + which * {count} + {i})" if i in measured else chosen))
    many = [f"        scalars = table + tl.load(rows + tensor) * {count}"]
    many += [f"        s{i} = tl.load(scalars + {i})" for i in range(count)]
    return ["    if ROWS == 1:", *one, "    elif ROWS > 1:", *few, "    else:", *many]


def _typed(name: str, scalar: str) -> str:
    """An argument, which may be a number of Python's under the interpreter."""
    return f"tl.full([], {name}, tl.{'float64' if scalar == 'fp64' else 'float32'})"


def _renamed(function: ast.FunctionDef, arguments: Sequence[tuple[str, int]], scalar: str) -> tuple[dict[str, int], str]:
    """(which tensor each pointer of Inductor's is, its body in terms of our pointers p0, p1, ... and numbers s0, s1, ...)."""
    kinds = dict(zip([argument.arg for argument in function.args.args], arguments, strict=False))

    class Ours(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            of = ast.unparse(node.args[0]).split(" + ")[0] if ast.unparse(node.func) == "tl.load" else ""
            kind, index = kinds.get(of, ("", 0))
            if kind == "column":  # a number may be one of Python's, under the interpreter
                return ast.parse(f"tl.full([1], s{index}, {scalar})", mode="eval").body
            return ast.Name(f"place{index}") if kind == "place" else self.generic_visit(node)

        def visit_Assign(self, node: ast.Assign) -> ast.AST:
            if ast.unparse(node.value) == "x0":  # as a value: int64 here, and int32 for Inductor
                node.value = ast.parse("x0.to(tl.int32)", mode="eval").body
            return self.generic_visit(node)

        def visit_Name(self, node: ast.Name) -> ast.AST:
            kind, index = kinds.get(node.id, ("", 0))
            return ast.Name(f"p{index}") if kind == "tensor" else node

    body = "\n".join(ast.unparse(Ours().visit(statement)) for statement in function.body[1:])
    return {name: index for name, (kind, index) in kinds.items() if kind == "tensor"}, body


def imports_of(body: str) -> str:
    """The helpers of Inductor that a body calls."""
    lines = []
    if "triton_helpers." in body:
        lines.append("from torch._inductor.runtime import triton_helpers")
    if "libdevice." in body or "tl_math." in body:
        lines.append("from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math")
        lines.append('if __import__("os").environ.get("TRITON_INTERPRET") == "1":')
        lines.append("    from compiledopt.backends.triton.interpreted import libdevice")
    return "\n".join(lines)


def compile_options(**wanted: int | None) -> dict[str, Any]:
    """What Triton is asked for beside its defaults: what is wanted, and fused multiply-adds, as Inductor asks for them, since
    the default is to change (Triton 3.10, says 3.9); who sets TRITON_DEFAULT_FP_FUSION decides."""
    fused = {} if "TRITON_DEFAULT_FP_FUSION" in os.environ else {"enable_fp_fusion": True}
    return {**fused, **{name: value for name, value in wanted.items() if value is not None}}


# ---- for a GPU that is not here ----


@dataclass(frozen=True)
class Built:
    """What triton and ptxas make of a kernel for an architecture."""

    ptx: str
    registers: int
    spills: int  # bytes stored and loaded because registers ran out
    warps: int
    shared: int  # bytes of shared memory, of a block
    block: int  # elements of a block

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.ptx))

    @property
    def vector_loads(self) -> int:
        return self.count(r"ld\.global[.\w]*\.v[248]\.")

    @property
    def vector_stores(self) -> int:
        return self.count(r"st\.global[.\w]*\.v[248]\.")


def build_for(kernel: TritonKernel, arch: int, block: int = 1024, warps: int = 4, *given: Any, **named: Any) -> Built:
    """Compile a kernel, over a model or over rows, for an NVIDIA architecture (80, 90, ...), on any machine.

    given, named: more for `compiled_for`. Raises: CompileError.
    """
    made = compiled_for(kernel, ("cuda", arch, 32), block, warps, *given, **named)
    return Built(made["ptx"], *_assembled(made["ptx"], arch), warps, made["shared"], block)


def compiled_for(
    kernel: TritonKernel,
    target: tuple[str, int | str, int],
    block: int = 1024,
    warps: int = 4,
    rows: int = 1,
    kinds: int = 0,
    most: int | None = None,
    split: int = 1,
) -> dict[str, Any]:
    """What Triton makes of a kernel at each stage, and "shared", the bytes of shared memory of a block. target: (backend,
    architecture, threads of a warp), ("hip", "gfx942", 64). rows: of scalars that are arguments, 1 or FEW; 0 where they are in
    a table. kinds: of a stage of a rule that reduces, which kinds of blocks and tiles there are, as bits. most, split: as of a
    Form.

    Raises: CompileError.
    """
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        given = kernel.function.arg_names
        types = {"pointers": "*i64", "lengths": "*i64", "rows": "*i64", "blocks": "*i32", "table": f"*{SHORT[kernel.scalar]}"}
        types |= dict.fromkeys(("XBLOCK", "ROWS", "KINDS", "SPLIT", "OPERANDS"), "constexpr")
        types |= dict.fromkeys(arguments_of(kernel.columns), SHORT[kernel.scalar])
        types |= {"partial": "*fp64", "counter": "*i32", "place": "*fp64", "bounds": "*fp64", "first": "i32", "count": "i32"}
        types |= {"xnumel": "i32", "layout": "*i64"}
        known = {"XBLOCK": block, "ROWS": rows, "KINDS": kinds, "SPLIT": split, "OPERANDS": kernel.operands}
        constants = {name: value for name, value in known.items() if name in given}
        source = ASTSource(fn=kernel.function, signature={name: types[name] for name in given}, constexprs=constants)
        made = compile(source, target=GPUTarget(*target), options=compile_options(num_warps=warps, maxnreg=most))
        return {**made.asm, "shared": made.metadata.shared}
    except Exception as error:
        name = f"sm_{target[1]}" if target[0] == "cuda" else target[1]
        raise CompileError(f"triton {version()} could not compile for {name}: {error!r}") from error


def _assembled(ptx: str, arch: int) -> tuple[int, int]:
    """(registers, bytes of spills), by the ptxas that triton takes for an architecture: each knows its own versions of PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    file = cache.scratch("kernel.ptx")
    file.write_text(ptx, encoding="utf-8")
    target = re.search(r"\.target (\w+)", ptx)
    name = target.group(1) if target else f"sm_{arch}"
    command = [str(get_ptxas(arch).path), "-v", f"--gpu-name={name}", str(file), "-o", os.devnull]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"ptxas could not be run: {error}") from error
    found = re.search(r"Used (\d+) registers", done.stderr)
    if done.returncode != 0 or found is None:
        raise CompileError(f"ptxas failed on what triton {version()} made: {done.stderr[-500:]}")
    return int(found.group(1)), sum(int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr))
