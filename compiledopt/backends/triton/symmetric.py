"""Products of matrices whose result is symmetric, of which half the tiles are computed: x·xᵀ, and β·A + α·A·A of a symmetric A,
as Newton–Schulz takes them at each iteration.

Which is faster, this kernel or cuBLAS, turns with the shape: of one matrix on an H100 the like of it in Triton took 0.8 times
as long from 4096 rows on, and 1.3 times as long up to 2048 (pytorch/pytorch, pull request 184886). So both are timed, on the
stacks at hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from compiledopt.backends.devices import is_capturing, ordinary, synchronize
from compiledopt.backends.matrices import BY_KERNEL
from compiledopt.backends.triton import tuning
from compiledopt.backends.triton.kernels import TritonKernel
from compiledopt.backends.triton.proof import WRONG, remembered
from compiledopt.backends.triton.readiness import made_ready
from compiledopt.backends.triton.tables import launch
from compiledopt.errors import CompileError, warn
from compiledopt.rules.pieces import Runner

Tiling = tuple[int, ...]  # rows and columns of a tile, how many products are added at a time, warps, stages
CUBLAS: Tiling = ()
CANDIDATES: tuple[Tiling, ...] = (CUBLAS, (128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 8, 4), (64, 64, 4, 4))
FROM = "COMPILEDOPT_SYMMETRIC_PRODUCTS"  # how many rows a matrix has from which on the kernel takes it, untimed
TOLERANCE = 2**-6  # of each element: some roundings to bfloat16, far below a term of 64 that is missing in 1000
GROUP = 8  # columns of tiles that go together, so that what they read of a row is in the cache

# Tiles (i, j) with i ≤ j, in groups of GROUP columns j: first the rows above the group, then its triangle.
SOURCE = f"""\
import triton
import triton.language as tl


@triton.jit
def triangle(number):
    j = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > number, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= number, j + 1, j)
    return number - j * (j + 1) // 2, j


