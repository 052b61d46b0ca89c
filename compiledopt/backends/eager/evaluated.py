"""A program by torch's operators on one parameter, in blocks and with random bits where it has those (storage/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Entry
from compiledopt.backends.blocks import Blocks
from compiledopt.backends.distributed import is_distributed
from compiledopt.backends.eager.arithmetic import AS_KERNELS
from compiledopt.backends.inductor import Arithmetic, Bits, compute_dtype, evaluate, is_fused
from compiledopt.backends.layout import as_real, is_dense
from compiledopt.rules.options import STEP
from compiledopt.rules.program import ELEMENTS, Program
from compiledopt.rules.random import bits_at, key
from compiledopt.rules.scalar_part import Measurement


def new_values(entry: Entry, tensors: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What an elementwise rule writes, in the order of its program. tensors: its operands; numbers: its columns, float64."""
    return _evaluated(entry, entry.traced.program, tensors, numbers)


def totals_in_blocks(
    entry: Entry, measure: Measurement, tensors: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What a parameter whose values are kept in blocks contributes to totals, as 0-dim float64 tensors. tensors: the operands
    of its rule; numbers: the columns."""
    reads = [tensors[index] for index in measure.reads]
    found = _evaluated(entry, measure.program, [*reads, *[tensors[0]] * len(measure.totals)], numbers)
    return [value.sum(dtype=torch.float32 if value.device.type == "mps" else torch.float64) for value in found]


def _evaluated(
    entry: Entry, program: Program, tensors: Sequence[torch.Tensor], numbers: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    wide = compute_dtype([tensor.dtype for tensor in tensors])
    columns = [number.to(wide) for number in numbers]
    if not program.blocks:
        given = [tensor.to(wide, copy=True) for tensor in tensors]
        return evaluate(program, given, columns, None, bits_of(entry))
    # Codes are the same bit for bit, which the plain ones above are with those of parameters in float32; mps has no float64.
    exact = wide is torch.float32 and is_fused(entry.param.device) and entry.param.device.type != "mps"
    special: Arithmetic | None = AS_KERNELS if exact else None
    cut = Blocks(entry.param.shape, program.sizes)
    axes = {node.name: node.axes for node in program.tensors}
    cuts = [cut.into(tensor, axes[name], name) for name, tensor in zip(axes, tensors, strict=True)]
    found = evaluate(program, [one.to(wide, copy=True) for one in cuts], columns, special, bits_of(entry, cut))
    return [cut.back(value, axes[name], name) for name, value in zip(program.tensor_outputs, found, strict=True)]


def noise_bits(entry: Entry, seed: Any) -> torch.Tensor:
    """32 random bits for each element of a parameter at its next update, for rules that are called on tensors."""
    device = entry.param.device
    if not isinstance(seed, torch.Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)  # no copy from the host, which no graph may capture
    bits = bits_of(entry)(*(value.reshape(()).to(device, torch.int64) for value in (seed, entry.state[STEP])))
    return bits.reshape(1) if bits.dim() == 0 else bits  # as the operands


def bits_of(entry: Entry, cut: Blocks | None = None) -> Bits:
    """The random bits of a parameter, or of the part of it that is here."""

    def bits(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        param, device = as_real(entry.param), entry.param.device
        number = torch.full((), entry.number, dtype=torch.int64, device=device)
        element = torch.arange(param.numel(), dtype=torch.int32, device=device) + entry.offset
        # In the order of memory, as kernels count them; in blocks by the shape, which those follow.
        if cut is None and not is_distributed(param) and is_dense(param):
            element = element.as_strided(param.shape, param.stride())
        element = element.reshape(param.shape)
        element = element if cut is None else cut.into(element, ELEMENTS)
        return bits_at(key(seed.to(torch.int64), step.to(torch.int64), number), element)

    return bits
