"""One Triton launch over all tensors of a device that share a program and dtypes; a few where the rule reduces.

A few numbers per row change at every step: arguments of the kernel where all tensors share one row, else a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compiledopt.backends.gathered import READY, GatheredBatch
from compiledopt.backends.triton.devices import is_capturing, upload
from compiledopt.backends.triton.readiness import FIRST, tables_for
from compiledopt.backends.triton.tables import Scalars
from compiledopt.rules.options import as_float
from compiledopt.rules.program import depends_on, value_of


class TritonBatch(GatheredBatch):
    """The parameters of one bucket on one device. The 0-dim states are on the host, as torch's without capturable."""

    def _plan(self) -> Any:
        self._make_tables()
        return self._native_plan(0, self.dtypes)

    def _make_tables(self) -> None:
        if is_capturing(self.device):
            raise RuntimeError(FIRST)
        self.triton, self.tables = tables_for(self.traced, self.dtypes, self.device)

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
        self.tables.update(pointers, self._extents(lengths), rows)
        if not self.is_clipped:
            self.columns = self._columns()
        return True

    def _gathered(self, staged: list[torch.Tensor | None] | None) -> bool:
        """Read and check every tensor, whatever its row of scalars."""
        return bool(self.native.gather(None, torch.get_num_threads(), staged) == READY)

    def _extents(self, lengths: bytes) -> bytes:
        extents = {1: lambda: lengths, 3: self.native.shapes, 4: self.native.extents}[self.triton.extents]
        return extents()  # type: ignore[no-any-return]

    def renew(self) -> None:
        self._fill_table()
        self.columns = upload(self._rows_of_columns(), self.device, self.triton.scalar)
        self._clip(self.columns.view(len(self.rows), self.triton.columns))

    def _step_numbers(self) -> Mapping[str, Any]:
        """The host does not know the norm, so it fills in another."""
        return {**self.context.step, "grad_norm": 1.0} if self.is_clipped else self.context.step

    def _columns(self) -> Scalars:
        """What the kernel reads of the table: the only row, or all of them on the device."""
        return self.table[: self.triton.columns] if len(self.rows) == 1 else self.tables.fill(self._rows_of_columns())

    def _rows_of_columns(self) -> list[float]:
        count, width = self.triton.columns, len(self.table) // max(1, len(self.rows))
        return [self.table[row * width + i] for row in range(len(self.rows)) for i in range(count)]

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
