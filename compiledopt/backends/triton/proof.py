"""A kernel proves itself once per machine: on random numbers it must compute what the program says, before any parameter is
given to it. What it was found to do is kept on disk."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from compiledopt.backends import cache
from compiledopt.backends.blocks import Blocks, scales_of
from compiledopt.backends.devices import ordinary, waiting
from compiledopt.backends.inductor import Bits, evaluate
from compiledopt.backends.keys import seed_and_step
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.tables import Tables
from compiledopt.backends.triton.tuning import Config
from compiledopt.rules.program import BLOCKS, ELEMENTS, PACKED, Node, Program
from compiledopt.rules.random import bits_at, key

# Whole blocks and ragged ones of tensors that vector loads can serve, one element, none, and one that begins off alignment.
LENGTHS, OFFSETS = (1040, 4101, 1, 0, 2055, 16), (0, 0, 0, 0, 1, 0)
# With states in blocks: rows that are whole blocks, ragged ones, one block, none, whole ones off alignment, and a vector.
SHAPES = ((2, 1024), (7, 300), (1, 32), (0, 64), (3, 512), (1, 1100))
ROWS = (0, 2, 1, 1, 2, 0)  # which row of scalars each has
SHORT = 2  # from where on they are tried with few rows too: in any order of the rows, and none of many blocks
# Of the largest value: far above what rounding does, far below what a wrong element or row does.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# Codes apart, around the end of the dtype too. The lower bits of a float32 (int16) may be any where terms cancel, in one of so
# many elements.
APART = {torch.int8: 1, torch.uint8: 1, torch.int16: 256}
SOME = {torch.int16: 64}
WRONG = "it does not compute what it should"
OTHERWISE = 16  # one in so many elements may be rounded otherwise by the same random bits; by others every second one is


def proved(
    kernel: triton.TritonKernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device, chosen: Config
) -> str | None:
    """What the kernel does wrong on this device, or None. Asked once per machine."""
    of = kernel.source, chosen, LENGTHS, SHAPES, OFFSETS
    return remembered(of, device, lambda: difference(kernel, program, dtypes, device, chosen))


def remembered(of: tuple[Any, ...], device: torch.device, find: Callable[[], str | None]) -> str | None:
    """What `find` says that a kernel does wrong, or None; asked once per kind of device and versions of torch and triton. of:
    what makes the kernel, and what it is tried on."""
    place = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
    name = cache.key("proved", of, place, triton.version())
    content = cache.load(f"{name}.txt")
    if content is None:
        with waiting(device):
            content = (find() or "").encode()
        cache.store(f"{name}.txt", content)
    return content.decode() or None


@ordinary
def difference(
    kernel: triton.TritonKernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device, chosen: Config
) -> str | None:
    """Compare with the program by torch's operators in float64: with a table of scalars, with few rows and with one; each as
    Triton launches it, and as the driver does alone, where it is asked for that."""
    generator = torch.Generator().manual_seed(0)
    rows = random_rows(program, kernel.columns, len(ROWS), generator).to(kernel.scalar)
    every = [_Case(number, program, kernel.block) for number in range(len(ROWS))]
    ways = (("table", every, ROWS), ("few", every[SHORT:], ROWS[SHORT:]), ("one", every, (0,) * len(ROWS)))
    compiled: dict[Any, Any] = {}
    for (way, cases, of), by_driver in product(ways, (False, True)):
        given = [case.values(dtypes, generator) for case in cases]
        found = [
            [on_device_at(value, case.offset, device) for value in values] for case, values in zip(cases, given, strict=True)
        ]
        tables = Tables(kernel, device, chosen)
        extents = [number for case in cases for number in case.extents[: kernel.extents]]
        numbers = ([one.data_ptr() for values in found for one in values], extents, of)
        tables.update(*(array("q", each).tobytes() for each in numbers))
        tables.compiled = compiled
        flat = rows[: max(of) + 1, : kernel.columns].reshape(-1).tolist()
        table = tables.fill(flat)  # of a few rows what is measured is there too
        taken = (tables.run_by_driver if by_driver else tables.run)(table if way == "table" else flat)
        if by_driver and not taken:  # then Triton launches at each step
            continue
        for case, before, after, row in zip(cases, given, found, of, strict=True):
            if (wrong := case.wrong(before, after, rows[row, : kernel.columns])) is not None:
                return f"tensor {case.number} of {case.length} elements: {wrong}"
    return None


def random_rows(program: Program, columns: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of scalars; what makes the key of random bits is whole numbers."""
    rows = 0.25 + 0.5 * torch.rand(count, max(1, columns), generator=generator, device="cpu")
    for column in seed_and_step(program) if program.is_random else ():
        if isinstance(column, int):
            rows[:, column] = torch.randint(1, 1000, (count,), generator=generator, device="cpu").float()
    return rows


def bits_for(number: int, element: torch.Tensor) -> Bits:
    """The random bits of these elements of a parameter."""
    return lambda seed, step: bits_at(key(seed.long(), step.long(), torch.tensor(number, device="cpu")), element)


