"""What runs on an NVIDIA GPU, told on any machine: the whole-model kernel of an algorithm, and what ptxas makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compiledopt import around
from compiledopt.backends.triton import kernels as triton
from compiledopt.rules.program import scalar_program
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import traced


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
    bytes_per_element: int
    vector_loads: int  # instructions, for blocks that are aligned
    vector_stores: int
    registers: int
    spills: int  # bytes
    formula: list[str]
    measured: bool = False
    source: str = ""
    ptx: str = ""
    clipped: bool = False  # whether the norm over all gradients is measured before, by torch's _foreach_norm

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"{self.optimizer} on {self.arch}: one kernel over the whole model, launches per step: {self.launches_per_step}",
            f"per element of {self.dtype}: {self.loads_per_element} loads, {self.stores_per_element} stores, "
            f"{self.bytes_per_element} bytes",
            f"aligned blocks: {self.vector_loads} vector loads, {self.vector_stores} vector stores; "
            f"{self.registers} registers, {self.spills} bytes spilled",
            *(["before it, launches of torch's own read every gradient once more, for their norm"] if self.clipped else []),
            "made by Inductor, triton and ptxas on this machine; nothing was run on a GPU",
            *[f"  {line}" for line in self.formula],
        ]
        return "\n".join([*lines, *([self.source] if self.source else []), *([self.ptx] if self.ptx else [])])


def explain_gpu(
    name: str, rule: Rule, group: Mapping[str, Any], arch: int, dtype: torch.dtype, *, source: bool = False, ptx: bool = False
) -> GpuExplanation:
    """Compile an algorithm's kernel for an architecture (80, 90, ...). Raises: CompileError with the reason."""
    from compiledopt.rules.formula import formula

    known = traced(around.derived(rule, group), group)
    program = known.program
    kernel = triton.kernel(program, [dtype] * len(program.tensors))
    built = [triton.build_for(kernel, arch, one_row=one_row) for one_row in (True, False)]
    loads, stores = (len(re.findall(rf"tl\.{what}\(\w+ \+ x0", kernel.source)) for what in ("load", "store"))
    text = kernel.source
    if source and group.get("capturable"):
        scalars = scalar_program(program)
        text += "\n" + triton.rows_kernel(scalars, triton.usual_dtypes(scalars, known.rule.scalars)).source
    return GpuExplanation(
        optimizer=name,
        arch=f"sm_{arch}",
        dtype=str(dtype).removeprefix("torch."),
        kernels=1,
        launches_per_step=1 + bool(group.get("capturable")),
        loads_per_element=loads,
        stores_per_element=stores,
        bytes_per_element=(loads + stores) * dtype.itemsize,
        vector_loads=built[0].vector_loads,
        vector_stores=built[0].vector_stores,
        registers=max(one.registers for one in built),
        spills=sum(one.spills for one in built),
        formula=formula(program, around.letters()).text,
        source=text if source else "",
        ptx=built[0].ptx if ptx else "",
        clipped=known.is_clipped,
    )
