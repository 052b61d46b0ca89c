"""What parameters contribute to sums over all of them, by operators of torch; and the scalar part on tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from compiledopt.backends.batch import Context, Entry, TotalOf, Value, over_processes, total_of
from compiledopt.backends.distributed import whole
from compiledopt.backends.eager.evaluated import bits_of, totals_in_blocks
from compiledopt.backends.eager.rows import totals_of
from compiledopt.backends.layout import as_operand
from compiledopt.rules.ops import apply
from compiledopt.rules.program import Node, Program


@torch.no_grad()
def totals_of_entries(entries: Iterable[Entry], context: Context, round: int) -> dict[TotalOf, Value]:
    """The sums of one round over entries that have gradients, one entry after the other."""
    found: dict[TotalOf, Value] = {}
    for entry in entries:
        known = entry.measured
        if round >= len(known.measures):
            continue
        measure = known.measures[round]
        operands = {"param": entry.param, "grad": entry.param.grad, **entry.state}
        tensors = [as_operand(whole(operands[node.name])) for node in known.program.tensors]
        given = {node: scalar_input(entry, context, node.name) for node in measure.program.scalars}
        values = scalar_values(measure.program, given, entry.param.device)
        columns = [on(values[node], entry.param.device) for node in measure.program.columns]
        if measure.program.blocks:
            sums = totals_in_blocks(entry, measure, tensors, columns)
        else:
            sums = totals_of(measure, tensors, columns, bits_of(entry))
        for node, value in zip(measure.totals, sums, strict=True):
            key = total_of(node, entry.group)
            # A rule that is called on tensors has whole ones, on every process.
            found[key] = found.get(key, 0.0) + (over_processes(value, entry) if entry.traced.elementwise else value)
    return found


def scalar_input(entry: Entry, context: Context, name: str) -> Any:
    if name == "first":
        return float(entry.first)
    if name in entry.measured.scalars.size_names:
        return entry.measured.scalars.size(name, (entry.param if entry.whole is None else entry.whole).shape)
    value = entry.state[name] if name in entry.measured.scalar_names else context.number(entry.group, name)
    return wide(value) if isinstance(value, torch.Tensor) else float(value)


def wide(value: torch.Tensor) -> torch.Tensor:
    """A copy in float64, which mps does not have: the original is about to be overwritten."""
    return value.reshape(()).to(torch.float32 if value.device.type == "mps" else torch.float64, copy=True)


def scalar_values(program: Program, given: Mapping[Node, Any], device: torch.device) -> dict[Node, Any]:
    """The scalar part on tensors: floats where only floats go in, so that numbers stay numbers. given: the 0-dim inputs."""
    values = dict(given)
    for node in program.scalar_part:
        args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
        if any(isinstance(arg, torch.Tensor) for arg in args):
            args = [on(arg, device) for arg in args]
            if node.op == "where":
                args[0] = args[0] != 0
        values[node] = apply(node.op, *args)
    return values


def on(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A number as a 0-dim tensor; float64, or `dtype`."""
    dtype = dtype or (torch.float32 if device.type == "mps" else torch.float64)
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype, non_blocking=True)
    return torch.full((), float(value), dtype=dtype, device=device)
