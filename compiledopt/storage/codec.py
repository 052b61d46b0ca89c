"""The interface of a way to keep the values of a state. One file here and one line in CODECS (storage/__init__.py) each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from compiledopt.backends.blocks import rows_of
from compiledopt.backends.distributed import is_distributed

SCALE = "scale"
SMALLEST = 4096  # elements from which on a state is kept in blocks: below, there is nothing to be gained


class Codec(ABC):
    """How one state is kept: as codes, and where it is kept in blocks, as a scale for each block.

    name: what a group asks for it by; source: who found it; dtype: of the codes; block: how many elements share a scale, 0
    where there is none; random: whether encode rounds with random bits; packed: whether codes are 0 to 15, two to a byte;
    signed: whether values may be negative; unsigned: the name of the codec for states that never are, where there is one.

    encode and decode are pure, in torch's operators, on values with the elements of a block along the last dimension; each is
    an operation of a program (rules/ops.py), from which executors, kernels and the tables of errors come.
    """

    name: str
    source: str
    dtype: torch.dtype
    block: ClassVar[int] = 0
    random: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    plain: ClassVar[bool] = False  # whether writing to its dtype is all there is to it
    unsigned: str | None = None

    @abstractmethod
    def decode(self, codes: Any, scale: Any) -> Any:
        """The values. scale: of each block, or None."""

    @abstractmethod
    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        """(codes, scale or None). bits: 32 random ones for each element, or None."""

    def converted(self, values: torch.Tensor) -> torch.Tensor:
        """The codes of values outside of a step, rounded to nearest, where they are not kept in blocks."""
        return values.to(self.dtype)

    def objection(self, param: torch.Tensor, smallest: int | None = None) -> str | None:
        """Why a state shaped like `param` is not kept so, or None. smallest: elements from which on it is, whatever its shape;
        None for those to which it brings something."""
        if param.is_complex():
            return "the parameter is complex"
        if not self.block:
            return None
        (_, row), count = rows_of(param.shape), param.numel()
        if is_distributed(param):
            shards = [p for p in param.placements if p.is_shard()]  # type: ignore[attr-defined]
            if shards and (param.dim() < 2 or any(p.dim != 0 for p in shards)):
                return "the parameter is distributed along a dimension that its blocks lie along"
        if smallest is not None:
            return f"the parameter has fewer than {smallest} elements" if count < smallest else None
        if count < SMALLEST:
            return f"the parameter has fewer than {SMALLEST} elements"
        if param.dim() < 2:
            return "the parameter has fewer than 2 dimensions"
        return None if row >= self.block else f"the parameter's rows have fewer than {self.block} elements"

    @property
    def bytes_per_element(self) -> float:
        """Of codes and scales."""
        codes = 0.5 if self.packed else self.dtype.itemsize
        return codes + (4 / self.block if self.block else 0)


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
