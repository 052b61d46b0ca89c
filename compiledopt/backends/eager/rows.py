"""What foreach and the for-loop share: gathering in Python, rows, and the commit of the 0-dim states.

A gather by hand costs 2 µs a parameter, as much as two operations of SGD on a small one. So what a full check saw is kept
as lists, and the next step compares lists: 0.4 µs.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry, TotalOf, Value, over_processes, total_of
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.inductor import Bits, compute_dtype, evaluate
from compiledopt.backends.layout import HALF, as_real, held, is_sparse
from compiledopt.rules.scalar_part import Measurement

# 0 where the storage was resized to nothing. Of gradients and states too it would take a tenth of SGD's step.
ADDRESS = torch.Tensor.data_ptr
LIMIT = 64 * 2**20  # bytes of temporaries, where a longer list means fewer launches


class Row:
    """Parameters with the same scalars, dtypes and device. values: their 0-dim states; columns, fresh: what follows."""

    def __init__(self, entry: Entry, values: tuple[float, ...], dtypes: Sequence[torch.dtype]) -> None:
        self.traced, self.group, self.first, self.values = entry.traced, entry.group, entry.first, values
        self.dtype = entry.param.dtype.to_real()
        self.compute = compute_in([dtype.to_real() for dtype in dtypes])
        self.entries: list[Entry] = []
        self.grads: list[torch.Tensor] = []
        self.columns: list[float] = []
        self.fresh: list[float] = []
        self.sizes: tuple[float, ...] = ()
        self.room: int | None = None
        self.bounds: dict[int, list[int]] = {}  # where foreach cuts, by number of temporaries

    def add(self, entry: Entry, grad: torch.Tensor) -> None:
        self.entries.append(entry)
        self.grads.append(grad)

    def seal(self) -> None:
        """Keep what was checked, for `is_as_before`."""
        self.params = [entry.param for entry in self.entries]
        self.dicts = [entry.state for entry in self.entries]
        self.states = [[state[name] for state in self.dicts] for name in self.traced.state_names]
        self.shapes = [param.shape for param in self.params]
        self.dtypes = [grad.dtype for grad in self.grads]
        self.layouts = [grad.layout for grad in self.grads]
        self.devices = [param.device for param in self.params]
        plain = set(map(type, self.params)) <= {torch.Tensor, torch.nn.Parameter}
        self.lie_in_memory = plain and all(map(may_have_address, self.params))
        self.inference = torch.is_inference_mode_enabled()  # outside of it, some states cannot be written

    def is_as_before(self) -> bool:
        """Read the gradients; whether nothing changed that the full check looked at, and no parameter fell behind."""
        grads: list[Any] = [param.grad for param in self.params]
        self.grads = grads
        try:
            if [grad.layout for grad in grads] != self.layouts or [grad.dtype for grad in grads] != self.dtypes:
                return False
        except AttributeError:  # a gradient that is None
            return False
        if self.lie_in_memory and 0 in map(ADDRESS, self.params):
            return False
        if [grad.shape for grad in grads] != self.shapes or [param.shape for param in self.params] != self.shapes:
            return False
        if [param.device for param in self.params] != self.devices or torch.is_inference_mode_enabled() != self.inference:
            return False
        for name, tensors in zip(self.traced.state_names, self.states, strict=True):
            if not all(map(is_, [state.get(name) for state in self.dicts], tensors)):
                return False
        return self._scalars_are_as_before()

    def _scalars_are_as_before(self) -> bool:
        try:
            for name, value in zip(self.traced.scalar_names, self.values, strict=True):
                if [state[name].item() for state in self.dicts] != [value] * len(self.dicts):
                    return False
        except (KeyError, AttributeError, RuntimeError):  # missing, not a tensor, several elements: the full check tells
            return False
        return True

    def evaluate(self, context: Context) -> None:
        row = (float(self.first), *self.values, *self.sizes)
        columns, self.fresh = self.traced.scalars(context.numbers[self.group], context.step, row)
        self.columns = [held(value, self.dtype) for value in columns]

    def tensors(self) -> list[list[torch.Tensor]]:
        """The operands as lists, in the program's order; complex ones as two reals."""
        lists = [self.params, self.grads, *self.states]
        return [list(map(as_real, tensors)) for tensors in lists] if self.grads[0].is_complex() else lists

    def commit(self) -> None:
        """The new 0-dim states, once the tensors are written."""
        for entry in self.entries:
            entry.first = False
        for name, value in zip(self.traced.scalar_names, self.fresh, strict=True):
            for state in self.dicts:
                state[name].fill_(held(value, state[name].dtype))
        single = any(self.dicts[0][name].dtype == torch.float32 for name in self.traced.scalar_names)
        self.values = tuple(array("f", self.fresh)) if single else tuple(self.fresh)
        self.first = False


