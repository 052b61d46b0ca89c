"""The interface of a way to keep the values of a state. One file here and one line in CODECS (storage/__init__.py) each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from compiledopt.backends.distributed import is_distributed
from compiledopt.rules.rule import Rule

SCALE = "scale"
SMALLEST = 4096  # elements from which on a state is kept in blocks: below, there is nothing to be gained


def row_of(param: torch.Tensor) -> int:
    """The length of what no block reaches across: all dimensions but the first, so that shards of that one cut no block."""
    return param.numel() // max(1, param.shape[0])


def blocks_of(param: torch.Tensor, block: int) -> tuple[int, int]:
    """The shape of the scales: rows, and blocks of each."""
    return param.shape[0], -(-row_of(param) // block)


class Codec(ABC):
    """How one state is kept: as codes, and where it is kept in blocks, as a scale for each block.

    name: what a group asks for it by; source: who found it; dtype: of the codes; block: how many elements share a scale, 0
    where there is none; random: whether encode rounds with random bits; unsigned: the name of the codec for states that are
    never negative, where there is one.

    encode and decode are pure, in torch's operators, on values with the elements of a block along the last dimension; each is
    an operation of a program (rules/ops.py), from which executors, kernels and the tables of errors come.
    """

    name: str
    source: str
    dtype: torch.dtype
    block: ClassVar[int] = 0
    random: ClassVar[bool] = False
    plain: ClassVar[bool] = False  # whether writing to its dtype is all there is to it
    unsigned: str | None = None

    @abstractmethod
    def decode(self, codes: Any, scale: Any) -> Any:
        """The values. scale: of each block, or None."""

    @abstractmethod
    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        """(codes, scale or None). bits: 32 random ones for each element, or None."""

    def objection(self, param: torch.Tensor) -> str | None:
        """Why a state shaped like `param` is not kept so, or None."""
        if param.is_complex():
            return "it is complex"
        if not self.block:
            return None
        if is_distributed(param) and any(p.is_shard() and p.dim != 0 for p in param.placements):  # type: ignore[attr-defined]
            return "it is distributed along another dimension than the first"
        if param.dim() < 2 or param.numel() < SMALLEST:
            return f"it has fewer than {SMALLEST} elements or fewer than 2 dimensions"
        return None if row_of(param) >= self.block else f"its rows have fewer than {self.block} elements"

    @property
    def bytes_per_element(self) -> float:
        return self.dtype.itemsize


class Rounding(ABC):
    """How the new value of a parameter in a half type is written.

    name: what a group asks for it by; random: as of a Codec; states: of its own, to their dtype, None for the parameter's.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    random: ClassVar[bool] = False
    states: ClassVar[dict[str, torch.dtype | None]] = {}
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16)

    @abstractmethod
    def before(self, param: Any, *states: Any) -> Any:
        """What the rule is given for the parameter."""

    @abstractmethod
    def after(self, param: Any, dtype: torch.dtype, bits: Any) -> tuple[Any, ...]:
        """(what is written, *new states), of the parameter that the rule returned."""


Maker = Callable[[torch.Tensor], Any]


def initial(rule: Rule, state: str, value: float) -> Maker:
    """What makes a state of a parameter, with the shape that the rule gives it. value: where it starts, if it is a number."""
    made = rule.maker(state)
    if made is not None:
        return made

    def filled(param: torch.Tensor) -> torch.Tensor:
        fill = complex(value, value) if param.is_complex() else value
        return torch.full_like(param, fill, memory_format=torch.preserve_format, requires_grad=False)

    return filled
