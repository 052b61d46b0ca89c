"""Schedules as pure functions of the step count, from which `lr_scheduler` makes torch's classes.

Each is given to an optimizer as it stands, or scaled, and then computed inside the step, on the device where it is there:

    lr = 3e-4 * schedules.sequential([schedules.linear(0.01, 1.0, 100), schedules.cosine_annealing(900)], [100])
    optimizer = compiledopt.AdamW(model.parameters(), lr=lr)
    lr(250)  # the value at a step

A schedule of one's own is `Schedule(function)` of a 0-dim step, written like a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from compiledopt.rules.ops import apply
from compiledopt.rules.schedule import Schedule
from compiledopt.rules.schedule import _at as _at  # a pickle of a combined schedule names it here

__all__ = [
    "Schedule",
    "constant",
    "cosine_annealing",
    "cosine_annealing_warm_restarts",
    "cyclic",
    "exponential",
    "linear",
    "multi_step",
    "one_cycle",
    "polynomial",
    "sequential",
    "step",
]


_where, _cos, _floor, _log = (partial(apply, name) for name in ("where", "cos", "floor", "log"))


def _at_most(step: Any, most: float) -> Any:
    return _where(step < most, step, most)


def _made(function: Callable[..., Any], *args: Any) -> Schedule:
    return Schedule(partial(function, *args), f"{function.__name__.strip('_')}({', '.join(map(repr, args))})")


# ---- factors: 1 is the rate that they are multiplied with ----


def _step(step_size: int, gamma: float, step: Any) -> Any:
    return gamma ** _floor(step / step_size)


@lru_cache
def step(step_size: int, gamma: float = 0.1) -> Schedule:
    """γ^⌊t / step_size⌋, as StepLR."""
    return _made(_step, step_size, gamma)


def _multi_step(milestones: tuple[int, ...], gamma: float, step: Any) -> Any:
    return gamma ** sum(_where(step >= milestone, 1.0, 0.0) for milestone in milestones)


def multi_step(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """γ^(milestones reached), as MultiStepLR."""
    return _known_multi_step(tuple(milestones), gamma)


@lru_cache
def _known_multi_step(milestones: tuple[int, ...], gamma: float) -> Schedule:
    return _made(_multi_step, milestones, gamma)


def _constant(factor: float, total_iters: int, step: Any) -> Any:
    return factor + _where(step >= total_iters, 1.0, 0.0) * (1 - factor)


@lru_cache
def constant(factor: float = 1.0 / 3, total_iters: int = 5) -> Schedule:
    """`factor` for `total_iters` steps, then 1, as ConstantLR."""
    return _made(_constant, factor, total_iters)


def _linear(start_factor: float, end_factor: float, total_iters: int, step: Any) -> Any:
    return start_factor + (end_factor - start_factor) * _at_most(step, total_iters) / total_iters


@lru_cache
def linear(start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5) -> Schedule:
    """From `start_factor` to `end_factor` in `total_iters` steps, then constant, as LinearLR."""
    return _made(_linear, start_factor, end_factor, total_iters)


def _exponential(gamma: float, step: Any) -> Any:
    return gamma**step


@lru_cache
def exponential(gamma: float) -> Schedule:
    """γ^t, as ExponentialLR."""
    return _made(_exponential, gamma)


def _polynomial(total_iters: int, power: float, step: Any) -> Any:
    return (1.0 - _at_most(step, total_iters) / total_iters) ** power


@lru_cache
def polynomial(total_iters: int = 5, power: float = 1.0) -> Schedule:
    """(1 − t / total_iters)^power, then 0, as PolynomialLR."""
    return _made(_polynomial, total_iters, power)


def _cosine_annealing(T_max: float, step: Any) -> Any:
    return (1 + _cos(math.pi * step / T_max)) / 2


@lru_cache
def cosine_annealing(T_max: float) -> Schedule:
    """(1 + cos(π·t / T_max)) / 2, as CosineAnnealingLR: `eta_min + (lr - eta_min) * cosine_annealing(T_max)`."""
    return _made(_cosine_annealing, T_max)


def _cosine_annealing_warm_restarts(T_0: int, T_mult: int, step: Any) -> Any:
    if T_mult == 1:
        return _cosine_annealing(T_0, step - T_0 * _floor(step / T_0))

    def begin(restarts: Any) -> Any:
        return T_0 * (T_mult**restarts - 1) / (T_mult - 1)

    restarts = _floor(_log(step / T_0 * (T_mult - 1) + 1) / math.log(T_mult))
    # The quotient of logarithms may be one rounding off a whole number, on either side.
    restarts = _where(step < begin(restarts), restarts - 1, _where(step >= begin(restarts + 1), restarts + 1, restarts))
    return _cosine_annealing(T_0 * T_mult**restarts, step - begin(restarts))


@lru_cache
def cosine_annealing_warm_restarts(T_0: int, T_mult: int = 1) -> Schedule:
    """(1 + cos(π·T_cur / T_i)) / 2 with T_i = T_0·T_mult^(restarts so far), as CosineAnnealingWarmRestarts."""
    return _made(_cosine_annealing_warm_restarts, T_0, T_mult)


# ---- values ----


Scale = Callable[[Any], Any]


def _cyclic(
    base_lr: float, max_lr: float, total: float, ratio: float, scale_fn: Scale | None, by_cycle: bool, step: Any
) -> Any:
    cycle = _floor(1 + step / total)
    x = 1.0 + step / total - cycle
    value = (max_lr - base_lr) * _where(x <= ratio, x / ratio, apply("div", x - 1, ratio - 1))
    return base_lr + (value if scale_fn is None else value * scale_fn(cycle if by_cycle else step))


def _halved_each_cycle(cycle: Any) -> Any:
    return 1 / (2.0 ** (cycle - 1))


@lru_cache
def scale_of(mode: str, gamma: float) -> Scale | None:
    """What a mode of `cyclic` scales with: "triangular" nothing, "triangular2" the cycle, "exp_range" the step."""
    if mode == "triangular2":
        return _halved_each_cycle
    return partial(_exponential, gamma) if mode == "exp_range" else None


@lru_cache
def in_cycles(base_lr: float, max_lr: float, total: float, ratio: float, scale_fn: Scale | None, by_cycle: bool) -> Schedule:
    """Cycles of `total` steps, rising for the share `ratio` of them."""
    return _made(_cyclic, base_lr, max_lr, total, ratio, scale_fn, by_cycle)


def cyclic(
    base_lr: float,
    max_lr: float,
    step_size_up: float = 2000,
    step_size_down: float | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Scale | None = None,
    scale_mode: str = "cycle",
) -> Schedule:
    """From `base_lr` to `max_lr` and back, cycle after cycle, scaled by the mode, as CyclicLR."""
    if scale_fn is None:
        scale_fn, scale_mode = scale_of(mode, gamma), "iterations" if mode == "exp_range" else "cycle"
    total = float(step_size_up) + float(step_size_up if step_size_down is None else step_size_down)
    return in_cycles(base_lr, max_lr, total, step_size_up / total, scale_fn, scale_mode == "cycle")


Phase = tuple[float, float, float]  # last step, first value, last value


def _phases(phases: tuple[Phase, ...], cosine: bool, last: int, step: Any) -> Any:
    step, begin, found = _at_most(step, last), 0.0, []
    for end, first, final in phases:
        done = 1.0 if end == begin else (step - begin) / (end - begin)
        if cosine:
            found.append(final + (first - final) / 2.0 * (_cos(math.pi * done) + 1))
        else:
            found.append((final - first) * done + first)
        begin = end
    value = found.pop()
    for (end, _, _), earlier in zip(reversed(phases[:-1]), reversed(found), strict=True):
        value = _where(step <= end, earlier, value)
    return value


@lru_cache
def in_phases(phases: tuple[Phase, ...], cosine: bool, last: int) -> Schedule:
    """From value to value, along half a cosine or a line; after step `last` it stays where it is."""
    return _made(_phases, phases, cosine, last)


def one_cycle(
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up to `max_lr` and down to far below where it began, as OneCycleLR; after `total_steps` it stays where it is."""
    initial = max_lr / div_factor
    ends = (float(pct_start * total_steps) - 1, *([float(2 * pct_start * total_steps) - 2] if three_phase else []))
    values = (initial, max_lr, *([initial] if three_phase else []), initial / final_div_factor)
    phases = tuple(zip((*ends, total_steps - 1), values[:-1], values[1:], strict=True))
    return in_phases(phases, anneal_strategy == "cos", total_steps)


# ---- of others ----


def _sequential(schedules: tuple[Schedule, ...], milestones: tuple[int, ...], step: Any) -> Any:
    value = schedules[0].function(step)
    for schedule, begin in zip(schedules[1:], milestones, strict=True):
        value = _where(step < begin, value, schedule.function(step - begin))
    return value


def sequential(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after the other, each from its own step 0 on, as SequentialLR. Raises: ValueError."""
    if len(milestones) != len(schedules) - 1:
        raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} milestones between them, got {len(milestones)}")
    return _made(_sequential, tuple(schedules), tuple(milestones))
