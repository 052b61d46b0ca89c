"""What a rule that is called on tensors is given: its options, its operands, and random numbers."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.distributed import is_distributed, put, whole
from compiledopt.backends.eager.evaluated import noise_bits
from compiledopt.backends.layout import HALF, is_dense
from compiledopt.rules.noise import Noise
from compiledopt.rules.options import NOISE, SEED, as_float, is_number
from compiledopt.rules.rule import Rule
from compiledopt.rules.totals import told

__all__ = [
    "as_option",
    "drawn_from",
    "given_to",
    "may_write",
    "meta_number",
    "noise_bits",
    "number",
    "operand",
    "put_back",
    "told",
]


def given_to(entry: Entry, context: Context) -> dict[str, Any]:
    """What a rule called on tensors reads its options from: the group, the step, and what is the parameter's own."""
    own = {**context.step, "first": float(entry.first), "dtype": entry.param.dtype}
    group = context.groups[entry.group]
    own[NOISE] = Noise(lambda: noise_bits(entry, group[SEED]))
    return {name: own[name] if name in own else group[name] for name in entry.traced.rule.options}


def as_option(rule: Rule, name: str, value: Any) -> Any:
    """What a rule is given for an option: a tensor, but a plain number where it branches on being zero."""
    if name in rule.static:
        return value
    return as_float(value) if name in rule.branches and is_number(value) else number(value)


def number(value: Any) -> Any:
    """A number as a 0-dim float64 tensor, so that a rule may call its methods; flags as they are."""
    if isinstance(value, tuple | list):
        return tuple(map(number, value))
    if isinstance(value, torch.Tensor):
        return value.detach().reshape(()).double()
    return torch.tensor(as_float(value), dtype=torch.float64, device="cpu") if is_number(value) else value


def meta_number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(meta_number, value))
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def operand(tensor: torch.Tensor) -> torch.Tensor:
    """What a rule computes with: float32 for the half types; one dimension at least, so that 0-dim numbers do not widen it."""
    tensor = whole(tensor)
    tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor
    return tensor.float() if tensor.dtype in HALF else tensor


def may_write(home: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether what is given may be written: a copy, or a dense tensor that stands nowhere else."""
    return not is_distributed(home) and (given is not home or (is_dense(home) and not home.is_inference()))


def put_back(homes: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Write new values where the operands stand. Mutates: `homes`."""
    if homes[0].shape != values[0].shape:  # 0-dim ones, that `operand` gave a dimension
        values = [value.reshape(home.shape) for home, value in zip(homes, values, strict=True)]
    if any(map(is_distributed, homes)):
        for home, value in zip(homes, values, strict=True):
            put(home, value.to(home.dtype)) if is_distributed(home) else home.copy_(value)
    else:
        torch._foreach_copy_(homes, values)


def drawn_from(bits: torch.Tensor) -> Noise:
    """Random numbers of random bits for each element."""
    return Noise(lambda: bits)
