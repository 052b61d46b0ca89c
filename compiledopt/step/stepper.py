"""What an optimizer keeps between its steps, and how one goes: a plan that still fits is run, else another is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from compiledopt import around
from compiledopt.backends.batch import Batch, Entry, Sharing, Steady
from compiledopt.rules.rule import Rule
from compiledopt.step.evaluating import set_mode
from compiledopt.step.foresee import foresee, programs_of, supports_loss_scale
from compiledopt.step.owner import Owner, Turn, share
from compiledopt.step.plan import Plan
from compiledopt.step.states import StateMaker
from compiledopt.step.steady import Steadying, never
from compiledopt.torch_private import watched_by

# Plans beside the one at work: of 300 tensors, one takes 10 ms to make and some 0.5 MB.
KEPT = 3


class Stepped(Protocol):
    """An optimizer."""

    param_groups: list[dict[str, Any]]
    state: Any

    def rule_of(self, group: Mapping[str, Any]) -> Rule: ...


class Stepper:
    """Of one optimizer, which is handed in at each call: kept here, it would be in a cycle, and its tensors with it.

    plan: the one at work; steady: takes a step of it natively, where it can; kept: plans before it that may fit again, the
    latest first; captured: batches of earlier ones that captured graphs read; fresh: parameters whose states were made before
    their first update; reasons: fallbacks that were told of; told: schedules that ended and were told of.
    """

    def __init__(self, captured: list[Batch | Sharing] | None = None) -> None:
        self.plan: Plan | None = None
        self.steady: Steady = never
        self.kept: list[tuple[Plan, Steadying]] = []
        self._steadying = Steadying()
        self.captured = captured or []
        self.scaling: around.Scaling | None = None
        self.clipping: around.Clipping | None = None
        self.fresh: set[torch.Tensor] = set()
        self.reasons: set[str] = set()
        self.told: set[around.Ended] = set()
        self._turn = Turn()

    def again(self) -> Stepper:
        """Another for the same optimizer, after its groups and states were exchanged; graphs may still be replayed."""
        return Stepper([*self.captured, *(one for one in self._replayed() if one.is_captured)])

    def _replayed(self) -> list[Batch | Sharing]:
        return [] if self.plan is None else self.plan.replayed

    def step(self, optimizer: Stepped) -> None:
        """Raises: RuntimeError or TypeError, before any write, for what cannot be updated or is stepped by another thread."""
        self.steady = never  # what Python does now, it does not know of
        with self._turn:
            self._step(optimizer)

    def _step(self, optimizer: Stepped) -> None:
        watched = watched_by()
        if watched is not None:
            self._step_watched(optimizer, watched)
            return
        self._refuse_capture(optimizer)
        scaling, skipped = self._take_scale(optimizer)
        if skipped:
            return
        plan = self.plan
        if (
            plan is None
            or plan.owner.scaling is not scaling
            or not plan.fits(optimizer.param_groups, optimizer.state)
            or not plan.run()
        ):
            self._run_other_plan(optimizer, scaling)
        else:
            self.steady = self._steadying.after(optimizer, plan)

    def _run_other_plan(self, optimizer: Stepped, scaling: around.Scaling | None) -> None:
        """A step that the plan at work does not fit: by one of those before it, where a flag turned back, or a new one."""
        for plan, steadying in self.kept:
            if plan.owner.scaling is scaling and plan.fits(optimizer.param_groups, optimizer.state) and plan.run():
                self.kept = [(other, its) for other, its in self._plans() if other is not plan]
                self.plan, self._steadying, self.clipping = plan, steadying, plan.owner.clipping
                return
        self._run_new_plan(optimizer, scaling)

    def _plans(self) -> list[tuple[Plan, Steadying]]:
        """That at work, and those that are kept."""
        return self.kept if self.plan is None else [(self.plan, self._steadying), *self.kept]

    def _step_watched(self, optimizer: Stepped, watched: str) -> None:
        """A step of operators alone, for who looks at them; its plan holds their tensors and is not kept."""
        scaling, skipped = self._take_scale(optimizer, read=False)
        if not skipped:
            clipping = around.Clipping(on_host=False) if self._is_clipped(optimizer) else None
            self._make_plan(optimizer, scaling, clipping, watched).run()
            self.clipping = clipping

    def _run_new_plan(self, optimizer: Stepped, scaling: around.Scaling | None) -> None:
        self.captured += [one for one in self._replayed() if one.is_captured]  # they must outlive the plan
        before = self._plans()
        self.plan, self.kept, self._steadying = None, [], Steadying()
        self.clipping = (self.clipping or around.Clipping()) if self._is_clipped(optimizer) else None
        self.plan = plan = self._make_plan(optimizer, scaling, self.clipping)
        if not plan.run():
            raise RuntimeError(f"{type(optimizer).__name__}: parameters, gradients or states changed during the step")
        self.kept = [one for one in before if one[0].is_of(optimizer.param_groups, optimizer.state)][:KEPT]

    def _make_plan(
        self,
        optimizer: Stepped,
        scaling: around.Scaling | None,
        clipping: around.Clipping | None,
        watched: str | None = None,
    ) -> Plan:
        around.schedule_groups(optimizer)  # a schedule may have been put into a group by hand
        around.tell_ended(optimizer.param_groups, self.told)
        name, groups = type(optimizer).__name__, optimizer.param_groups
        rules = [optimizer.rule_of(group) for group in groups]
        share(optimizer)  # a number may have been put in the place of one by hand
        around.take_over(rules, groups)
        owner = Owner(name, rules, groups, optimizer.state, self.reasons, self.fresh, scaling, clipping, watched, self._turn)
        return Plan(owner)

    def _is_clipped(self, optimizer: Stepped) -> bool:
        groups = optimizer.param_groups
        return any(around.asks_for_norm(optimizer.rule_of(group), group) for group in groups)

    # ---- torch.amp.GradScaler ----

    def _take_scale(self, optimizer: Stepped, read: bool = True) -> tuple[around.Scaling | None, bool]:
        """What a scaler set on the optimizer, and whether it is known already that the step is left out. read: whether a
        value may be read."""
        found_inf, grad_scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is None and grad_scale is None:
            return None, False
        if read and found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return None, True
        if not read:  # one that holds a tracer's tensors is not kept
            scaling = around.Scaling()
        else:
            scaling = self.scaling = self.scaling or around.Scaling()
        scaling.set(grad_scale, found_inf)
        return scaling, False

    # ---- CUDA graphs ----

    def _refuse_capture(self, optimizer: Stepped) -> None:
        """Refuse a CUDA graph capture that could not replay, before anything is recorded. Raises: RuntimeError."""
        if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):  # type: ignore[no-untyped-call]
            return
        for group in optimizer.param_groups:
            if any(param.is_cuda for param in group["params"]) and optimizer.rule_of(group).every:
                raise RuntimeError(
                    f"Attempting CUDA graph capture of step() for an instance of {type(optimizer).__name__}, which has work "
                    "that is not due at every step, and a graph is the same at each"
                )
            if not group.get("capturable") and any(param.is_cuda for param in group["params"]):
                raise RuntimeError(
                    "Attempting CUDA graph capture of step() for an instance of "
                    f"{type(optimizer).__name__} but param_groups' capturable is False. Pass capturable=True."
                )
        if self.plan is None or not self.plan.fits(optimizer.param_groups, optimizer.state) or self.plan.waiting:
            raise RuntimeError(
                "CUDA graph capture of a step() that needs new kernels or states, or with gradients that are None: "
                "run step() once before, with the same parameters and all their gradients"
            )

    def refresh(self) -> None:
        """Bring numbers of the groups that changed to where captured graphs read them."""
        for one in (*self._replayed(), *self.captured):
            one.refresh()

    # ---- knowing ----

    def share(self, optimizer: Stepped) -> None:
        """Give the groups what stands in them beside options: states that parameters share, counts, the mode."""
        share(optimizer)

    def set_mode(self, optimizer: Stepped, training: bool) -> None:
        """Let the parameters be what is trained, or what is evaluated."""
        self.steady = never
        rules = [optimizer.rule_of(group) for group in optimizer.param_groups]
        set_mode(rules, optimizer.param_groups, optimizer.state, training)

    def supports_loss_scale(self, optimizer: Stepped) -> bool:
        return supports_loss_scale(optimizer)

    def make_states(self, optimizer: Stepped) -> None:
        """Make the states of all parameters now."""
        self.steady = never
        groups = [(programs_of(optimizer, group), group) for group in optimizer.param_groups]
        wanted = [(programs.of(param), param, group) for programs, group in groups for param in group["params"]]
        made = StateMaker(optimizer.state).make(wanted)
        self.fresh.update(param for (_, param, _), first in zip(wanted, made, strict=True) if first)

    def current_plan(self, optimizer: Stepped) -> Plan | None:
        return self.plan if self.plan is not None and self.plan.fits(optimizer.param_groups, optimizer.state) else None

    def foresee(self, optimizer: Stepped) -> list[Entry]:
        """What a step would do if every parameter had a gradient of its own dtype; kernels are compiled here."""
        rules = [optimizer.rule_of(group) for group in optimizer.param_groups]
        return foresee(rules, optimizer.param_groups, optimizer.state, self.current_plan(optimizer))

    @property
    def grad_norm(self) -> torch.Tensor | None:
        norm = None if self.clipping is None else self.clipping.norm
        if isinstance(norm, torch.Tensor):
            return norm.clone()  # where it stands the next step, or a replay, leaves its own
        return norm if norm is None else torch.tensor(norm, dtype=torch.float64, device="cpu")
