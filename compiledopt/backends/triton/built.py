"""The kernels of a rule, compiled on any machine, for who wants to know what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compiledopt.backends.batch import Choice, Entry, bytes_moved, operand_dtypes
from compiledopt.backends.matrices import products, program_of, told
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.parts import calls_of, check, inner_of, moved_of, parts_of
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.shaped import best_for, masks_of, shape_of
from compiledopt.backends.triton.tuning import candidates_for
from compiledopt.errors import CompileError
from compiledopt.rules.program import Program
from compiledopt.rules.traced import Traced


@dataclass
class Made:
    """program: of all of it; programs: those that have a scalar part each; sources, built: of the kernels."""

    program: Program
    programs: Sequence[Program]
    sources: list[str]
    built: list[triton.Built]
    moved: float = 0.0  # bytes per element, by all of them
    products: tuple[str, ...] = ()
    calls: int = 0


def check_for(known: Traced, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Whether a rule can have kernels at all. Raises: CompileError."""
    check(Entry(torch.empty(shape, dtype=dtype, device="meta"), {}, 0, known, Choice("compiled", "")))


def built_for(known: Traced, arch: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Made:
    """For parameters of a shape, on a GPU that need not be there. arch: 80, 90, and so on. Raises: CompileError."""
    entry = Entry(torch.empty(shape, dtype=dtype, device="meta"), {}, 0, known, Choice("compiled", ""))
    if known.elementwise and not known.measures:
        return _alone(entry, arch)
    inner = inner_of(entry)
    variant = inner.traced if inner.traced.elementwise else inner.traced.variant(inner.param)
    matrices = program_of(inner)
    if not isinstance(variant, str):
        made = Made(variant.program, [], [], [])
    elif matrices is None:
        raise CompileError(f"{known.reason}: {variant}")
    else:
        _, calls = products(matrices, [shape])
        made = Made(matrices.whole, [], [], [], products=told(matrices, calls))
        made.calls = sum(sum(each.values()) for each in calls.values())
    for part in parts_of(entry):
        _add(made, part, arch)
    made.calls += calls_of(entry)
    return made


def _alone(entry: Entry, arch: int) -> Made:
    """Of one kernel: for numbers that are arguments, of one row or a few, and in a table."""
    runs, dtypes = entry.runs, operand_dtypes(entry)
    kernel = kernel_of(runs, dtypes)
    assert isinstance(kernel, triton.TritonKernel)
    block, warps = candidates_for(kernel, dtypes)[0]
    built = [triton.build_for(kernel, arch, block, warps, rows) for rows in (1, triton.FEW, 0)]
    return Made(runs.program, [runs.program], [kernel.source], built, sum(bytes_moved(entry)))


def _add(made: Made, part: Entry, arch: int) -> None:
    """One program more. Mutates: made."""
    runs, dtypes = part.runs, operand_dtypes(part)
    kernel = kernel_of(runs, dtypes)
    made.programs = [*made.programs, runs.program]
    if isinstance(kernel, triton.TritonKernel):
        made.built.append(triton.build_for(kernel, arch))
        made.sources.append(kernel.source)
        made.moved += sum(moved_of(part))
        return
    masks = masks_of(kernel, [shape_of(part.param, runs.order)])
    made.built += [best_for(stage, arch, mask) for stage, mask in zip(kernel.stages, masks, strict=True)]
    made.sources += [stage.source for stage in kernel.stages]
    made.moved += sum(kernel.bytes_per_element(dtypes))