@triton.jit
def whole_model(
    x, total, out, alpha, beta, size, depth, tiles, x_matrix, x_row, x_column, out_matrix,
    ADDS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):
    pairs = tiles * (tiles + 1) // 2
    matrix = (tl.program_id(0) // pairs).to(tl.int64)
    number = tl.program_id(0) % pairs
    _, column = triangle(number)
    begin = column // {GROUP} * {GROUP}
    within = number - begin * (begin + 1) // 2
    columns = tl.minimum({GROUP}, tiles - begin)
    above = begin * columns
    row_in_group, column_in_group = triangle(tl.maximum(within - above, 0))
    i = tl.where(within < above, within // columns, begin + row_in_group)
    j = begin + tl.where(within < above, within % columns, column_in_group)

    left = i * TILE + tl.arange(0, TILE)
    right = j * TILE + tl.arange(0, TILE)
    along = tl.arange(0, DEPTH)
    lefts = x + matrix * x_matrix + left[:, None].to(tl.int64) * x_row
    rights = x + matrix * x_matrix + right[None, :].to(tl.int64) * x_row
    sums = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, depth, DEPTH):
        at = start + along
        first = tl.load(lefts + at[None, :].to(tl.int64) * x_column, (left[:, None] < size) & (at[None, :] < depth), other=0.0)
        ends = (at[:, None] < depth) & (right[None, :] < size)
        second = tl.load(rights + at[:, None].to(tl.int64) * x_column, ends, other=0.0)
        sums = tl.dot(first, second, sums)
    sums *= alpha
    inside = (left[:, None] < size) & (right[None, :] < size)
    places = left[:, None].to(tl.int64) * size + right[None, :]
    if ADDS:
        sums += beta * tl.load(total + matrix * out_matrix + places, inside, other=0.0).to(tl.float32)
    result = sums.to(out.dtype.element_ty)
    tl.store(out + matrix * out_matrix + places, result, inside)
    if i != j:
        mirrored = right[:, None].to(tl.int64) * size + left[None, :]
        tl.store(out + matrix * out_matrix + mirrored, tl.trans(result), (right[:, None] < size) & (left[None, :] < size))
"""
KERNEL = TritonKernel(SOURCE, 0, 0, torch.float32)


@dataclass(frozen=True)
class Kind:
    """Products that go the same way. size, depth: rows and columns of x; turned: whether it lies column after column; adds:
    whether there is a total."""

    device: torch.device
    dtype: torch.dtype
    size: int
    depth: int
    turned: bool
    adds: bool


def kind_of(x: torch.Tensor, total: torch.Tensor | None, device: torch.device) -> Kind:
    return Kind(device, x.dtype, x.size(-2), x.size(-1), x.stride(-1) != 1, total is not None)


@dataclass
class Product:
    """The kernel for a kind of product."""

    tiling: Tiling
    compiled: dict[Any, Any] = field(default_factory=dict)

    def write(self, x: torch.Tensor, total: torch.Tensor | None, beta: float, alpha: float, out: torch.Tensor) -> None:
        """out ← β·total + α·x·xᵀ. Mutates: out."""
        (count, size, depth), (tile, step, warps, stages) = x.shape, self.tiling
        tiles = -(-size // tile)
        tensors = [x, x if total is None else total, out]
        numbers = [float(alpha), float(beta), size, depth, tiles, *x.stride(), out.stride(0)]
        constants = (total is not None, tile, step)
        launch(KERNEL, self.compiled, count * (tiles * (tiles + 1) // 2), tensors, numbers, constants, warps, stages=stages)


def by_cublas(x: torch.Tensor, total: torch.Tensor | None, beta: float, alpha: float, out: torch.Tensor) -> None:
    """As `Product.write`; without a total alpha is 1."""
    if total is None:
        torch.bmm(x, x.mT, out=out)
    else:
        torch.baddbmm(total, x, x.mT, beta=beta, alpha=alpha, out=out)


_decided: dict[tuple[Kind, int], Product | None] = {}  # of so many matrices; None where cuBLAS takes them


class SymmetricProducts(Runner):
    """Writes those products that the kernel was found to be faster for."""

    def __init__(self) -> None:
        self.known: dict[Kind, Product | None] = {}

    def decide(self, run: Callable[..., object]) -> None:
        """Know what a function takes, from one run of it, by=…, on the largest stack. Mutates: what it runs on."""
        run(by=_Deciding(self.known))

    def write_symmetric(self, x: torch.Tensor, total: torch.Tensor | None, beta: Any, alpha: Any, out: torch.Tensor) -> bool:
        made = self.known.get(kind_of(x, total, x.device))
        if made is not None:
            made.write(x, total, beta, alpha, out)
        return made is not None


class _Deciding(Runner):
    """Leaves every product to torch, once it is decided who takes it."""

    def __init__(self, known: dict[Kind, Product | None]) -> None:
        self.known = known

    def write_symmetric(self, x: torch.Tensor, total: torch.Tensor | None, beta: Any, alpha: Any, out: torch.Tensor) -> bool:
        kind = kind_of(x, total, x.device)
        if kind not in self.known:
            if (kind, len(x)) not in _decided:
                _decided[kind, len(x)] = _decide(kind, x, out)
            self.known[kind] = _decided[kind, len(x)]
        return False


class Told(Runner):
    """Counts the launches for products without data. device: where their like would run."""

    def __init__(self, device: torch.device, counted: dict[str, int]) -> None:
        self.device, self.counted = device, counted

    def write_symmetric(self, x: torch.Tensor, total: torch.Tensor | None, beta: Any, alpha: Any, out: torch.Tensor) -> bool:
        known = _decided.get((kind_of(x, total, self.device), len(x)))
        if known is not None:
            self.counted[BY_KERNEL] = self.counted.get(BY_KERNEL, 0) + 1
        return known is not None


def is_possible(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel may take products here. Replicas must compute the same, bit for bit, and what is faster may differ
    from one process to the next: where there are several, or determinism is asked for, only from so many rows on as the
    environment says."""
    if dtype not in (torch.bfloat16, torch.float16) or is_capturing(device):
        return False
    several = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return FROM in os.environ or (device.type == "cuda" and not several and not torch.are_deterministic_algorithms_enabled())


def _decide(kind: Kind, x: torch.Tensor, out: torch.Tensor) -> Product | None:
    """The kernel for products of a kind, compiled, loaded and tried; None where cuBLAS takes them. Mutates: x, out."""
    of = f"{SOURCE}{tuple(x.shape)}{kind}"

    def make() -> Product | None:
        _fill(x, kind.adds)
        tiling = _tiling(of, kind, x, out)
        if tiling == CUBLAS:
            return None
        made = Product(tiling)
        _write(made, kind, x, out)
        synchronize(kind.device)
        if (wrong := remembered((of, tiling), kind.device, lambda: _difference(made, kind, x, out))) is not None:
            raise CompileError(f"{WRONG}: {wrong}")
        return made

    try:
        found: Product | None = made_ready(of, kind.device, make)
    except CompileError as error:
        warn(f"compiledopt leaves symmetric products of {kind.size} × {kind.depth} matrices to cuBLAS: {error}")
        return None
    return found


def _tiling(of: str, kind: Kind, x: torch.Tensor, out: torch.Tensor) -> Tiling:
    if FROM in os.environ:
        return CANDIDATES[1] if kind.size >= _least_rows() else CUBLAS
    return tuning.config(of, kind.device, lambda: lambda one: _milliseconds(one, kind, x, out), CANDIDATES)


def _least_rows() -> int:
    """What the environment says. Raises: ValueError."""
    told = os.environ[FROM]
    if not told.isdecimal():
        raise ValueError(f"{FROM} must be a number of rows, from which on the kernel takes products; got {told!r}")
    return int(told)


def _write(by: Product | None, kind: Kind, x: torch.Tensor, out: torch.Tensor) -> None:
    write = by_cublas if by is None else by.write
    total, beta, alpha = (x, 0.75, 1 / kind.depth) if kind.adds else (None, 0.0, 1.0)
    write(x, total, beta, alpha, out)


def _milliseconds(tiling: Tiling, kind: Kind, x: torch.Tensor, out: torch.Tensor) -> float:
    by = None if tiling == CUBLAS else Product(tiling)
    return tuning.elapsed(lambda: _write(by, kind, x, out), kind.device)


@ordinary
def _fill(x: torch.Tensor, symmetric: bool) -> None:
    """Positive numbers, so that the elements of products are about alike. Mutates: x."""
    for matrix in x:
        matrix.uniform_(0.5, 1.0)
        if symmetric:
            matrix.copy_((matrix + matrix.mT) / 2)


@ordinary
def _difference(made: Product, kind: Kind, x: torch.Tensor, out: torch.Tensor) -> str | None:
    """What the kernel does wrong, against cuBLAS; or None. Mutates: out."""
    _write(made, kind, x, out)
    for number, found in enumerate(out):
        wanted = torch.empty_like(found)[None]
        _write(None, kind, x[number : number + 1], wanted)
        apart = (found.float() - wanted[0].float()).abs() <= TOLERANCE * wanted[0].float()
        if not bool(apart.all()) or not bool((found == found.mT).all()):
            return f"{int((~apart).sum())} of {apart.numel()} elements of matrix {number}"
    return None
