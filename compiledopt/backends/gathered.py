"""What compiled batches share: the native gather, and the table of scalars."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any

import torch

from compiledopt.backends.batch import Backend, Batch, Context, Entry, Unchanged, counted_of, operand_dtypes
from compiledopt.backends.cpp.kernels import launcher
from compiledopt.backends.distributed import is_distributed
from compiledopt.backends.layout import lacks_memory, same_layout
from compiledopt.rules.traced import Traced, Variant

READY, REGROUP = 0, 1
MOST_TENSORS = 16  # of a parameter, its gradient and its states: kMostTensors in shared.h

RowKey = tuple[int, float, tuple[float, ...], tuple[float, ...]]  # index of the group, first, 0-dim states, sizes


def needs_staging(param: torch.Tensor, grad: torch.Tensor) -> bool:
    """Whether a gradient must be brought into its parameter's layout first."""
    return not same_layout(param, grad) or grad.is_conj() or grad.is_neg() or grad.is_inference()


Bucket = tuple[Traced | Variant, tuple[torch.dtype, ...], tuple[torch.dtype, ...], bool, torch.device]


def bucket_of(entry: Entry) -> Bucket:
    """What the parameters of one launch have in common."""
    param = entry.param
    grad = param if param.grad is None else param.grad
    scalars = tuple(entry.state[name].dtype for name in entry.runs.scalar_names)
    return entry.runs, operand_dtypes(entry), scalars, needs_staging(param, grad), param.device


def too_many(entry: Entry) -> str | None:
    """Why a rule has too many tensors for one launch, or None."""
    count = 2 + len(entry.runs.state_names) + len(entry.runs.scalar_names)
    if count <= MOST_TENSORS:
        return None
    return f"{entry.traced.rule.name} has {count} tensors for each parameter, and at most {MOST_TENSORS} are possible"


def relay(traced: Traced, param: torch.Tensor, state: MutableMapping[str, Any]) -> None:
    """Bring states into their parameter's layout, once: a loaded state keeps the layout it was saved in."""
    for name in traced.states_of(param):
        value = state[name]
        if value.shape == param.shape:
            if same_layout(param, value) or value.layout is not torch.strided:
                continue
        elif value.is_contiguous():
            continue
        with torch.inference_mode(False), torch.no_grad():  # else it could never be written to outside of that mode
            state[name] = _laid_like(param, value) if value.shape == param.shape else value.contiguous()


