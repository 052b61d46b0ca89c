"""`rounding`: what becomes of a parameter in a half type whose update is smaller than half a unit in its last place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from compiledopt.rules.composed import operation
from compiledopt.storage.codec import Rounding
from compiledopt.storage.rounded import NEAREST, STOCHASTIC


@operation
def joined(param: Any, rest: Any) -> Any:
    """The float32 whose upper 16 bits, rounded up from the lower half on, are a bfloat16, and whose lower 16 are `rest`."""
    master = param.to(torch.float32).view(torch.int32) + rest.to(torch.int32)
    return master.view(torch.float32).to(param.dtype)


@operation
def upper_part(x: Any) -> Any:
    """The bfloat16 that stands for a float32."""
    bits = torch.where(x == x, x, torch.nan).to(torch.float32).view(torch.int32)
    return ((bits + 0x8000) & -0x10000).view(torch.float32).to(x.dtype)


@operation
def lower_part(x: Any) -> Any:
    """What the bfloat16 lacks, −2^15 to 2^15 − 1."""
    bits = torch.where(x == x, x, torch.nan).to(torch.float32).view(torch.int32)
    return bits - ((bits + 0x8000) & -0x10000)


class Stochastic(Rounding):
    """θ up or down with the probabilities that make the mean right."""

    name, random, source = "stochastic", True, "Gupta et al. 2015, arXiv:1502.02551"

    def before(self, param: Any, *states: Any) -> Any:
        return param

    def after(self, param: Any, dtype: torch.dtype, bits: Any) -> tuple[Any, ...]:
        return (STOCHASTIC[dtype](param, bits),)


class Compensated(Rounding):
    """θ to nearest, and what was cut off kept in the parameter's dtype and added again at the next step (Kahan's sum)."""

    name, states, source = "compensated", {"compensation": None}, "Zamirai et al. 2020, arXiv:2010.06192"

    def before(self, param: Any, *states: Any) -> Any:
        return param + states[0]

    def after(self, param: Any, dtype: torch.dtype, bits: Any) -> tuple[Any, ...]:
        written = NEAREST[dtype](param)
        return written, torch.where(written == param, 0.0, param - written)  # an infinity is nothing to be corrected


class Split(Rounding):
    """A float32 master, exactly: its upper 16 bits are the parameter, the lower 16 a state."""

    name, states, source = "split", {"rest": torch.int16}, "FlashOptim 2025; as in NVIDIA's Apex and TransformerEngine"
    dtypes = (torch.bfloat16,)

    def before(self, param: Any, *states: Any) -> Any:
        return joined(param, states[0])

    def after(self, param: Any, dtype: torch.dtype, bits: Any) -> tuple[Any, ...]:
        return upper_part(param), lower_part(param)


ROUNDINGS: dict[str, Rounding] = {one.name: one for one in (Stochastic(), Compensated(), Split())}
NEAREST_NAME = "nearest"


def left_over(values: Iterable[str], states: Iterable[str]) -> dict[str, str]:
    """{state: whose it is} of the roundings' states among `values` that a rule with these states does not read."""
    known = set(states)
    owners = {state: one.name for one in ROUNDINGS.values() for state in one.states}
    return {name: owners[name] for name in values if name in owners and name not in known}