class _Case:
    """One tensor that a kernel is tried on."""

    def __init__(self, number: int, program: Program, block: int) -> None:
        self.number, self.program, self.block, self.offset = number, program, block, OFFSETS[number]
        self.shape = torch.Size(SHAPES[number] if block else (1, LENGTHS[number]))
        self.length = self.shape.numel()
        self.cut = Blocks(self.shape, program.sizes) if block else None
        row = self.length if not block or self.shape[1] % block == 0 else self.shape[1]
        self.extents = (self.length, max(1, row), number + 3, 11 * number)

    def values(self, dtypes: Sequence[torch.dtype], generator: torch.Generator) -> list[torch.Tensor]:
        """Positive, since states may be squares; gradients of either sign; of codes, all that there are for finite values."""
        found = []
        for k, (node, dtype) in enumerate(zip(self.program.tensors, dtypes, strict=True)):
            shape = scales_of(self.shape, self.program.sizes[node.name]) if node.axes == BLOCKS else self.shape
            if node.axes == PACKED:
                value = self._packed(node, torch.randint(0, 16, self.shape, generator=generator, device="cpu"))
            elif dtype.is_floating_point:
                value = 0.5 + torch.rand(shape, generator=generator, device="cpu")
                sign = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
                value = (value * sign if k == 1 else value).to(dtype)
            else:
                of = torch.iinfo(dtype)
                value = torch.randint(of.min + 2, of.max - 1, shape, generator=generator, device="cpu").to(dtype)
            found.append(value.reshape(-1))
        return found

    def wrong(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], row: torch.Tensor) -> str | None:
        if not self.length:
            return None
        results = dict(zip(self.program.tensor_outputs, self._expected(before, row), strict=True))
        for node, old, new in zip(self.program.tensors, before, after, strict=True):
            wanted = results.get(node.name, old.double())
            found = new.cpu()
            if node.axes == PACKED:  # code by code
                found, wanted = self._codes(node, found), self._codes(node, wanted.to(old.dtype)).double()
            told = unlike(node.name, found, wanted, old.dtype) or unlike_bits(self.program, node.name, found, wanted)
            if told is not None:
                return told
        return None

    def _packed(self, node: Node, codes: torch.Tensor) -> torch.Tensor:
        """Codes of 4 bits, two to a byte."""
        assert self.cut is not None
        return self.cut.back(self.cut.into(codes, ELEMENTS), PACKED, node.name)

    def _codes(self, node: Node, packed: torch.Tensor) -> torch.Tensor:
        """The other way."""
        assert self.cut is not None
        return self.cut.back(self.cut.into(packed, PACKED, node.name), ELEMENTS).reshape(-1)

    def _expected(self, before: Sequence[torch.Tensor], row: torch.Tensor) -> list[torch.Tensor]:
        tensors, cut = list(before), self.cut
        if cut is not None:
            given = zip(tensors, self.program.tensors, strict=True)
            tensors = [cut.into(value, node.axes, node.name) for value, node in given]
        tensors = [value.double() for value in tensors]
        found = evaluate(self.program, tensors, list(row.double()), None, self._bits())
        if cut is not None:
            axes = {node.name: node.axes for node in self.program.tensors}
            written = zip(found, self.program.tensor_outputs, strict=True)
            found = [cut.back(value, axes[name], name) for value, name in written]
        return [value.reshape(-1) for value in found]

    def _bits(self) -> Bits:
        number, first = self.extents[2:]
        element = torch.arange(self.length, dtype=torch.int32, device="cpu") + first
        return bits_for(number, element if self.cut is None else self.cut.into(element, ELEMENTS))


def unlike(name: str, found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> str | None:
    """How results differ from what the for-loop computes in float64, if by more than rounding. dtype: their own."""
    apart = (found.double() - wanted).abs()[wanted.isfinite()]
    largest = wanted[wanted.isfinite()].abs().max() if len(apart) else torch.tensor(0.0, device="cpu")
    if dtype.is_floating_point:
        wrong = ~(apart <= TOLERANCE[dtype] * (largest + 1e-3))
    else:
        wrong = torch.minimum(apart, 2 ** (8 * dtype.itemsize) - apart) > APART[dtype]
    if (count := int(wrong.sum())) <= (-(-len(wrong) // SOME[dtype]) if dtype in SOME else 0):
        return None
    return f"{count} elements of {name} are not what the for-loop computes, by up to {float(apart.max()):.3g}"


def unlike_bits(program: Program, name: str, found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """How results that may be rounded with random bits differ from what the for-loop computes, if by other bits."""
    if not program.is_random or found.dtype not in (torch.bfloat16, torch.float16):
        return None
    count = int((found != wanted.to(found.dtype)).sum())
    if count <= 1 + wanted.numel() // OTHERWISE:
        return None
    return f"{count} elements of {name} are not what the for-loop computes, but rounded otherwise"


def on_device_at(value: torch.Tensor, offset: int, device: torch.device) -> torch.Tensor:
    """A copy on the device, so many elements behind what is aligned."""
    room = torch.empty(offset + value.numel(), dtype=value.dtype, device=device)
    room[offset:].copy_(value)
    return room[offset:]
