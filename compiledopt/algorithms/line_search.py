"""A line search for the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from compiledopt.rules.ops import OPS

divide: Callable[[float, float], float] = OPS["div"].number  # as IEEE arithmetic: x / 0 is an infinity
SUFFICIENT, CURVATURE = 1e-4, 0.9


@dataclass
class Point:
    """Along a direction d: step size t, loss f there, gradient g, and slope g·d."""

    t: float
    f: float
    g: Tensor
    slope: float


def cubic_minimum(a: Point, b: Point, bounds: tuple[float, float] | None = None) -> float:
    """Where the cubic through two points with their slopes has its minimum, kept within `bounds`, else between them."""
    low, high = bounds or (min(a.t, b.t), max(a.t, b.t))
    if a.t > b.t:
        a, b = b, a
    first = a.slope + b.slope - 3 * divide(a.f - b.f, a.t - b.t)
    square = first**2 - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2
    second = sqrt(square)
    t = b.t - (b.t - a.t) * divide(b.slope + second - first, b.slope - a.slope + 2 * second)
    return min(max(t, low), high)


class StrongWolfe:
    """f(t) ≤ f(0) + 1e-4·t·f'(0)  and  |f'(t)| ≤ −0.9·f'(0).

    evaluate: step size → Point. largest: the largest element of the direction, tolerance: the change of a parameter that
    counts as none, most: how many evaluations may follow the first. Source: Nocedal and Wright, algorithms 3.5 and 3.6.
    """

    def __init__(self, evaluate: Callable[[float], Point], start: Point, largest: float, tolerance: float, most: int) -> None:
        self.evaluate, self.start, self.largest, self.tolerance, self.most = evaluate, start, largest, tolerance, most
        self.evaluations = 0

    def search(self, t: float) -> Point:
        """The best point found, starting from step size t. Raises: what `evaluate` raises."""
        previous, current = self.start, self._at(t)
        while self.evaluations <= self.most:
            rises = self.evaluations > 2 and current.f >= previous.f
            if self._insufficient(current) or rises:
                return self._zoom(previous, current)
            if self._flat(current):
                return current
            if current.slope >= 0:
                return self._zoom(previous, current)
            bounds = (current.t + 0.01 * (current.t - previous.t), current.t * 10)
            previous, current = current, self._at(cubic_minimum(previous, current, bounds))
        return self.start if self.start.f <= current.f else current

    def _at(self, t: float) -> Point:
        self.evaluations += 1
        return self.evaluate(t)

    def _insufficient(self, point: Point) -> bool:
        return point.f > self.start.f + SUFFICIENT * point.t * self.start.slope

    def _flat(self, point: Point) -> bool:
        return abs(point.slope) <= -CURVATURE * self.start.slope

    def _zoom(self, a: Point, b: Point) -> Point:
        """Narrow the interval between two points, one of which is low enough, until the conditions hold."""
        low, high = (a, b) if a.f <= b.f else (b, a)
        crawled = False
        while self.evaluations <= self.most and not abs(a.t - b.t) * self.largest < self.tolerance:
            t, crawled = self._trial(low, high, crawled)
            point = self._at(t)
            if self._insufficient(point) or point.f >= low.f:
                high = point
                low, high = (low, high) if low.f <= high.f else (high, low)
            else:
                if self._flat(point):
                    return point
                if point.slope * (high.t - low.t) >= 0:
                    high = low
                low = point
            a, b = low, high
        return low

    def _trial(self, low: Point, high: Point, crawled: bool) -> tuple[float, bool]:
        """The next step size; one that crawls along an end of the interval for the second time is moved inwards."""
        t = cubic_minimum(low, high)
        least, most = min(low.t, high.t), max(low.t, high.t)
        margin = 0.1 * (most - least)
        if not min(most - t, t - least) < margin:
            return t, False
        if crawled or t >= most or t <= least:
            return (most - margin if abs(t - most) < abs(t - least) else least + margin), False
        return t, True
