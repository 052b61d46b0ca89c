"""What runs on an NVIDIA GPU, told on any machine: the whole-model kernel of an algorithm, and what ptxas makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compiledopt import around
from compiledopt.backends.batch import Choice, Entry, bytes_moved
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.shaped import masks_of
from compiledopt.errors import CompileError
from compiledopt.rules.program import ELEMENTS, Program, scalar_program
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Traced, traced

EXAMPLE = (1024, 1024)  # of which what is told holds: tiles of rules that reduce, states in blocks


@dataclass
class GpuExplanation:
    """`str()` is for people, `json()` for machines."""

    optimizer: str
    arch: str
    dtype: str
    kernels: int
    launches_per_step: int
    loads_per_element: int
    stores_per_element: int
    bytes_per_element: float
    vector_loads: int  # instructions, for blocks that are aligned
    vector_stores: int
    registers: int
    spills: int  # bytes
    formula: list[str]
    measured: bool = False
    source: str = ""
    ptx: str = ""
    clipped: bool = False  # whether one of the launches measures the norm over all gradients

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"{self.optimizer} on {self.arch}: kernels over the whole model: {self.kernels}, launches per step: "
            f"{self.launches_per_step}",
            f"per element of {self.dtype}: {self.loads_per_element} loads, {self.stores_per_element} stores, "
            f"{self.bytes_per_element:g} bytes",
            f"aligned blocks: {self.vector_loads} vector loads, {self.vector_stores} vector stores; "
            f"{self.registers} registers, {self.spills} bytes spilled",
            *(["one of the launches reads every gradient once more, for their norm"] if self.clipped else []),
            "made by Inductor, triton and ptxas on this machine; nothing was run on a GPU",
            *[f"  {line}" for line in self.formula],
        ]
        return "\n".join([*lines, *([self.source] if self.source else []), *([self.ptx] if self.ptx else [])])


def explain_gpu(
    name: str, rule: Rule, group: Mapping[str, Any], arch: int, dtype: torch.dtype, *, source: bool = False, ptx: bool = False
) -> GpuExplanation:
    """Compile an algorithm's kernel for an architecture (80, 90, ...). Raises: CompileError with the reason."""
    example = torch.empty(EXAMPLE, dtype=dtype, device="meta")
    known = traced(around.derived(rule, group, param=example), group)
    if not known.elementwise:
        return _explain_reducing(name, known, group, arch, dtype, source, ptx)
    program = known.program
    kernel = kernel_of(known, (dtype, dtype, *known.dtypes_of(example).values()))
    assert isinstance(kernel, triton.TritonKernel)
    built = [triton.build_for(kernel, arch, one_row=one_row) for one_row in (True, False)]
    return _explanation(name, known, program, group, arch, dtype, [kernel.source], built, source, ptx)


def _explain_reducing(
    name: str, known: Traced, group: Mapping[str, Any], arch: int, dtype: torch.dtype, source: bool, ptx: bool
) -> GpuExplanation:
    """Of a rule that reduces, for matrices."""
    variant = known.variant(torch.empty(2, 3, dtype=dtype, device="meta"))
    if isinstance(variant, str):
        raise CompileError(f"{known.reason}: {variant}")
    kernel = kernel_of(variant, (dtype,) * len(variant.program.tensors))
    assert not isinstance(kernel, triton.TritonKernel)
    masks = masks_of(kernel, [(1, *EXAMPLE)])
    built = [triton.build_for(s, arch, warps=kernel.warps, kinds=mask) for s, mask in zip(kernel.stages, masks, strict=True)]
    sources = [stage.source for stage in kernel.stages]
    return _explanation(name, known, variant.program, group, arch, dtype, sources, built, source, ptx)


def _explanation(
    name: str,
    known: Traced,
    program: Program,
    group: Mapping[str, Any],
    arch: int,
    dtype: torch.dtype,
    sources: Sequence[str],
    built: Sequence[triton.Built],
    source: bool,
    ptx: bool,
) -> GpuExplanation:
    from compiledopt.rules.formula import formula

    text, first = "\n".join(sources), built if len(sources) > 1 else built[:1]
    loads, stores = (len(re.findall(rf"tl\.{what}\(p\d+ \+ (x0|i{ELEMENTS})", text)) for what in ("load", "store"))
    moved = float((loads + stores) * dtype.itemsize)
    if known.elementwise:
        entry = Entry(torch.empty(EXAMPLE, dtype=dtype, device="meta"), {}, 0, known, Choice("compiled", ""))
        moved = sum(bytes_moved(entry), 0.0)
    if group.get("capturable"):
        scalars = scalar_program(program)
        text += "\n" + triton.rows_kernel(scalars, triton.usual_dtypes(scalars, known.rule.scalars)).source
    return GpuExplanation(
        optimizer=name,
        arch=f"sm_{arch}",
        dtype=str(dtype).removeprefix("torch."),
        kernels=len(sources),
        launches_per_step=len(sources) + bool(group.get("capturable")) + known.is_clipped,
        loads_per_element=loads,
        stores_per_element=stores,
        bytes_per_element=moved,
        vector_loads=sum(one.vector_loads for one in first),
        vector_stores=sum(one.vector_stores for one in first),
        registers=max(one.registers for one in built),
        spills=sum(one.spills for one in built),
        formula=formula(program, around.letters()).text,
        source=text if source else "",
        ptx="\n".join(one.ptx for one in first) if ptx else "",
        clipped=known.is_clipped,
    )
