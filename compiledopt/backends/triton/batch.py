"""One Triton launch over all tensors of a device that share a program and dtypes.

The tables (pointers, lengths, rows, blocks) live on the device and are uploaded again only when they changed; the scalars,
a few numbers per row, at every step. All of it is asynchronous, on the current stream, and belongs to `prepare`, since it asks
for memory: a launch writes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from compiledopt.backends.gathered import GatheredBatch
from compiledopt.backends.layout import kernel_dtypes
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.tuning import DEFAULT, Config, config
from compiledopt.errors import CompileError
from compiledopt.rules.options import as_float
from compiledopt.rules.program import depends_on, value_of

# What a kernel is timed on: far more than the caches hold, and longer on the device than a launch takes on the host.
SCRATCH = 1 << 29  # bytes, of all tensors together
RUNS = 20
FIRST = "CUDA graph capture of a first step(): run step() once before, to have kernels and states"


P = ParamSpec("P")
R = TypeVar("R")


def ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Outside of inference mode: later steps write to the tensors that are made here."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return called


class Tables:
    """What a kernel over a whole model reads beside the tensors themselves."""

    def __init__(self, kernel: triton.TritonKernel, device: torch.device, config: Config = DEFAULT) -> None:
        self.kernel, self.device = kernel, device
        self.block, self.warps = config
        self.known: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self.pointers = self.lengths = self.rows = upload(b"", device)
        self.launches: list[tuple[bool, int, torch.Tensor]] = []
        self.aligned = torch.empty(0, dtype=torch.bool, device="cpu")
        self.reserve = upload(b"", torch.device("cpu"))
        self.captured: dict[bytes, torch.Tensor] = {}  # the reserves that graphs copy their pointers from
        self.kept: list[Any] = []  # what captured graphs read

    @ordinary
    def update(self, *contents: bytes) -> None:
        """Upload what differs from the last call. contents: pointers, lengths, rows.

        What is on the device is noted last: out of memory on the way, the tables are those of the last call, and known as such.
        """
        if 8 * self.reserve.numel() != len(contents[0]):
            self.reserve = reserved(len(contents[0]) // 8, self.device)
        if contents == self.known:
            return
        old = (self.pointers, self.lengths, self.rows)
        same = [content == known for content, known in zip(contents, self.known, strict=True)]
        tables = [t if is_same else upload(c, self.device) for t, c, is_same in zip(old, contents, same, strict=True)]
        cut = (self.aligned, self.launches) if all(same[:2]) else self._cut(contents[0], contents[1])
        self.pointers, self.lengths, self.rows = tables
        self.aligned, self.launches = cut
        self.known = (contents[0], contents[1], contents[2])

    @ordinary
    def capture(self, pointers: bytes) -> torch.Tensor:
        """The pointers for a graph that is being captured. Gradients made inside of it have new addresses, so it gets a table
        of its own, which is filled by its replays alone, from pinned memory that was allocated before and is kept; steps
        outside of it go on with theirs. The tables that it reads are kept too."""
        table = self.pointers
        if pointers != self.known[0]:
            if pointers not in self.captured:
                self.reserve.copy_(as_numbers(pointers))
                self.captured[pointers], self.reserve = self.reserve, upload(b"", torch.device("cpu"))
            table = torch.empty(len(pointers) // 8, dtype=torch.int64, device=self.device)
            table.copy_(self.captured[pointers], non_blocking=True)
        self.kept.append((table, self.lengths, self.rows, self.launches))
        return table

    def unfit(self, pointers: bytes, lengths: bytes) -> bool:
        """Whether a capture would need other tables than those on the device."""
        fits = aligned_ones(as_numbers(pointers).view(-1, self.kernel.operands), as_numbers(lengths))
        there = pointers == self.known[0] or pointers in self.captured or 8 * self.reserve.numel() == len(pointers)
        return not there or lengths != self.known[1] or not torch.equal(fits, self.aligned)

    def _cut(self, pointers: bytes, lengths: bytes) -> tuple[torch.Tensor, list[tuple[bool, int, torch.Tensor]]]:
        """Which tensors vector loads can serve, with one launch over those, and one over the others."""
        numbers = as_numbers(lengths)
        fits = aligned_ones(as_numbers(pointers).view(-1, self.kernel.operands), numbers)
        if lengths == self.known[1] and torch.equal(fits, self.aligned):
            return self.aligned, self.launches
        launches = []
        for aligned in (True, False):
            blocks = cut(numbers, fits == aligned, self.block)
            if blocks.shape[0]:
                launches.append((aligned, blocks.shape[0], upload(blocks, self.device)))
        return fits, launches

    def run(self, table: torch.Tensor, pointers: torch.Tensor | None = None) -> None:
        """table: the scalars; pointers: those of a captured graph."""
        if not self.launches:
            return
        pointers = self.pointers if pointers is None else pointers
        with on_device(self.device):
            used_on_this_stream(pointers, self.lengths, self.rows, table, *(blocks for *_, blocks in self.launches))
            for aligned, count, blocks in self.launches:
                self.kernel.function[(count,)](
                    pointers,
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
    tensors = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.stack([tensors, torch.arange(len(tensors), device="cpu") - first], 1).to(torch.int32)


def as_numbers(content: bytes) -> torch.Tensor:
    """int64 on the host, whatever set_default_device says."""
    if not content:  # frombuffer refuses it
        return torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.int64)


def reserved(count: int, device: torch.device) -> torch.Tensor:
    """Pinned memory for int64 numbers, which cannot be had during a capture."""
    return torch.empty(count, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")


@ordinary
def upload(
    content: bytes | torch.Tensor | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Host → device without waiting: from pinned memory, which torch's allocator keeps until the copy is over."""
    if isinstance(content, bytes):
        content = as_numbers(content)
    tensor = content if isinstance(content, torch.Tensor) else torch.tensor(content, dtype=dtype, device="cpu")
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
    """Times the aligned variant of a kernel on scratch tensors: milliseconds of one launch among RUNS.

    The launches are all between two events: an event for each would count the host's time too, while the device waits for it.
    The values are like a model's: the square root of zero takes another path.
    """
    length = SCRATCH // sum(dtype.itemsize for dtype in dtypes) // triton.ALIGNMENT * triton.ALIGNMENT
    tensors = [torch.empty(length, dtype=dtype, device=device) for dtype in dtypes]
    table = torch.ones(max(1, kernel.columns), dtype=kernel.scalar, device=device)
    numbers = [array("q", values).tobytes() for values in ([t.data_ptr() for t in tensors], [length], [0])]

    def milliseconds(candidate: Config) -> float:
        tables = Tables(kernel, device, candidate)
        tables.update(*numbers)
        for tensor in tensors:
            tensor.uniform_(0.5, 1.0)
        with on_device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            tables.run(table)
            start.record()
            for _ in range(RUNS):
                tables.run(table)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / RUNS

    return milliseconds