class EagerBatch(Batch):
    """Parameters that an eager executor updates with the sequence derived from their programs."""

    executor = "for-loop"
    sparse = False  # whether its gradients are

    def __init__(self, entries: list[Entry], context: Context) -> None:
        self.entries = entries
        self.context = context
        self.rows: list[Row] = []
        self.idle: list[torch.Tensor] = []  # parameters that had no gradient when the rows were made

    def prepare(self) -> bool:
        """Read and check every tensor, and compute the scalars; nothing is written."""
        kept = self.rows and all(param.grad is None for param in self.idle) and all(row.is_as_before() for row in self.rows)
        if not kept and not self._make_rows():
            return False
        for row in self.rows:
            row.evaluate(self.context)
            if row.room is None:
                row.room = self.room(row)
            reserve(row.room, row.devices[0])
        return True

    def room(self, row: Row) -> int:
        """Bytes of temporaries that the update of a row holds at once."""
        return 0

    def _make_rows(self) -> bool:
        """The full check of every parameter; False where a gradient became sparse, or dense.

        Raises: RuntimeError or TypeError, before anything is written.
        """
        rows: dict[tuple[Any, ...], Row] = {}
        self.idle = []
        for entry in self.entries:
            param, grad, state, traced = entry.param, entry.param.grad, entry.state, entry.traced
            if grad is None:
                self.idle.append(param)
                continue
            if is_sparse(grad) is not self.sparse:
                return False
            check_gradient(traced, param, grad, self.context.owner)
            check_state(entry, self.context.owner)
            dtypes = (param.dtype, grad.dtype, *[state[name].dtype for name in traced.state_names])
            values = tuple([state[name].item() for name in traced.scalar_names])
            sizes = traced.scalars.sizes(param.shape if entry.whole is None else entry.whole.shape)
            key = (traced, entry.group, entry.first, param.device, dtypes, values, sizes)
            if key not in rows:
                rows[key] = Row(entry, values, dtypes)
                rows[key].sizes = sizes
            rows[key].add(entry, grad)
        self.rows = list(rows.values())
        for row in self.rows:
            row.seal()
        return True

    @torch.no_grad()
    def totals(self, round: int) -> dict[TotalOf, Value]:
        found: dict[TotalOf, Value] = {}
        for row in self.rows:
            if round >= len(row.traced.measures):
                continue
            measure = row.traced.measures[round]
            known = self.context.numbers[row.group], self.context.step, (float(row.first), *row.values, *row.sizes)
            columns = measure.scalars(*known)[0]
            for tensors in zip(*row.tensors(), strict=True):
                for node, value in zip(measure.totals, totals_of(measure, tensors, columns), strict=True):
                    key = total_of(node, row.group)
                    found[key] = found.get(key, 0.0) + over_processes(value, row.entries[0])
        return found

    def renew(self) -> None:
        for row in self.rows:
            row.evaluate(self.context)

    def launch(self) -> None:
        with torch.no_grad():
            self.update()
            for row in self.rows:
                row.commit()
                row.grads = []

    def update(self) -> None:
        raise NotImplementedError


def may_have_address(param: torch.Tensor) -> bool:
    """Whether a parameter has memory whose address is known, unless that was given back."""
    return param.device.type in ("cpu", "cuda", "xpu") and param.layout is torch.strided and param.numel() > 0


def totals_of(
    measure: Measurement, tensors: Sequence[torch.Tensor], columns: Sequence[Any], bits: Bits | None = None
) -> list[torch.Tensor]:
    """What a parameter contributes, as 0-dim float64 tensors. tensors: the operands of its rule; bits: as of `evaluate`."""
    reads = [tensors[index] for index in measure.reads]
    wide = compute_dtype([tensor.dtype for tensor in reads])
    given = [tensor.to(wide) for tensor in reads]
    places = [given[0]] * len(measure.totals)
    numbers = [torch.as_tensor(value, dtype=wide, device=given[0].device) for value in columns]
    values = evaluate(measure.program, [*given, *places], numbers, None, bits)
    return [value.sum(dtype=torch.float32 if value.device.type == "mps" else torch.float64) for value in values]


def reserve(room: int, device: torch.device) -> None:
    """Ask for the memory of an update's temporaries before its first write, and give it back: where there is none, this
    raises while nothing is changed. A second call finds what the first gave back (4 µs on the CPU, untouched)."""
    if room and device.type != "meta":
        torch.empty(room, dtype=torch.uint8, device=device)


def bytes_of(param: torch.Tensor) -> int:
    return param.numel() * max(4, param.element_size())


def compute_in(dtypes: Sequence[torch.dtype]) -> torch.dtype | None:
    """The dtype to compute in, where it is not the one of all the tensors."""
    distinct = set(dtypes)
    if len(distinct) == 1 and not distinct & set(HALF):
        return None
    return compute_dtype(dtypes)


def cut(params: Sequence[torch.Tensor], temporaries: int, limit: int) -> list[int]:
    """Where to cut a list so that the temporaries of each part stay under `limit` bytes, or one parameter's."""
    bounds, used = [0], 0
    for index, param in enumerate(params):
        need = temporaries * bytes_of(param)
        if index > bounds[-1] and used + need > limit:
            bounds.append(index)
            used = 0
        used += need
    return [*bounds, len(params)]
