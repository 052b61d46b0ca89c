"""Sparse gradients: the rows they touch, or, where a rule is linear in its gradient, sparse tensors as they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from compiledopt.backends.batch import Entry
from compiledopt.backends.eager.rows import EagerBatch, Row
from compiledopt.backends.eager.sequence import eager


class SparseBatch(EagerBatch):
    sparse = True

    def prepare(self) -> bool:
        for entry in self.entries:
            if entry.param.grad is not None:
                check_decay(entry, self.context.groups[entry.group], self.context.owner)
        return super().prepare()

    def update(self) -> None:
        for row in self.rows:
            function = eager(row.traced.program, foreach=False, compute=row.compute).function
            update = update_rows if row.traced.rule.sparse == "rows" else _update_whole
            for tensors in zip(*row.tensors(), strict=True):
                update(function, row, *tensors)


def check_decay(entry: Entry, group: Mapping[str, Any], owner: str) -> None:
    """Weight decay touches every row. Raises: RuntimeError in torch's words."""
    if entry.traced.rule.sparse == "linear" and group.get("weight_decay", 0) != 0:
        raise RuntimeError(
            f"{owner} with weight_decay: add(sparse, dense) is not supported. Use add(dense, sparse) instead. Set it to 0."
        )
    if group.get("weight_decay", 0) != 0:
        raise RuntimeError("weight_decay option is not compatible with sparse gradients")


def update_rows(function: Callable[..., None], row: Row, param: torch.Tensor, grad: torch.Tensor, *rest: torch.Tensor) -> None:
    """Gather the rows that the gradient names, update those, and put them back; no other row is read or written."""
    grad = grad.coalesce()  # the update is not linear, so a row must occur once
    index = tuple(grad.indices())
    rows = [tensor[index] for tensor in (param, *rest)]
    function(row.columns, rows[0], grad.values(), *rows[1:])
    for tensor, value in zip((param, *rest), rows, strict=True):
        tensor.index_put_(index, value)


def _update_whole(function: Callable[..., None], row: Row, *tensors: torch.Tensor) -> None:
    function(row.columns, *tensors)
