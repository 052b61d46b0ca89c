"""torch.optim.lr_scheduler: the classes are torch's, their values come from the pure functions in `schedules`.

torch's constructors, warnings, errors, `step` and state_dict are inherited; what a schedule is at step t stands in
`compiledopt.schedules` alone. `scheduler.schedule(group)` gives it as a pure function: its value at any step, and what an
optimizer takes as `lr`.

Two forms, as in torch. A *closed* form sets the rate from the base rate, whatever it was before. The *recursive* form
multiplies the rate that it finds, so that a rate changed from outside between steps stays changed, and schedulers can be
chained on one optimizer: here it is derived from the closed one, by its quotient at two successive steps.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler, MultiplicativeLR, ReduceLROnPlateau

from compiledopt import schedules
from compiledopt.schedules import Schedule

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

Rate = float | Tensor
_LRScheduler = LRScheduler  # the name before torch 2.0, which libraries still ask for


def _warn_outside_step(scheduler: LRScheduler) -> None:
    if not scheduler._get_lr_called_within_step:
        warnings.warn(
            "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.", UserWarning, stacklevel=3
        )


class _Scaling(LRScheduler):
    """lr = floor + (base − floor)·factor(t): recursive in `step()`, closed in `step(epoch)`, as torch's."""

    # Whether a scheduler resumed with last_epoch ≥ 0 takes that step itself, or finds it in the rate, as torch's differ.
    _steps_on_resume = False

    def _factor(self) -> Schedule:
        raise NotImplementedError

    @property
    def _least(self) -> float:
        return 0.0

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step, as if nothing but this scheduler changed it."""
        return self._least + (float(self.base_lrs[group]) - self._least) * self._factor()

    def get_lr(self) -> list[Rate]:
        """The next rate of each group, from the one it has now."""
        _warn_outside_step(self)
        step, factor = self.last_epoch, self._factor()
        before, now = (1.0 if step == 0 else factor(step - 1)), factor(step)
        if self._is_initial and step > 0 and not self._steps_on_resume:
            before = now
        groups = self.optimizer.param_groups
        return [self._next(group["lr"], base, before, now) for group, base in zip(groups, self.base_lrs, strict=True)]

    def _next(self, rate: Rate, base: Rate, before: float, now: float) -> Rate:
        if now == before:
            return rate.clone() if isinstance(rate, Tensor) else rate
        if before == 0:  # nothing is left to multiply
            return rate + (base - self._least) * now
        return self._least + (rate - self._least) * (now / before)

    def _get_closed_form_lr(self) -> list[Rate]:
        now = self._factor()(self.last_epoch)
        return [self._least + (base - self._least) * now for base in self.base_lrs]


class StepLR(_Scaling, torchs.StepLR):
    """lr = base·γ^⌊t / step_size⌋. Arguments: torch's. Recursive: a rate changed from outside stays changed."""

    _steps_on_resume = True

    def _factor(self) -> Schedule:
        return schedules.step(self.step_size, self.gamma)


class MultiStepLR(_Scaling, torchs.MultiStepLR):
    """lr = base·γ^(milestones ≤ t). Arguments: torch's. Recursive: a rate changed from outside stays changed."""

    _steps_on_resume = True

    def _factor(self) -> Schedule:
        return schedules.multi_step(sorted(self.milestones.elements()), self.gamma)


class ConstantLR(_Scaling, torchs.ConstantLR):
    """lr = base·factor while t < total_iters, then base. Arguments: torch's. Recursive; factor=0 works, where torch divides
    by it."""

    _steps_on_resume = True

    def _factor(self) -> Schedule:
        return schedules.constant(self.factor, self.total_iters)


class LinearLR(_Scaling, torchs.LinearLR):
    """lr = base·(a + (b − a)·min(t, total_iters) / total_iters). Arguments: torch's. Recursive."""

    def _factor(self) -> Schedule:
        return schedules.linear(self.start_factor, self.end_factor, self.total_iters)


class ExponentialLR(_Scaling, torchs.ExponentialLR):
    """lr = base·γ^t. Arguments: torch's. Recursive: a rate changed from outside stays changed."""

    def _factor(self) -> Schedule:
        return schedules.exponential(self.gamma)


class PolynomialLR(_Scaling, torchs.PolynomialLR):
    """lr = base·(1 − min(t, total_iters) / total_iters)^power. Arguments: torch's. Recursive."""

    def _factor(self) -> Schedule:
        return schedules.polynomial(self.total_iters, self.power)


class CosineAnnealingLR(_Scaling, torchs.CosineAnnealingLR):
    """lr = η_min + (base − η_min)·(1 + cos(π·t / T_max)) / 2. Arguments: torch's. Recursive in lr − η_min; where that is 0,
    at the trough, it rises from the base rate, as torch's."""

    @property
    def _least(self) -> float:
        return self.eta_min

    def _factor(self) -> Schedule:
        return schedules.cosine_annealing(self.T_max)


