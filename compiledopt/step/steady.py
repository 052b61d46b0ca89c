"""One native call for a step, where the batches of a plan have that and nothing but tensors and numbers changes from now on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from compiledopt.around import Clipping
from compiledopt.backends.batch import Batch, Standing, Steady
from compiledopt.interrupts import Whole
from compiledopt.step.plan import Plan
from compiledopt.torch_private import observers

LONGEST = 256  # steps between two attempts


def never(optimizer: Any) -> bool:
    return False


class Steadying:
    """When to make a steady step: after a plan ran again, and ever more seldom where one comes to nothing, as where a group
    gets a new list at each step: making it takes as long as some steps of few parameters."""

    def __init__(self) -> None:
        self.steady: Steady | None = None
        self.pause, self.left = 1, 1

    def after(self, optimizer: Any, plan: Plan) -> Steady:
        """Of a plan that just ran again, from Python."""
        if self.steady is not None:
            useful = self.steady.__self__.steps() > self.pause  # type: ignore[attr-defined]
            self.pause = 1 if useful else min(2 * self.pause, LONGEST)
            self.steady, self.left = None, self.pause
        self.left -= 1
        if self.left <= 0:
            self.steady, self.left = made(optimizer, plan), LONGEST
        return self.steady or never


def made(optimizer: Any, plan: Plan) -> Steady | None:
    """What takes further steps of a plan that just ran, or None where Python must take part."""
    owner = plan.owner
    native = [batch for batch in plan.batches if batch.steady is not None]
    ways, others = {batch.steady for batch in native}, [batch for batch in plan.batches if batch.steady is None]
    around = owner.scaling is not None or owner.watched is not None or plan.shared.exist
    if (
        around
        or any(rule.every for rule in owner.rules)
        or owner.fresh
        or plan.shards.parameters
        or len(plan.rounds) != 1
        or not all(seen.fixed for seen in plan.seen)
    ):
        return None
    if len(ways) != 1 or not all(batch.goes_beside for batch in others):
        return None
    (make,) = ways
    if make is None:
        return None
    empty, modules = observers(optimizer)
    hooks = [(name, getattr(optimizer, name)) for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")]
    own = [("param_groups", owner.groups), ("state", owner.state), ("_swapped", False), ("_opt_called", True)]
    attributes = [*own, *hooks, ("found_inf", None), ("grad_scale", None)]
    lists = plan.params, owner.state, plan.states, plan.waiting
    standing = Standing(native, owner.rules, plan.rules, owner.groups, *lists, attributes, modules, empty)
    if (clipping := owner.clipping) is not None:
        measure = partial(owner.measure, list(plan.batches), again=False)
        norm = partial(_norm, clipping, [batch for batch in others if batch.is_clipped])
        standing = replace(standing, measure=measure, in_place=clipping.is_in_place, norm=norm)
    taken = make(standing)
    return Beside(taken, plan, others).step if others and taken is not None else taken


def _norm(clipping: Clipping, others: list[Batch], squares: list[float]) -> float:
    """The norm, given the sums of squares of the batches that are native; the others know it then."""
    norm = clipping.take([*squares, *(batch.squares() for batch in others)])
    for batch in others:
        batch.renew()
    return norm


class Beside:
    """A step of which one native call takes a part, and batches from Python the rest.

    The call sees whether anything changed, the flags of all groups included, and nothing is written before it agreed.
    """

    def __init__(self, native: Steady, plan: Plan, others: list[Batch]) -> None:
        self.native, self.plan, self.others = native, plan, others
        self.groups = sorted({entry.group for batch in others for entry in batch.entries})

    def step(self, optimizer: Any) -> bool:
        with self.plan.owner.turn, Whole():
            return self._step(optimizer)

    def _step(self, optimizer: Any) -> bool:
        plan = self.plan
        if not self.native.__self__.fits(optimizer):  # type: ignore[attr-defined]
            return False
        for index in self.groups:
            plan.numbers[index] = plan.rules[index].read(plan.owner.groups[index]).numbers
        if not all(batch.prepare() for batch in self.others) or not self.native(optimizer):
            return False
        for batch in self.others:
            batch.launch()
        return True

    def steps(self) -> int:
        return self.native.__self__.steps()  # type: ignore[attr-defined,no-any-return]
