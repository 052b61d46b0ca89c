"""The for-loop: one tensor after the other. Serves odd layouts, and differentiable=True through the rule itself."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.compiler.rule import as_float
from compiledopt.compiler.trace import is_number
from compiledopt.executors.eager import HALF, EagerBatch, Row, bytes_of
from compiledopt.executors.entries import Entry, as_real, check_gradient, check_state, is_sparse
from compiledopt.executors.whole import as_option, given_to


class ForLoopBatch(EagerBatch):
    """Each parameter by the in-place sequence derived from its program."""

    def room(self, row: Row) -> int:
        temporaries = row.traced.eager(foreach=False, compute=row.compute).temporaries
        return temporaries * max(map(bytes_of, row.params), default=0)

    def update(self) -> None:
        for row in self.rows:
            function, columns = row.traced.eager(foreach=False, compute=row.compute).function, row.columns
            for tensors in zip(*row.tensors(), strict=True):
                function(columns, *tensors)


class DirectBatch(EagerBatch):
    """Each parameter by calling the rule on its tensors: autograd sees every operation, and numbers may be tensors.

    Also for capturable=True on a device without compiled executor: nothing is read on the host.
    """

    def prepare(self) -> bool:
        self.pending: list[Entry] = []
        for entry in self.entries:
            grad, traced = entry.param.grad, entry.traced
            if grad is None:
                continue
            check_gradient(traced, entry.param, grad, self.owner)
            if is_sparse(grad):
                raise RuntimeError(f"{self.owner} does not support sparse gradients with `differentiable` or `capturable`")
            check_state(entry, self.owner)
            if any(entry.state[name].requires_grad for name in traced.scalar_names):
                raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
            if entry.param.is_leaf and entry.param.requires_grad and self._differentiable(entry):
                raise RuntimeError(
                    "a leaf Variable that requires grad is being used in an in-place operation: differentiable=True "
                    "updates parameters that are results themselves, for instance param.clone()"
                )
            self.pending.append(entry)
        return True

    def launch(self) -> None:
        for entry in self.pending:
            with torch.set_grad_enabled(self._differentiable(entry)):
                self._update_one(entry)
            entry.first = False
        self.pending = []

    def _differentiable(self, entry: Entry) -> bool:
        return bool(self.groups[entry.group].get("differentiable"))

    def _update_one(self, entry: Entry) -> None:
        rule, given = entry.traced.rule, given_to(entry, self.groups[entry.group])
        if entry.traced.elementwise:
            options = {n: given[n] if n in rule.static else _number(given[n]) for n in rule.options}
        else:
            options = {name: as_option(rule, name, given[name]) for name in rule.options}
        known = {*entry.traced.scalar_names, *entry.traced.states_of(entry.param)}
        present = [name if name in known else None for name in rule.states]
        states = [None if name is None else _operand(entry.state[name], name in rule.scalars) for name in present]
        assert entry.param.grad is not None
        results = rule(_operand(entry.param, False), _operand(entry.param.grad, False), *states, **options)
        for name, result in zip(("param", *present), results, strict=True):
            if name is not None:
                target = as_real(entry.param if name == "param" else entry.state[name])
                target.copy_(result.reshape(target.shape))


def _number(value: Any) -> Any:
    """A tensor of one element as a 0-dim one, so that it broadcasts without changing a shape."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_number, value))
    if isinstance(value, torch.Tensor):
        return value.reshape(())
    return as_float(value) if is_number(value) else value  # NumPy's take over a product with a tensor


def _operand(tensor: torch.Tensor, scalar: bool) -> torch.Tensor:
    """What the rule computes with: a copy, since the original is about to be overwritten and autograd may need it."""
    if scalar and tensor.device.type != "mps":
        return tensor.to(torch.float64, copy=True)
    tensor = as_real(tensor)
    if tensor.dim() == 0:  # a 0-dim float32 parameter and a 0-dim float64 scalar would make a float64
        tensor = tensor.reshape(1)
    return tensor.float() if tensor.dtype in HALF else tensor.clone()
