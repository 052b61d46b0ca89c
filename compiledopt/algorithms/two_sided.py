"""What scales the rows and the columns of a matrix, so that their products are nearest to its squares."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.reduced import over_all

ITERATIONS = 5


def scales(grad: Any) -> tuple[Any, Any]:
    """(s of columns, q of rows) whose products are nearest to g²: power iterations from q = 1."""
    square = grad * grad
    largest = over_all(square, "amax")
    shares = square / torch.where(largest > 0, largest, 1.0)  # squares of small squares are 0
    columns = shares.mean(-2, keepdim=True)
    rows = _solved(shares, columns, -1)
    for _ in range(ITERATIONS - 1):
        columns = _solved(shares, rows, -2)
        rows = _solved(shares, columns, -1)
    return columns * largest, rows


def _solved(shares: Any, known: Any, dim: int) -> Any:
    """What is nearest on one side, given the other; 0 where that is."""
    length = (known * known).sum(dim, keepdim=True)
    return (shares * known).sum(dim, keepdim=True) / torch.where(length > 0, length, 1.0)
