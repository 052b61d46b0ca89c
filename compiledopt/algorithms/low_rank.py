"""States of rules that keep Adam's moments of a gradient projected to a low rank: which sides are, and their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.matrices import wide
from compiledopt.arguments import BOUNDS, Bound

OF_RANK = (
    *BOUNDS,
    Bound("rank", "Invalid rank value", least=1.0, optional=True),
    Bound("update_proj_gap", "Invalid update_proj_gap value", least=1.0),
    Bound("scale", "Invalid scale value"),
)

# For tall matrices and for wide ones: whether there is a projection from the left, and one from the right.
SIDES = {
    "std": ((False, True), (True, False)),
    "reverse_std": ((True, False), (False, True)),
    "left": ((True, False), (True, False)),
    "right": ((False, True), (False, True)),
    "full": ((True, True), (True, True)),
}


def check_side(proj_type: str | None, optional: bool = False) -> None:
    """optional: whether None is one too. Raises: ValueError where there is no such side."""
    if proj_type not in SIDES and not (optional and proj_type is None):
        raise ValueError(f"Invalid proj_type value: {proj_type!r}; it is {'None or ' * optional}one of {', '.join(SIDES)}")


def _ranks(param: Tensor, options: dict[str, Any]) -> tuple[int | None, int | None]:
    """The ranks of the projections from the left and from the right; None where there is none."""
    rank = options["rank"]
    if rank is None or param.ndim != 2:
        return None, None
    rows, columns = param.shape
    left, right = SIDES[options.get("proj_type", "std")][0 if rows >= columns else 1]
    least = min(int(rank), rows, columns)
    return least if left else None, least if right else None


def left(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    """rows × rank."""
    rank = _ranks(param, options)[0]
    return None if rank is None else torch.zeros(param.shape[0], rank, dtype=wide(param), device=param.device)


def right(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    """rank × columns."""
    rank = _ranks(param, options)[1]
    return None if rank is None else torch.zeros(rank, param.shape[1], dtype=wide(param), device=param.device)


def moment(param: Tensor, options: dict[str, Any]) -> Tensor:
    """A state like the projected gradient, or like the parameter where nothing is projected."""
    rows, columns = _ranks(param, options)
    if rows is None and columns is None:
        return torch.zeros_like(param, memory_format=torch.preserve_format)
    shape = rows or param.shape[0], columns or param.shape[1]  # whole in each process, where the parameter is distributed
    return torch.zeros(shape, dtype=param.dtype, device=param.device)


def norm(param: Tensor, options: dict[str, Any]) -> Tensor | None:
    """One number of a parameter that is projected."""
    return param.new_zeros(1, 1, dtype=wide(param)) if options["rank"] is not None and param.ndim == 2 else None