class CosineAnnealingWarmRestarts(torchs.CosineAnnealingWarmRestarts):
    """lr = η_min + (base − η_min)·(1 + cos(π·T_cur / T_i)) / 2. Arguments: torch's. Closed: a rate changed from outside is
    overwritten, as in torch."""

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step."""
        factor = schedules.cosine_annealing_warm_restarts(self.T_0, self.T_mult)
        return self.eta_min + (float(self.base_lrs[group]) - self.eta_min) * factor

    def get_lr(self) -> list[Rate]:
        """The rate of each group at `T_cur`."""
        _warn_outside_step(self)
        now = schedules.cosine_annealing(self.T_i)(self.T_cur)
        return [self.eta_min + (base - self.eta_min) * now for base in self.base_lrs]


class _Cycling(LRScheduler):
    """Rates and momenta between given ends. Closed: what is changed from outside is overwritten, as in torch."""

    cycle_momentum: bool
    use_beta1: bool

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step."""
        raise NotImplementedError

    def momentum_schedule(self, group: int = 0) -> Schedule:
        """The momentum, or β₁, of a group as a pure function of the step."""
        raise NotImplementedError

    def get_lr(self) -> list[Rate]:
        """The rate of each group at this step. Mutates: momentum or betas of the groups, with `cycle_momentum`."""
        _warn_outside_step(self)
        groups = self.optimizer.param_groups
        if self.cycle_momentum:
            for index, group in enumerate(groups):
                momentum = self.momentum_schedule(index)(self.last_epoch)
                if self.use_beta1:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return [self.schedule(index)(self.last_epoch) for index in range(len(groups))]


class CyclicLR(_Cycling, torchs.CyclicLR):
    """From base_lr up to max_lr and back in each cycle, scaled by the mode or `scale_fn`; momentum the other way round.
    Arguments: torch's. Closed."""

    def _cycles(self, low: Any, high: Any) -> Schedule:
        scale = self._scale_fn_custom or schedules.scale_of(self.mode, self.gamma)
        by_cycle = self.scale_mode == "cycle"
        return schedules.in_cycles(float(low), float(high), self.total_size, self.step_ratio, scale, by_cycle)

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step."""
        return self._cycles(self.base_lrs[group], self.max_lrs[group])

    def momentum_schedule(self, group: int = 0) -> Schedule:
        """The momentum, or β₁, of a group as a pure function of the step."""
        return self._cycles(self.max_momentums[group], self.base_momentums[group])


class OneCycleLR(_Cycling, torchs.OneCycleLR):
    """Up to max_lr in the first `pct_start` of the steps, then down to far below the start; momentum the other way round.
    Arguments: torch's. Closed. A first phase of no length works, where torch divides by it."""

    def _annealed(self, group: int, kind: str) -> Schedule:
        values = self.optimizer.param_groups[group]
        phases = tuple(
            (phase["end_step"], float(values[phase[f"start_{kind}"]]), float(values[phase[f"end_{kind}"]]))  # type: ignore[literal-required]
            for phase in self._schedule_phases
        )
        return schedules.in_phases(phases, self._is_cosine, self.total_steps)

    @property
    def _is_cosine(self) -> bool:
        """A scheduler of torch before 2.0 has the function itself in the place of its name."""
        held = self.__dict__
        return "cos" in (held.get("_anneal_func_type") or held["anneal_func"].__name__)

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step; after the last one it stays where it is."""
        return self._annealed(group, "lr")

    def momentum_schedule(self, group: int = 0) -> Schedule:
        """The momentum, or β₁, of a group as a pure function of the step."""
        return self._annealed(group, "momentum")

    def get_lr(self) -> list[Rate]:
        """The rate of each group at this step. Raises: ValueError after `total_steps`."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"Tried to step {self.last_epoch} times. The specified number of total steps is {self.total_steps}"
            )
        return super().get_lr()


class LambdaLR(torchs.LambdaLR):
    """lr = base·lr_lambda(t). Arguments: torch's. Closed: a rate changed from outside is overwritten, as in torch."""

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step; on a device, where the lambda is written like a rule."""
        return float(self.base_lrs[group]) * Schedule(self.lr_lambdas[group], "lr_lambda")


class SequentialLR(torchs.SequentialLR):
    """One scheduler after the other. Arguments: torch's. At a milestone the next one begins in its closed form, from the
    base rate, and continues in its own: recursive ones keep a rate changed from outside after that, as in torch."""

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step. Raises: TypeError for a scheduler without one."""
        return schedules.sequential([_schedule_of(s, group) for s in self._schedulers], self._milestones)


class ChainedScheduler(torchs.ChainedScheduler):
    """Several schedulers at each step, one on top of the other. Arguments: torch's. That is what the recursive form is for:
    each multiplies the rate that it finds. One of a closed form overwrites what was before it in the chain, as in torch."""

    def schedule(self, group: int = 0) -> Schedule:
        """The rate of a group as a pure function of the step: the product of the factors. Raises: TypeError for a
        scheduler that does more than multiply."""
        base: Schedule | float = float(self.optimizer.param_groups[group]["initial_lr"])
        for scheduler in self._schedulers:
            if not isinstance(scheduler, _Scaling) or scheduler._least != 0:
                raise TypeError(
                    f"{type(scheduler).__name__} does more than multiply the rate, so a chain with it has no pure form"
                )
            base = base * scheduler._factor()
        assert isinstance(base, Schedule)
        return base


def _schedule_of(scheduler: Any, group: int) -> Schedule:
    if not hasattr(scheduler, "schedule"):
        raise TypeError(f"{type(scheduler).__name__} has no closed form; use the schedulers of compiledopt.lr_scheduler")
    found: Schedule = scheduler.schedule(group)
    return found


for _class in [value for name in __all__ if (value := globals()[name]).__module__ == __name__]:
    _class.__module__ = "compiledopt._lr_scheduler"  # which says why
