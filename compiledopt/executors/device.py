"""One Triton launch over all tensors of a device that share a program and dtypes.

The tables (pointers, lengths, rows, blocks) live on the device and are uploaded again only when they changed; the scalars,
a few numbers per row, at every step. All of it is asynchronous, on the current stream.
"""

from __future__ import annotations

from array import array
from collections import ChainMap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from compiledopt.compiler import triton
from compiledopt.compiler.errors import CompileError
from compiledopt.compiler.program import depends_on, value_of
from compiledopt.compiler.rule import as_float
from compiledopt.executors.clipping import sum_of_squares
from compiledopt.executors.compiled import CompiledBatch, kernel_dtypes
from compiledopt.executors.tuning import DEFAULT, Config, config

ELEMENTS = 1 << 24  # of each scratch tensor that a kernel is timed on: far more than the caches hold
RUNS = 10


class Tables:
    """What a kernel over a whole model reads beside the tensors themselves."""

    def __init__(self, kernel: triton.TritonKernel, device: torch.device, config: Config = DEFAULT) -> None:
        self.kernel, self.device = kernel, device
        self.block, self.warps = config
        self.known: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self.launches: list[tuple[bool, int, torch.Tensor]] = []
        self.aligned = torch.empty(0, dtype=torch.bool)
        self.reserve = torch.empty(0, dtype=torch.int64)
        self.kept: list[Any] = []  # what captured graphs read

    def update(self, pointers: bytes, lengths: bytes, rows: bytes) -> None:
        """Upload what differs from the last call."""
        if is_capturing(self.device):
            self._update_captured(pointers)
            return
        old, self.known = self.known, (pointers, lengths, rows)
        if pointers != old[0]:
            self.pointers = upload(pointers, self.device)
            if self.device.type == "cuda" and 8 * self.reserve.numel() != len(pointers):
                self.reserve = torch.empty(len(pointers) // 8, dtype=torch.int64, pin_memory=True)
        if lengths != old[1]:
            self.lengths = upload(lengths, self.device)
        if rows != old[2]:
            self.rows = upload(rows, self.device)
        if pointers != old[0] or lengths != old[1]:
            self._cut(as_numbers(pointers).view(-1, self.kernel.operands), as_numbers(lengths), lengths != old[1])

    def _update_captured(self, pointers: bytes) -> None:
        """During a capture: gradients made inside of it have new addresses, so the graph gets a copy of its own of them,
        from pinned memory that was allocated before and is kept. The tables that it reads are kept too."""
        if pointers != self.known[0]:
            self.reserve.copy_(as_numbers(pointers))
            self.pointers = torch.empty_like(self.reserve, device=self.device)
            self.pointers.copy_(self.reserve, non_blocking=True)
            self.known = (pointers, *self.known[1:])
        self.kept.append((self.reserve, self.pointers, self.lengths, self.rows, self.launches))
        self.reserve = torch.empty(0, dtype=torch.int64)

    def unfit(self, pointers: bytes, lengths: bytes) -> bool:
        """Whether a capture would need other tables than those on the device."""
        fits = aligned_ones(as_numbers(pointers).view(-1, self.kernel.operands), as_numbers(lengths))
        same = self.launches and lengths == self.known[1] and torch.equal(fits, self.aligned)
        return not same or (pointers != self.known[0] and 8 * self.reserve.numel() != len(pointers))

    def _cut(self, pointers: torch.Tensor, lengths: torch.Tensor, moved: bool) -> None:
        """One launch over the tensors that vector loads can serve, and one over the others."""
        fits = aligned_ones(pointers, lengths)
        if not moved and self.launches and torch.equal(fits, self.aligned):
            return
        self.aligned, self.launches = fits, []
        for aligned in (True, False):
            blocks = cut(lengths, fits == aligned, self.block)
            if blocks.shape[0]:
                self.launches.append((aligned, blocks.shape[0], upload(blocks, self.device)))

    def run(self, table: torch.Tensor) -> None:
        with on_device(self.device):
            used_on_this_stream(self.pointers, self.lengths, self.rows, table, *(blocks for *_, blocks in self.launches))
            for aligned, count, blocks in self.launches:
                self.kernel.function[(count,)](
                    self.pointers,
                    self.lengths,
                    self.rows,
                    blocks,
                    table,
                    XBLOCK=self.block,
                    ALIGNED=aligned,
                    num_warps=self.warps,
                )


def aligned_ones(pointers: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (lengths % triton.ALIGNMENT == 0) & (pointers % triton.ALIGNMENT == 0).all(1)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def cut(lengths: torch.Tensor, chosen: torch.Tensor, block: int) -> torch.Tensor:
    """(tensor, part) for each block of the chosen tensors, as int32."""
    counts = torch.where(chosen, (lengths + block - 1) // block, 0)
    tensors = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.stack([tensors, torch.arange(len(tensors)) - first], 1).to(torch.int32)


def as_numbers(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.int64) if content else torch.empty(0, dtype=torch.int64)


def upload(content: bytes | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Host → device without waiting: from pinned memory, which torch's allocator keeps until the copy is over."""
    tensor = as_numbers(content) if isinstance(content, bytes) else content
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def used_on_this_stream(*tensors: torch.Tensor) -> None:
    """Tell torch's allocator, which frees a tensor in the order of the stream that it was made on: steps may come on one stream
    after the other. What a graph reads is kept by who captures it."""
    device = tensors[0].device
    if device.type == "cuda" and not is_capturing(device):
        stream = torch.cuda.current_stream(device)
        for tensor in tensors:
            tensor.record_stream(stream)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def timer(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Callable[[Config], float]:
    """Times the aligned variant of a kernel on scratch tensors: the median of RUNS, in milliseconds."""
    tensors = [torch.zeros(ELEMENTS, dtype=dtype, device=device) for dtype in dtypes]
    table = torch.ones(max(1, kernel.columns), dtype=kernel.scalar, device=device)
    numbers = [array("q", values).tobytes() for values in ([t.data_ptr() for t in tensors], [ELEMENTS], [0])]

    def once(tables: Tables) -> float:
        with on_device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            tables.run(table)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

    def milliseconds(candidate: Config) -> float:
        tables = Tables(kernel, device, candidate)
        tables.update(*numbers)
        return sorted([once(tables) for _ in range(RUNS + 2)][2:])[RUNS // 2]

    return milliseconds


_ready: dict[tuple[str, torch.device], Config | CompileError] = {}


def ready(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Config:
    """The block size and warps of a kernel that runs on a device: compiled and loaded there, in both variants, and run on
    nothing, so that no launch fails while others have written. Raises: CompileError."""
    key = (kernel.source, device)
    if key not in _ready:
        try:
            chosen = config(kernel, device, lambda: timer(kernel, dtypes, device))
            _run_on_nothing(kernel, device, chosen)
            _ready[key] = chosen
        except (RuntimeError, ImportError, OSError, ValueError, TypeError) as error:  # whatever triton or the driver says
            _ready[key] = CompileError(f"the kernel cannot run on {device}: {type(error).__name__}: {error}")
    known = _ready[key]
    if isinstance(known, CompileError):
        raise known
    return known


def _run_on_nothing(kernel: triton.TritonKernel, device: torch.device, chosen: Config) -> None:
    """Launch both variants on a tensor without elements."""
    scratch = torch.zeros(2 * triton.ALIGNMENT, dtype=torch.float64, device=device)
    tables = Tables(kernel, device, chosen)
    tables.update(*(array("q", n).tobytes() for n in ([scratch.data_ptr()] * kernel.operands, [0], [0])))
    nowhere = torch.zeros(1, 2, dtype=torch.int32, device=device)
    tables.launches = [(aligned, 1, nowhere) for aligned in (True, False)]
    tables.run(torch.ones(max(1, kernel.columns), dtype=kernel.scalar, device=device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TritonBatch(CompiledBatch):
    """The parameters of one bucket on one device. The 0-dim states are on the host, as torch's without capturable."""

    def _plan(self) -> Any:
        self._make_tables()
        if self.is_clipped:  # the host does not know the norm, so it fills in another
            self.norm = self.groups[0]["grad_norm"]
            self.groups = [ChainMap({"grad_norm": 1.0}, group) for group in self.groups]  # type: ignore[arg-type]
        return self._native_plan(0, self.dtypes)

    def _make_tables(self) -> None:
        dtypes = kernel_dtypes(self.dtypes)
        self.triton = triton.kernel(self.traced.program, dtypes)
        self.tables = Tables(self.triton, self.device, ready(self.triton, dtypes, self.device))

    def prepare(self) -> bool:
        if is_capturing(self.device):
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an optimizer with capturable=False. "
                "Pass capturable=True, so that nothing is read on the host."
            )
        return super().prepare()

    def squares(self) -> torch.Tensor | float:
        return sum_of_squares(self.entries)

    def _clip(self, table: torch.Tensor) -> None:
        """Put what depends on the norm, which only the device knows, into its column."""
        for column, node in enumerate(self.traced.program.columns):
            if depends_on(node, "grad_norm"):
                bounds = [as_float(self.groups[group]["max_grad_norm"]) for group, *_ in self.rows]
                given = {
                    "max_grad_norm": upload(torch.tensor(bounds, dtype=torch.float64), self.device),
                    "grad_norm": self.norm,
                }
                table[:, column].copy_(value_of(node, given), non_blocking=True)

    def _run(self) -> None:
        pointers, lengths, rows, _ = self.native.tables()
        self.tables.update(pointers, lengths, rows)
        count, width = self.triton.columns, len(self.table) // max(1, len(self.rows))
        columns = [self.table[row * width + i] for row in range(len(self.rows)) for i in range(count)]
        table = upload(torch.tensor(columns, dtype=self.triton.scalar), self.device)
        if self.is_clipped:
            self._clip(table.view(len(self.rows), count))
        self.tables.run(table)
        self.native.commit(self.table)