_ready: dict[tuple[str, torch.device], Config | CompileError] = {}


def ready(kernel: triton.TritonKernel, dtypes: Sequence[torch.dtype], device: torch.device) -> Config:
    """The block size and warps of a kernel that runs on a device: compiled and loaded there, in both variants, and run on
    nothing, so that no launch fails while others have written. Raises: CompileError."""

    def make() -> Config:
        chosen = config(kernel, device, lambda: timer(kernel, dtypes, device))
        _run_on_nothing(kernel, device, chosen)
        return chosen

    return made_ready(kernel, device, make)


@ordinary
def made_ready(kernel: triton.TritonKernel, device: torch.device, make: Callable[[], Config]) -> Config:
    """What `make` gives, which runs a kernel for the first time; asked once. Raises: CompileError where it cannot run, and
    whatever says that memory is short, which is no property of the kernel."""
    key = (kernel.source, device)
    if key not in _ready:
        if is_capturing(device):
            raise RuntimeError(FIRST)
        try:
            _ready[key] = make()
        # Triton's errors (OutOfResources, PTXASError, CompilationError) and subprocess's, from gcc, have only this in common.
        except Exception as error:
            if isinstance(error, MemoryError) or "out of memory" in str(error):
                raise
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
    synchronize(device)


def synchronize(device: torch.device) -> None:
    """Let what a kernel did wrong show now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TritonBatch(GatheredBatch):
    """The parameters of one bucket on one device. The 0-dim states are on the host, as torch's without capturable."""

    def _plan(self) -> Any:
        self._make_tables()
        return self._native_plan(0, self.dtypes)

    def _make_tables(self) -> None:
        if is_capturing(self.device):
            raise RuntimeError(FIRST)
        dtypes = kernel_dtypes(self.dtypes)
        self.triton = triton.kernel(self.traced.program, dtypes)
        self.tables = Tables(self.triton, self.device, ready(self.triton, dtypes, self.device))

    def prepare(self) -> bool:
        """Read and check every tensor, and bring the tables to the device; nothing is written. False: the plan does not fit."""
        if is_capturing(self.device):
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an optimizer with capturable=False. "
                "Pass capturable=True, so that nothing is read on the host."
            )
        if not super().prepare():
            return False
        pointers, lengths, rows, _ = self.native.tables()
        self.tables.update(pointers, lengths, rows)
        if not self.is_clipped:
            self.columns = self._columns()
        return True

    def renew(self) -> None:
        self._fill_table()
        self.columns = self._columns()
        self._clip(self.columns.view(len(self.rows), self.triton.columns))

    def _step_numbers(self) -> Mapping[str, Any]:
        """The host does not know the norm, so it fills in another."""
        return {**self.context.step, "grad_norm": 1.0} if self.is_clipped else self.context.step

    def _columns(self) -> torch.Tensor:
        """What the kernel reads of the table, on the device."""
        count, width = self.triton.columns, len(self.table) // max(1, len(self.rows))
        columns = [self.table[row * width + i] for row in range(len(self.rows)) for i in range(count)]
        return upload(columns, self.device, self.triton.scalar)

    @torch.no_grad()
    def _clip(self, table: torch.Tensor) -> None:
        """Put what depends on the norm, which only the device knows, into its column."""
        for column, node in enumerate(self.traced.program.columns):
            if depends_on(node, "grad_norm"):
                bounds = [as_float(self.context.number(group, "max_grad_norm")) for group, *_ in self.rows]
                norm = self.context.step["grad_norm"]
                given = {"max_grad_norm": upload(bounds, self.device, torch.float64), "grad_norm": norm}
                table[:, column].copy_(value_of(node, given), non_blocking=True)

    def _run(self) -> None:
        self.tables.run(self.columns)
        self.native.commit(self.table)
