"""What runs on an NVIDIA GPU, told on any machine: the whole-model kernel of an algorithm, and what ptxas makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from compiledopt import around
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.built import Made, built_for, check_for
from compiledopt.backends.triton.capturable import launches_of
from compiledopt.rules.program import ELEMENTS, scalar_program
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
    products: list[str] = field(default_factory=list)  # which of the launches are calls of torch, on which shapes

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
            *self.products,
            *(["one of the launches reads every gradient once more, for their norm"] if self.clipped else []),
            "made by Inductor, triton and ptxas on this machine; nothing was run on a GPU",
            *[f"  {line}" for line in self.formula],
        ]
        return "\n".join([*lines, *([self.source] if self.source else []), *([self.ptx] if self.ptx else [])])


def explain_gpu(
    name: str, rule: Rule, group: Mapping[str, Any], arch: int, dtype: torch.dtype, *, source: bool = False, ptx: bool = False
) -> GpuExplanation:
    """Compile an algorithm's kernel for an architecture (80, 90, ...). Raises: CompileError with the reason."""
    known = traced(around.derived(rule, group, param=torch.empty(EXAMPLE, dtype=dtype, device="meta")), group)
    check_for(known, dtype, EXAMPLE)
    made = built_for(known, arch, dtype, EXAMPLE)
    return _explanation(name, known, group, arch, dtype, made, source, ptx)


def _explanation(
    name: str, known: Traced, group: Mapping[str, Any], arch: int, dtype: torch.dtype, made: Made, source: bool, ptx: bool
) -> GpuExplanation:
    from compiledopt.rules.formula import formula

    sources, built = made.sources, made.built
    text, first = "\n".join(sources), built if len(sources) > 1 else built[:1]
    loads, stores = (len(re.findall(rf"tl\.{what}\(p\d+ \+ (x0|i{ELEMENTS})", text)) for what in ("load", "store"))
    there = group.get("capturable") or known.measured(torch.empty(EXAMPLE, dtype=dtype, device="meta")).measures
    rows = [scalar_program(program) for program in made.programs if program.scalars and there]
    for scalars in rows:
        text += "\n" + triton.rows_kernel(scalars, triton.usual_dtypes(scalars, known.rule.scalars)).source
    return GpuExplanation(
        optimizer=name,
        arch=f"sm_{arch}",
        dtype=str(dtype).removeprefix("torch."),
        kernels=len(sources),
        launches_per_step=len(sources) + len(rows) + known.is_clipped + made.calls + launches_of(known, group),
        loads_per_element=loads,
        stores_per_element=stores,
        bytes_per_element=made.moved + known.is_clipped * dtype.itemsize,
        vector_loads=sum(one.vector_loads for one in first),
        vector_stores=sum(one.vector_stores for one in first),
        registers=max(one.registers for one in built),
        spills=sum(one.spills for one in built),
        formula=formula(made.program, around.letters()).text,
        source=text if source else "",
        ptx="\n".join(one.ptx for one in first) if ptx else "",
        clipped=known.is_clipped,
        products=list(made.products),
    )