def _laid_like(param: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(param, dtype=value.dtype, requires_grad=False).copy_(value)


def settle_scalars(traced: Traced, param: torch.Tensor, group: Mapping[str, Any], state: MutableMapping[str, Any]) -> None:
    """Bring the 0-dim states that follow from tensors to the parameter's device, and the others to one place where they are in
    several: there too, where `capturable` or some of them want that, as after switching it on between steps, or where only the
    device knows what becomes of them."""
    counted = counted_of(traced, param)
    places = {state[name].device.type for name in counted}
    on_device = group.get("capturable") or traced.rule.follows_norm or traced.measured(param).measures
    is_settled = places == {param.device.type} if on_device else len(places) < 2
    with torch.inference_mode(False), torch.no_grad():  # as above
        for name in traced.scalar_names:
            if name not in counted or not is_settled:
                state[name] = state[name].to(param.device)


class GatheredBackend(Backend):
    """What the backends share whose batches gather natively."""

    executor = "compiled"
    takes_sources = True

    def adopt(self, entry: Entry, group: Mapping[str, Any]) -> None:
        if not is_distributed(entry.param):
            relay(entry.traced, entry.param, entry.state)
        settle_scalars(entry.traced, entry.param, group, entry.state)

    def runs_for(self, entry: Entry) -> Hashable:
        return entry.runs

    def objection(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        traced = entry.traced
        variant = traced.variant(entry.param)
        if isinstance(variant, Variant):
            return self.objection_to_passes(entry, group, variant.told)
        return variant if traced.rule.elementwise else f"{traced.reason}: {variant}"

    def objection_to_passes(self, entry: Entry, group: Mapping[str, Any], told: str) -> str | None:
        """Why a rule cannot run here in passes, or None. told: why it would."""
        raise NotImplementedError


class GatheredBatch(Batch):
    """The parameters of one bucket, gathered natively, and the table of scalars that their kernel reads: one row for each
    (group, first, 0-dim states)."""

    executor = "compiled"
    falls_back = True

    def __init__(self, entries: list[Entry], context: Context) -> None:
        self.entries = entries
        self.context = context
        self.traced = entries[0].runs
        self.device = entries[0].param.device
        _, self.dtypes, self.scalar_dtypes, self.staged, _ = bucket_of(entries[0])
        self.rounded = any(dtype == torch.float32 for dtype in self.scalar_dtypes)
        self.first = [entry.first for entry in entries]
        self.rows: list[RowKey] = []
        self.fresh: list[tuple[float, ...]] = []
        self.table = array("d")
        self.native = self._plan()

    def _plan(self) -> Any:
        """Take what the kernel needs, and make the native gather."""
        raise NotImplementedError

    @property
    def unchanged(self) -> Unchanged:
        return launcher().unchanged  # type: ignore[no-any-return]

    def _native_plan(
        self, address: int, dtypes: Sequence[torch.dtype], device_scalars: bool = False, passes: Any = None
    ) -> Any:
        """The native gather. dtypes: of the operands, and of the 0-dim states where they live on the device; passes: what it
        runs in the kernel's place (cpp/reducing.py)."""
        with torch.inference_mode(False):
            examples = tuple(torch.empty(0, dtype=dtype, device=self.device) for dtype in dtypes)
        return launcher().Plan(
            params=[entry.param for entry in self.entries],
            states=[entry.state for entry in self.entries],
            state_names=self.traced.state_names,
            scalar_names=self.traced.scalar_names,
            examples=examples,
            axes=self.traced.axes,
            sizes=self._block_sizes(),
            places=array("q", chain.from_iterable((entry.number, entry.offset) for entry in self.entries)).tobytes(),
            order=self.order_in_memory,
            kernel=address,
            passes=passes,
            columns=len(self.traced.program.columns),
            scale=2 if self.entries[0].param.is_complex() else 1,
            device_scalars=device_scalars,
        )

    @property
    def order_in_memory(self) -> int:
        """How parameters must lie in memory (rules/program.py)."""
        return self.traced.order

    def _block_sizes(self) -> tuple[int, ...]:
        """Elements of a block, of the operands that are scales or packed; 0 of the others."""
        program = self.traced.program
        return tuple(program.sizes.get(node.name, 0) for node in program.tensors)

    def prepare(self) -> bool:
        """Read and check every tensor, and fill the table; nothing is written. False: the plan no longer fits."""
        threads, staged = self._threads(), self._stage()
        status = REGROUP
        if self.rows:
            self._fill_table() if not self.is_measured else self._expect()
            status = self.native.gather(self.table, threads, staged)
        if status == REGROUP:
            status = self.native.gather(None, threads, staged)
            if status == READY:
                self._regroup()
                self._fill_table()
                status = self.native.gather(self.table, threads, staged)
        # The launch holds references to the tensors, so the copies may go when it is over.
        self.copies = staged
        return bool(status == READY)

    def _threads(self) -> int:
        """Of the host, which read the tensors."""
        return torch.get_num_threads()

    @property
    def is_clipped(self) -> bool:
        return self.traced.is_clipped

    @property
    def is_measured(self) -> bool:
        return self.traced.is_measured

    def renew(self) -> None:
        self._fill_table()

    def _stage(self) -> list[torch.Tensor | None] | None:
        """What stands in for the gradients, or None where they can be read as they are."""
        if self.sources is not None:
            return list(self.sources)
        return [_staged(entry.param) for entry in self.entries] if self.staged else None

    def _regroup(self) -> None:
        """Give each parameter the row of its group and its 0-dim states; parameters in step share one."""
        rows: dict[RowKey, int] = {}
        self.native.forget_rows()
        for index, *states in self.native.active():
            first = 1.0 if self.first[index] and self.traced.reads_first else 0.0
            row = (self.entries[index].group, first, tuple(states), self._sizes(self.entries[index]))
            self.native.set_row(index, rows.setdefault(row, len(rows)))
        self.rows = list(rows)

    def _sizes(self, entry: Entry) -> tuple[float, ...]:
        """The parameter's own numbers that the rule reads; of a shard, those of all of it."""
        return self.traced.scalars.sizes(entry.param.shape if entry.whole is None else entry.whole.shape)

    def _fill_table(self) -> None:
        values: list[float] = []
        self.fresh = []
        numbers, step = self.context.numbers, self._step_numbers()
        for group, first, states, sizes in self.rows:
            columns, fresh = self.traced.scalars(numbers[group], step, (first, *states, *sizes))
            if self.rounded:
                fresh = list(array("f", fresh))
            self.fresh.append(tuple(fresh))
            values += columns
            values += states
            values += fresh
        self.table = array("d", values)

    def _expect(self) -> None:
        """The table with nothing but the states that must be found: the columns follow when sums are known (`renew`)."""
        values: list[float] = []
        for _, _, states, _ in self.rows:
            values += [0.0] * len(self.traced.program.columns)
            values += states
            values += states
        self.table = array("d", values)

    def _step_numbers(self) -> Mapping[str, Any]:
        """The step's own numbers as the host knows them."""
        return self.context.step

    def launch(self) -> None:
        self._run()
        self.copies = None
        if any(row[1] for row in self.rows):
            self.first = [False] * len(self.entries)
            self.rows = []
        else:
            self.rows = [(g, first, fresh, own) for (g, first, _, own), fresh in zip(self.rows, self.fresh, strict=True)]

    def _run(self) -> None:
        """Run the kernel on what was gathered, and commit the 0-dim states."""
        raise NotImplementedError


def _staged(param: torch.Tensor) -> torch.Tensor | None:
    grad = param.grad
    if grad is None or not needs_staging(param, grad) or lacks_memory(grad):  # which the gather refuses
        return grad
    return torch.empty_like(param, dtype=grad.dtype, requires_grad=False).copy_(grad)
