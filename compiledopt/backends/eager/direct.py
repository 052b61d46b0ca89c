"""Updates by operators of torch on new tensors, one parameter after the other: autograd, a mode or a tracer sees every one, and
nothing is read on the host."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.backends.batch import Context, Entry, TotalOf, Value
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.eager.evaluated import new_values
from compiledopt.backends.eager.given import given_to
from compiledopt.backends.eager.measured import on, scalar_input, scalar_values, totals_of_entries, wide
from compiledopt.backends.eager.rows import EagerBatch
from compiledopt.backends.layout import HALF, as_operand, as_real, is_sparse
from compiledopt.rules.options import is_number
from compiledopt.rules.totals import told
from compiledopt.rules.trace import named


class DirectBatch(EagerBatch):
    """For differentiable=True; for capturable=True on a device without compiled executor; while a mode or a tracer looks."""

    def prepare(self) -> bool:
        self.pending: list[Entry] = []
        for entry in self.entries:
            grad, traced = entry.param.grad, entry.traced
            if grad is None:
                continue
            check_gradient(traced, entry.param, grad, self.context.owner)
            if is_sparse(grad):
                raise RuntimeError(
                    f"{self.context.owner} does not support sparse gradients with `differentiable` or `capturable`"
                )
            check_state(entry, self.context.owner)
            if "step" in traced.scalar_names and entry.state["step"].requires_grad:
                raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
            if entry.param.is_leaf and entry.param.requires_grad and self._differentiable(entry):
                raise RuntimeError(
                    "a leaf Variable that requires grad is being used in an in-place operation: differentiable=True "
                    "updates parameters that are results themselves, for instance param.clone()"
                )
            self.pending.append(entry)
        return True

    def totals(self, round: int) -> dict[TotalOf, Value]:
        return totals_of_entries(self.pending, self.context, round)

    def renew(self) -> None:
        """Nothing is known before the launch."""

    def launch(self) -> None:
        for entry in self.pending:
            with torch.set_grad_enabled(self._differentiable(entry)):
                results = _by_program(entry, self.context) if entry.traced.elementwise else _by_rule(entry, self.context)
                for name, result in results.items():
                    target = as_operand(entry.param if name == "param" else entry.state[name])
                    target.copy_(result.reshape(target.shape))
            entry.first = False
        self.pending = []

    def _differentiable(self, entry: Entry) -> bool:
        return bool(self.context.groups[entry.group].get("differentiable"))


def _by_program(entry: Entry, context: Context) -> dict[str, torch.Tensor]:
    """The new values of an elementwise rule, by its program."""
    program = entry.traced.program
    operands = {"param": entry.param, "grad": entry.param.grad, **entry.state}
    tensors = [as_operand(operands[node.name]) for node in program.tensors]
    given = {node: scalar_input(entry, context, node.name) for node in program.scalars}
    values = scalar_values(program, given, entry.param.device)
    numbers = [on(values[node], entry.param.device) for node in program.columns]
    results = dict(zip(program.tensor_outputs, new_values(entry, tensors, numbers), strict=True))
    return results | {name: on(values[node], entry.state[name].device) for name, node in program.scalar_outputs.items()}


def _by_rule(entry: Entry, context: Context) -> dict[str, torch.Tensor]:
    """The new values of any other rule, by calling it."""
    rule, traced, given = entry.traced.rule, entry.traced, given_to(entry, context)
    plain = rule.static | rule.branches  # a branch on a float reads nothing
    options = {name: given[name] if name in plain else _as_option(given[name]) for name in rule.options}
    known = {*traced.scalar_names, *traced.states_of(entry.param)}
    present = [name for name in rule.states if name in known]
    states = [_operand(entry.state[name], name in rule.scalars) if name in known else None for name in rule.states]
    assert entry.param.grad is not None
    with told([_as_option(context.number(entry.group, name)) for name in entry.measured.asked]):
        returned = rule(_operand(entry.param, False), _operand(entry.param.grad, False), *states, **options)
    return named(rule, returned, present, torch.Tensor)


def _as_option(value: Any) -> Any:
    """A number as a 0-dim tensor, so that a rule may call its methods; flags as they are."""
    if isinstance(value, tuple | list):
        return tuple(_as_option(one) for one in value)
    if isinstance(value, torch.Tensor):
        return on(value.reshape(()), torch.device("cpu"))
    return on(value, torch.device("cpu")) if is_number(value) else value


def _operand(tensor: torch.Tensor, scalar: bool) -> torch.Tensor:
    """What a rule computes with: a copy; one dimension at least, so that 0-dim numbers do not widen it."""
    if scalar:
        return wide(tensor)
    tensor = as_real(tensor)
    tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor
    return tensor.float() if tensor.dtype in HALF else tensor.clone()
