"""One Triton launch over all tensors of a device that share a program and dtypes; a few where the rule reduces.

A few numbers per row change at every step: arguments of the kernel where all tensors share one row, else a table.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from compiledopt.backends.batch import Standing, Steady, spread_of
from compiledopt.backends.devices import is_capturing, upload
from compiledopt.backends.gathered import READY, GatheredBatch
from compiledopt.backends.triton.norm import Squares, check_norm, fills_in
from compiledopt.backends.triton.readiness import FIRST, tables_for
from compiledopt.backends.triton.steady import steady
from compiledopt.backends.triton.tables import Scalars
from compiledopt.errors import CompileError
from compiledopt.rules.options import NORM, as_float
from compiledopt.rules.program import depends_on, value_of


class TritonBatch(GatheredBatch):
    """The parameters of one bucket on one device. The 0-dim states are on the host, as torch's without capturable."""

    scalars_there: ClassVar[bool] = False  # whether the scalar part is computed on the device

    def _plan(self) -> Any:
        self._make_tables()
        return self._native_plan(0, self.dtypes)

    def _make_tables(self) -> None:
        if is_capturing(self.device):
            raise RuntimeError(FIRST)
        self.triton, self.tables = tables_for(self.traced, self.dtypes, self.device)
        self.graph_pointers: torch.Tensor | None = None
        self.has_norm = False  # whether the columns hold what the measured norm makes of them
        self.norm: Squares | None = None
        if self.is_clipped:
            kernel = check_norm(self.traced, self.dtypes, self.triton, self.device, self.scalars_there)
            self.norm = Squares(kernel, self.device, self.triton.operands, self.triton.scalar)
        self.fills_in = self.is_clipped and fills_in(self.traced.program)
        self.measured: tuple[torch.Tensor, bool, torch.Tensor | None] | None = None  # (place, first, table) of the last norm

    def prepare(self) -> bool:
        """Read and check every tensor, and bring the tables to the device; nothing is written. False: the plan does not fit."""
        if is_capturing(self.device):
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an optimizer with capturable=False. "
                "Pass capturable=True, so that nothing is read on the host."
            )
        if not super().prepare() or not self._has_uploaded():
            return False
        self._use_table()
        return True

    def _has_uploaded(self) -> bool:
        """Bring the tables to the device. False: a kernel is wrong for what it would work on, as `refused` says."""
        try:
            self._upload()
        except CompileError as error:
            self.refused = f"the kernel cannot run on {self.device}: {error}"
        return self.refused is None

    def _upload(self) -> None:
        pointers, lengths, rows, _ = self.native.tables()
        self.tables.update(pointers, self._extents(lengths), rows)
        if self.norm is not None:
            self.norm.update(lengths)

    def _use_table(self) -> None:
        self.has_norm = False
        if self.norm is None:
            self.columns = self._columns()

    def _expect(self) -> None:
        """All of the table: what only the device knows is filled in there."""
        self._fill_table()

    def _gathered(self, staged: list[torch.Tensor | None] | None) -> bool:
        """Read and check every tensor, whatever its row of scalars."""
        return bool(self.native.gather(None, self._threads(), staged) == READY)

    def _threads(self) -> int:
        """The host's threads sleep, since the work is elsewhere."""
        return 1

    def _extents(self, lengths: bytes) -> bytes:
        extents = {1: lambda: lengths, 4: self.native.extents, 5: self.native.shapes}[self.triton.extents]
        return extents()  # type: ignore[no-any-return]

    def measure_into(self, place: torch.Tensor, first: bool, last: bool) -> bool:
        if self.norm is None or spread_of(self.entries[0]) is not None:
            return False
        table, bounds = self._norms_columns() if first and last else (None, ())
        self.norm.run(self._pointers(), place, first, table, bounds)
        self.has_norm = table is not None
        self.measured = place, first, table
        return True

    def _norms_columns(self) -> tuple[torch.Tensor | None, Sequence[float]]:
        """The table that the launch fills in, and the bound of the norm of each row. The rest of few rows are arguments."""
        if not self.fills_in:
            return None, ()
        if self._are_arguments():
            self.columns = self._rows_of_columns()
            return self.tables.room(len(self.rows)), self._bounds()
        self.columns = table = self.tables.fill(self._rows_of_columns())
        return table, self._bounds()

    def _bounds(self) -> list[float]:
        """Of the norm, for each row."""
        return [as_float(self.context.number(group, "max_grad_norm")) for group, *_ in self.rows]

    def _pointers(self) -> torch.Tensor:
        """The table of pointers, of a graph its own."""
        if not is_capturing(self.device):
            return self.tables.pointers
        if self.graph_pointers is None:
            self.graph_pointers = self.tables.capture(self.native.tables()[0])
        return self.graph_pointers

    def renew(self) -> None:
        if self.has_norm:
            return
        self.columns = upload(self._rows_of_columns(), self.device, self.triton.scalar)
        self._clip(self.columns.view(len(self.rows), self.triton.columns))

    def _step_numbers(self) -> Mapping[str, Any]:
        """The host does not know the norm, so it fills in another."""
        return {**self.context.step, NORM: 1.0} if self.is_clipped else self.context.step

    def _columns(self) -> Scalars:
        """What the kernel reads of the table: a few rows, or all of them on the device."""
        return self._rows_of_columns() if self._are_arguments() else self.tables.fill(self._rows_of_columns())

    def _are_arguments(self) -> bool:
        """Whether the rows are arguments of the launch."""
        return len(self.rows) <= self.tables.few

    def _rows_of_columns(self) -> list[float]:
        count, width = self.triton.columns, len(self.table) // max(1, len(self.rows))
        return [self.table[row * width + i] for row in range(len(self.rows)) for i in range(count)]

    @torch.no_grad()
    def _clip(self, table: torch.Tensor) -> None:
        """Put what depends on the norm, which only the device knows, into its column."""
        for column, node in enumerate(self.traced.program.columns):
            if depends_on(node, NORM):
                bounds = self._bounds()
                norm = self.context.step[NORM]
                given = {"max_grad_norm": upload(bounds, self.device, torch.float64), NORM: norm}
                table[:, column].copy_(value_of(node, given), non_blocking=True)

    def _run(self) -> None:
        self.launch_kernels()
        self.native.commit(self.table)

    # ---- for the steady step ----

    @property
    def steady(self) -> Callable[[Standing], Steady | None] | None:
        return steady

    def is_being_captured(self) -> bool:
        return is_capturing(self.device)

    def reads(self, value: Any) -> bool:
        """Whether a kernel reads a number that is a tensor where it is."""
        return False

    def bring(self) -> bool | None:
        """What `prepare` does after a gather that found other tensors, or after numbers changed. False: the plan is unfit;
        None: what launches are given lies elsewhere now."""
        changes = self._changes()
        self.context.read()
        if not self._has_uploaded():
            return False
        if self.norm is not None and self.measured is not None and self.measured[2] is not None:
            self.norm.bring(self._bounds())
        return changes == self._changes() or None

    def point(self, pointers: bytearray) -> bool | None:
        """What `bring` does where gradients moved, and nothing else changed. pointers: as `Plan.tables` has them."""
        return self.tables.point(pointers) or None

    def _changes(self) -> int:
        """Another number after each exchange of what a launch is given."""
        return self.tables.changes + (0 if self.norm is None else self.norm.changes)

    def take(self, table: bytes) -> None:
        """What `prepare` does with the table of scalars, float64."""
        self.table = array("d", table)
        self._use_table()

    def fill(self, table: bytes) -> None:
        """What `take` does for a launch by the driver alone."""
        self.table = array("d", table)
        self.tables.fill(self._rows_of_columns())

    def fills(self) -> bool:
        """Whether `fill` is asked."""
        return not self._are_arguments()

    def prepared_launches(self) -> list[Any] | None:
        """What `launch_kernels` does, for the driver alone (prepared.Launch); None where it is not enough."""
        return self.tables.prepared(None, len(self.rows) if self._are_arguments() else 0)

    def prepared_norm(self) -> list[Any] | None:
        """What `measure_into` did in the last step, likewise."""
        if self.norm is None:
            return []
        if self.measured is None or not self._is_measured_whole():
            return None
        return self.norm.prepared(self.tables.pointers, *self.measured)

    def _is_measured_whole(self) -> bool:
        """Whether the norm's launch leaves all that depends on the norm where the kernel reads it."""
        return self.has_norm

    def launch_kernels(self) -> None:
        self.tables.run(self.columns)
