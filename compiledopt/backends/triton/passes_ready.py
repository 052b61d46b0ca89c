"""The kernels of a rule that reduces, made ready: run on nothing for a parameter, and proved before a model is given to them,
in the forms of tiles that it needs, so that nothing is compiled for that."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence

import torch

from compiledopt.backends.devices import ordinary
from compiledopt.backends.inductor import evaluate
from compiledopt.backends.triton.forms import FORMS
from compiledopt.backends.triton.places import AXES
from compiledopt.backends.triton.proof import WRONG, bits_for, on_device_at, random_rows, remembered, unlike, unlike_bits
from compiledopt.backends.triton.reducing import ReducingKernel
from compiledopt.backends.triton.shaped import Shape, ShapedTables, masks_of, run_on_nothing, shape_of
from compiledopt.errors import CompileError
from compiledopt.rules.program import ELEMENTS, Program

# (matrices, rows, columns): of each form of tiles some, whole ones and ragged ones, rows that vector loads serve and others.
SHAPES: tuple[Shape, ...] = ((1, 33, 256), (3, 40, 150), (1, 2, 5000), (1, 600, 7), (300, 3, 3), (1500, 1, 1))
FLAT: tuple[Shape, ...] = ((1, 1, 1040), (1, 1, 5000), (1, 1, 1))
OFF = 1  # elements off alignment, of every second tensor


def run_for(kernel: ReducingKernel, param: torch.Tensor, order: int) -> None:
    """Compile and load what a parameter needs."""
    run_on_nothing(kernel, masks_of(kernel, [shape_of(param, order)]), param.device)


def tables_of(kernel: ReducingKernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device) -> ShapedTables:
    """Tables that raise CompileError when they are given tiles that the kernels are wrong for."""

    def prove(masks: Sequence[int]) -> None:
        if (wrong := proved(kernel, program, dtypes, masks, device)) is not None:
            raise CompileError(f"{WRONG}: {wrong}")

    return ShapedTables(kernel, device, prove)


def proved(
    kernel: ReducingKernel, program: Program, dtypes: Sequence[torch.dtype], masks: Sequence[int], device: torch.device
) -> str | None:
    """What the kernels do wrong on this device with these kinds and forms of tiles, or None. Asked once per machine."""
    if os.environ.get("TRITON_INTERPRET") == "1":  # no compiler made them, and it takes seconds
        return None
    of = kernel.source, tuple(masks), SHAPES, FLAT, FORMS
    return remembered(of, device, lambda: difference(kernel, program, dtypes, masks, device))


@ordinary
def difference(
    kernel: ReducingKernel, program: Program, dtypes: Sequence[torch.dtype], masks: Sequence[int], device: torch.device
) -> str | None:
    """Compare with the program by torch's operators in float64."""
    every = FLAT if kernel.passes.is_flat else SHAPES
    shapes = [shape for shape in every if _has_forms(masks, masks_of(kernel, [shape]))]
    if not shapes:  # a form that none of these has: the first will do, and is compiled
        shapes, masks = [every[0]], masks_of(kernel, every[:1])
    generator = torch.Generator().manual_seed(0)
    rows = random_rows(program, kernel.columns, len(shapes), generator).to(kernel.scalar)
    before = [_values(program, dtypes, shape, generator) for shape in shapes]
    after = [
        [on_device_at(value.reshape(-1), number % 2 * OFF, device) for value in values] for number, values in enumerate(before)
    ]
    tables = ShapedTables(kernel, device, masks=masks)
    sizes = [size for number, shape in enumerate(shapes) for size in (*shape, *_place(number))]
    numbers = ([one.data_ptr() for values in after for one in values], sizes, range(len(shapes)))
    tables.update(*(array("q", each).tobytes() for each in numbers))
    tables.run(tables.fill(rows[:, : kernel.columns].reshape(-1).tolist()))
    for number, (shape, old, new, row) in enumerate(zip(shapes, before, after, rows, strict=True)):
        results = _expected(program, number, shape, old, row[: kernel.columns])
        for node, start, found in zip(program.tensors, old, new, strict=True):
            many, rows_of, columns_of = start.shape  # of what varies along fewer axes, one of all that are alike
            wanted, found = results.get(node.name, start.double())[:many, :rows_of, :columns_of], found.cpu().view(start.shape)
            wrong = unlike(node.name, found, wanted, start.dtype) or unlike_bits(program, node.name, found, wanted)
            if wrong is not None:
                return f"a tensor of {' × '.join(map(str, shape))}: {wrong}"
    return None


def _place(number: int) -> tuple[int, int]:
    """Which parameter one of the tensors is, and which of its elements comes first."""
    return number + 3, 11 * number


def _expected(
    program: Program, number: int, shape: Shape, before: Sequence[torch.Tensor], row: torch.Tensor
) -> dict[str, torch.Tensor]:
    of, first = _place(number)
    element = torch.arange(math.prod(shape), dtype=torch.int32, device="cpu").view(*shape) + first
    found = evaluate(program, [value.double() for value in before], list(row.double()), None, bits_for(of, element))
    return dict(zip(program.tensor_outputs, found, strict=True))


def _has_forms(masks: Sequence[int], own: Sequence[int]) -> bool:
    return all(needed & ~there == 0 for needed, there in zip(own, masks, strict=True))


def _values(program: Program, dtypes: Sequence[torch.dtype], shape: Shape, generator: torch.Generator) -> list[torch.Tensor]:
    """Positive, since states may be squares; gradients of either sign."""
    found = []
    for index, (node, dtype) in enumerate(zip(program.tensors, dtypes, strict=True)):
        own = [size if node.axes & axis else 1 for axis, size in zip(AXES, shape, strict=True)]
        value = 0.5 + torch.rand(own, generator=generator, device="cpu")
        sign = torch.randint(0, 2, own, generator=generator, device="cpu") * 2 - 1
        found.append((value * sign if index == 1 and node.axes == ELEMENTS else value).to(dtype))
    return found
