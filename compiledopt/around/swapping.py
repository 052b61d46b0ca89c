"""Parameters exchanged with their averages for a while, in place: no memory beyond one tensor, and no address changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def averages(groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> list[torch.Tensor]:
    """The average of each parameter, in order; the parameter itself where none was made yet."""
    params = [param for group in groups for param in group["params"]]
    return [state.get(param, {}).get("ema", param.detach()) for param in params]


@contextmanager
def swapped(groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> Iterator[None]:
    """Within, the parameters hold their averages, and the other way round."""
    params = dict.fromkeys(param for group in groups for param in group["params"])
    pairs = [(param, state[param]["ema"]) for param in params if "ema" in state.get(param, {})]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


@torch.no_grad()
def _exchange(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
