"""A kernel proves itself once per machine: on random numbers it must compute what the program says, before any parameter is
given to it. What it was found to do is kept on disk."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from compiledopt.backends import cache
from compiledopt.backends.inductor import evaluate
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.devices import ordinary
from compiledopt.backends.triton.tables import Tables
from compiledopt.backends.triton.tuning import Config
from compiledopt.rules.program import Program

# Whole blocks and ragged ones of tensors that vector loads can serve, one element, none, and one that begins off alignment.
LENGTHS, OFFSETS = (1040, 4101, 1, 0, 2055), (0, 0, 0, 0, 1)
ROWS = (0, 1, 2, 1, 2)  # which row of scalars each has
# Of the largest value: far above what rounding does, far below what a wrong element or row does.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def proved(
    kernel: triton.TritonKernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device, chosen: Config
) -> str | None:
    """What the kernel does wrong on this device, or None. Asked once per machine."""
    place = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
    name = cache.key("proved", kernel.source, place, chosen, torch.__version__, LENGTHS, OFFSETS)
    content = cache.load(f"{name}.txt")
    if content is None:
        content = (difference(kernel, program, dtypes, device, chosen) or "").encode()
        cache.store(f"{name}.txt", content)
    return content.decode() or None


@ordinary
def difference(
    kernel: triton.TritonKernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device, chosen: Config
) -> str | None:
    """Compare with the program by torch's operators in float64, with a table of scalars and with one row."""
    generator = torch.Generator().manual_seed(0)
    rows = (0.25 + 0.5 * torch.rand(3, max(1, kernel.columns), generator=generator, device="cpu")).to(kernel.scalar)
    for of in (ROWS, (0,) * len(ROWS)):
        given = [_values(length, dtypes, generator) for length in LENGTHS]
        found = [[_there(value, offset, device) for value in values] for values, offset in zip(given, OFFSETS, strict=True)]
        tables = Tables(kernel, device, chosen)
        numbers = ([one.data_ptr() for values in found for one in values], LENGTHS, of)
        tables.update(*(array("q", each).tobytes() for each in numbers))
        flat = rows[:, : kernel.columns].reshape(-1).tolist()
        tables.run(tables.fill(flat) if of is ROWS else flat[: kernel.columns])
        for tensor, (before, after, row) in enumerate(zip(given, found, of, strict=True)):
            if (wrong := _wrong(program, before, after, rows[row, : kernel.columns])) is not None:
                return f"tensor {tensor} of {LENGTHS[tensor]} elements: {wrong}"
    return None


def _values(length: int, dtypes: Sequence[torch.dtype], generator: torch.Generator) -> list[torch.Tensor]:
    """Positive, since states may be squares; gradients of either sign."""
    values = [0.5 + torch.rand(length, generator=generator, device="cpu") for _ in dtypes]
    values[1] *= torch.randint(0, 2, (length,), generator=generator, device="cpu") * 2 - 1
    return [value.to(dtype) for value, dtype in zip(values, dtypes, strict=True)]


def _there(value: torch.Tensor, offset: int, device: torch.device) -> torch.Tensor:
    room = torch.empty(offset + value.numel(), dtype=value.dtype, device=device)
    room[offset:].copy_(value)
    return room[offset:]


def _wrong(program: Program, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], row: torch.Tensor) -> str | None:
    expected = evaluate(program, [value.double() for value in before], list(row.double()), None)
    results = dict(zip(program.tensor_outputs, expected, strict=True))
    for node, old, new in zip(program.tensors, before, after, strict=True):
        wanted = results.get(node.name, old.double())
        if not wanted.numel():
            continue
        apart = (new.cpu().double() - wanted).abs()[wanted.isfinite()]
        largest = wanted[wanted.isfinite()].abs().max() if len(apart) else torch.tensor(0.0, device="cpu")
        count = int((~(apart <= TOLERANCE[old.dtype] * (largest + 1e-3))).sum())
        if count:
            return f"{count} elements of {node.name} are not what the for-loop computes, by up to {float(apart.max()):.3g}"
    return None
