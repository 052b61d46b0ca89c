"""How much longer an update may be than the last."""

from __future__ import annotations

from typing import Any

GROWTH = 1.01  # Fira's limit, which APOLLO has from there


def limiter(size: Any, last: Any, growth: Any) -> Any:
    """What an update of that norm is divided by, so that it is at most so many times as long as the last."""
    return (size / (last + 1e-8)).clamp_min(growth) / growth
