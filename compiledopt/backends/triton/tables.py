"""What a kernel over a whole model reads beside the tensors themselves, and its launch.

The tables (pointers, lengths, rows, blocks) live on the device and are uploaded again only when they changed. All of it is
asynchronous, on the current stream, and belongs to `prepare`, since it asks for memory: a launch writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from compiledopt.backends.cpp.kernels import launcher
from compiledopt.backends.devices import Streams, as_numbers, on_device, ordinary, reserved, upload
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.prepared import Launch, copying, current, launch_of
from compiledopt.backends.triton.tuning import DEFAULT, Config

STEPS = 16  # of one capture that may have gradients of their own
# Of what is not pinned, the driver takes so many bytes along with the call; before it has more, it may wait for the stream.
INLINE = 1 << 16
Scalars = torch.Tensor | Sequence[float]  # a table with a row for each index in `rows`, or few rows, one after the other


class Tables:
    """Of one kernel on one device.

    Tables are exchanged rather than written to, since a captured graph may read them; `numbers`, the rows of a step whose
    scalars are on the host, belong to no graph and stay where they are, as pointers do until there is a graph. few: how many
    rows may be arguments of the launch, which writes nothing into `numbers`. changes: another number after each exchange.
    """

    few = triton.FEW

    def __init__(self, kernel: triton.TritonKernel, device: torch.device, config: Config = DEFAULT) -> None:
        self.kernel, self.device = kernel, device
        self.block, self.warps = config
        self.known: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self.pointers = self.lengths = self.rows = self.blocks = upload(b"", device)
        self.numbers = upload([], device, kernel.scalar)
        self.filled: Sequence[float] = ()  # what `numbers` holds
        self.reserve = reserved(0, torch.device("cpu")).view(0, 0)  # pinned rows, for the pointers of graphs
        self.captured: dict[bytes, torch.Tensor] = {}  # the reserves that graphs copy their pointers from
        self.kept: list[Any] = []  # what captured graphs read
        self.streams = Streams(device)
        self.compiled: dict[Any, Any] = {}  # what triton.jit gave for one row, for a few, and for a table
        self.none: Sequence[float] = [0.0] * (triton.FEW * kernel.columns)  # in the place of rows
        self.changes = 0
        self.lent = False  # whether native code writes pointers to where they are: what is there is not known here

    def lend(self) -> tuple[int, int] | None:
        """(the driver's function that copies, where the pointers are) for who brings others; None where a graph reads them, or
        there are more of them than the driver copies without waiting."""
        function = None if self.kept or 8 * self.pointers.numel() > INLINE else copying(self.device)
        if function is None:
            return None
        self.lent, self.known = True, (b"", *self.known[1:])
        return function, self.pointers.data_ptr()

    @ordinary
    def update(self, *contents: bytes) -> None:
        """Upload what differs from the last call. contents: pointers, sizes (here, lengths), rows.

        What is on the device is noted last: out of memory on the way, the tables are those of the last call, and known as such.
        """
        if 8 * self.reserve.numel() != STEPS * len(contents[0]):
            self.reserve = reserved(STEPS * len(contents[0]) // 8, self.device).view(STEPS, len(contents[0]) // 8)
        if self.lent and contents[0] and 8 * self.pointers.numel() == len(contents[0]):
            self._write(bytearray(contents[0]))
            contents = (b"", *contents[1:])
        if contents == self.known:
            return
        self.lent = self.lent and not contents[0]
        old = (self.pointers, self.lengths, self.rows)
        same = [content == known for content, known in zip(contents, self.known, strict=True)]
        tables = [t if is_same else upload(c, self.device) for t, c, is_same in zip(old, contents, same, strict=True)]
        arranged = None if same[1] else self._arrange(contents[1])
        self.pointers, self.lengths, self.rows = tables
        if arranged is not None:
            self._take(arranged)
        self.known = (contents[0], contents[1], contents[2])
        self.changes += 1

    def point(self, pointers: bytearray) -> bool:
        """Bring the pointers alone; the rest is as at the last call of `update`. Whether they are where they were: no graph
        reads them there. Asked where no mode is on."""
        if self.kept:
            self.pointers, self.lent = upload(bytes(pointers), self.device), False
            self.changes += 1
        else:
            self._write(pointers)
        self.known = (b"" if self.lent else bytes(pointers), *self.known[1:])
        return not self.kept

    def _write(self, pointers: bytearray) -> None:
        """Write pointers to where those before are."""
        fresh = torch.frombuffer(pointers, dtype=torch.int64)
        self.pointers.copy_(fresh if self.device.type == "cpu" else fresh.pin_memory(), non_blocking=True)

    def _arrange(self, sizes: bytes) -> Any:
        """What depends on the sizes alone."""
        extents = as_numbers(sizes).view(-1, self.kernel.extents)
        return upload(cut(lengths_in_blocks(extents, self.kernel.block), self.block), self.device)

    def _take(self, arranged: Any) -> None:
        self.blocks = arranged

    def read_by_graphs(self) -> tuple[Any, ...]:
        """The tables that a captured graph reads, but for the pointers."""
        return self.lengths, self.rows, self.blocks

    @ordinary
    def fill(self, values: Sequence[float]) -> torch.Tensor:
        """The rows of scalars, on the device, in place."""
        if len(self.filled) != len(values):
            self.numbers = upload(values, self.device, self.kernel.scalar)
            self.changes += 1
        elif self.filled != values:
            fresh = torch.tensor(values, dtype=self.kernel.scalar, device="cpu")
            self.numbers.copy_(fresh if self.device.type == "cpu" else fresh.pin_memory(), non_blocking=True)
        self.filled = values
        return self.numbers

    def room(self, rows: int) -> torch.Tensor:
        """Room for rows on the device, of which another launch fills in what the host does not know."""
        count = rows * self.kernel.columns
        if len(self.numbers) != count:
            self.numbers, self.filled = upload([0.0] * count, self.device, self.kernel.scalar), ()
            self.changes += 1
        return self.numbers

    @ordinary
    def capture(self, pointers: bytes) -> torch.Tensor:
        """The pointers for a graph that is being captured. Gradients made inside of it have new addresses, so it gets a table
        of its own, which is filled by its replays alone, from pinned memory that was allocated before and is kept; steps
        outside of it go on with theirs. The tables that it reads are kept too.

        A copy outside of the graph could not be ordered before the first replay: no event or wait that would do so is allowed
        during a capture, and nothing of ours runs after it.
        """
        table = self.pointers
        if pointers != self.known[0]:
            if pointers not in self.captured:
                self.captured[pointers] = self.reserve[0].copy_(as_numbers(pointers))
                self.reserve = self.reserve[1:]
            table = torch.empty(len(pointers) // 8, dtype=torch.int64, device=self.device)
            table.copy_(self.captured[pointers], non_blocking=True)
        self.kept.append((table, self.read_by_graphs()))
        return table

    def unfit(self, pointers: bytes, lengths: bytes) -> bool:
        """Whether a capture would need other tables than those on the device."""
        has_room = len(self.reserve) > 0 and 8 * self.reserve.shape[1] == len(pointers)
        there = pointers == self.known[0] or pointers in self.captured or has_room
        return not there or lengths != self.known[1]

    def run(self, scalars: Scalars, pointers: torch.Tensor | None = None) -> None:
        """pointers: those of a captured graph."""
        if not self.blocks.shape[0]:
            return
        tensors = [self.pointers if pointers is None else pointers, self.lengths, self.rows, self.blocks]
        table, rows, numbers = self._given(scalars)
        with on_device(self.device):
            self.streams.read(*tensors, table)
            constants = (rows, self.block)
            launch(self.kernel, self.compiled, self.blocks.shape[0], [*tensors, table], numbers, constants, self.warps)

    def run_by_driver(self, scalars: Scalars) -> bool | None:
        """As `run`, by the driver alone: whether it took it; None where it is not asked."""
        table, rows, numbers = self._given(scalars)
        tensors = [self.pointers, self.lengths, self.rows, self.blocks, table]
        found = alone(self.compiled.get((rows, self.block)), self.streams, self.blocks.shape[0], tensors, numbers)
        where = None if found is None else current(self.device)
        return None if found is None or where is None else bool(launcher().launch(found[0], where[3]))

    def _given(self, scalars: Scalars) -> tuple[torch.Tensor, int, Sequence[float]]:
        """(table, how many rows are arguments, those and what fills them up)."""
        if isinstance(scalars, torch.Tensor):
            return scalars, 0, self.none
        is_one = len(scalars) <= self.kernel.columns
        return self.numbers, 1 if is_one else triton.FEW, [*scalars, *self.none[len(scalars) :]]

    def prepared(self, table: torch.Tensor | None, rows: int) -> list[Launch] | None:
        """The launch of `run` without Python, after one with it: by a table, or by so many rows that are those of a step."""
        if not self.blocks.shape[0]:
            return []
        constants = (rows if rows < 2 else triton.FEW, self.block)
        tensors = [self.pointers, self.lengths, self.rows, self.blocks, self.numbers if table is None else table]
        return alone(self.compiled.get(constants), self.streams, self.blocks.shape[0], tensors, self.none, rows)


def launch(
    kernel: triton.TritonKernel,
    compiled: dict[Any, Any],
    count: int,
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[float],
    constants: tuple[Any, ...],
    warps: int,
    most: int | None = None,
    stages: int | None = None,
) -> None:
    """Run `count` blocks of a kernel. compiled: what triton.jit gave before, by `constants`, for one device; most: registers of
    a thread, where it is to keep to them; stages: of loops that load ahead.

    From the second launch on without triton.jit, which looks at each argument to find what it compiled; and without what it
    returned, which makes a function for each launch, unless somebody watches launches.
    """
    made = compiled.get(constants)
    if made is not None:
        given = (*[tensor.data_ptr() for tensor in tensors], *numbers, *constants)
        watching, driver = _triton()
        if _calls(watching.launch_enter_hook) or _calls(watching.launch_exit_hook):
            made[(count, 1, 1)](*given)
        else:
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            made.run(count, 1, 1, stream, made.function, made.packed_metadata, None, None, None, *given)
        return
    options = triton.compile_options(num_warps=warps, maxnreg=most, num_stages=stages)
    made = kernel.function[(count,)](*tensors, *numbers, *constants, **options)
    if hasattr(made, "packed_metadata"):  # the interpreter returns nothing
        compiled[constants] = made


@cache
def _triton() -> tuple[Any, Any]:
    """What Triton knows of who watches its launches, and its driver."""
    from triton import knobs
    from triton.runtime import driver

    return knobs.runtime, driver


def _calls(hook: Any) -> bool:
    """Whether a hook does anything: Triton's own is a chain of functions."""
    return hook is not None and bool(getattr(hook, "calls", True))


def alone(
    made: Any, streams: Streams, count: int, tensors: Sequence[torch.Tensor], numbers: Sequence[float], rows: int = 0
) -> list[Launch] | None:
    """What `launch` does, for the driver alone; None where it is not enough. made: what is compiled; rows: how many of
    `numbers` are those of a step."""
    found = None if made is None or streams.many else launch_of(made, count, tensors, numbers, rows)
    return None if found is None else [found]


def lengths_in_blocks(extents: torch.Tensor, block: int) -> torch.Tensor:
    """How many elements there would be if each row were filled up with blocks. extents: as the launcher has them."""
    if not block:
        return extents[:, 0]
    return extents[:, 0] // extents[:, 1] * (-(-extents[:, 1] // block) * block)


def cut(lengths: torch.Tensor, block: int) -> torch.Tensor:
    """(tensor, part) for each block of the tensors, as int32."""
    counts = (lengths + block - 1) // block
    tensors = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.stack([tensors, torch.arange(len(tensors), device="cpu") - first], 1).to(torch.int32)
