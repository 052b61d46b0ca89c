"""Which parameters go through which executor, decided once and kept until something changes.

Order matters: check everything, then compile, then make states, then check every tensor again as it is now, and only then
write. Whatever raises before the last point leaves parameters and states as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from compiledopt.around.clipping import Clipping
from compiledopt.around.derive import around, derived
from compiledopt.around.scaling import Scaling
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import CompiledBatch, bucket_of
from compiledopt.backends.cpp.reducing import PassesBatch
from compiledopt.backends.eager.direct import DirectBatch
from compiledopt.backends.eager.for_loop import ForLoopBatch
from compiledopt.backends.eager.foreach import ForeachBatch
from compiledopt.backends.eager.rows import EagerBatch
from compiledopt.backends.eager.sparse import SparseBatch
from compiledopt.backends.eager.stacked import WholeBatch
from compiledopt.backends.entries import Entry, check_gradient, check_state, is_sparse
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch, option_dtypes
from compiledopt.rules.rule import Rule, truthy
from compiledopt.rules.traced import Traced, signature, traced
from compiledopt.stats import STATS
from compiledopt.step import choose
from compiledopt.step.choose import Choice
from compiledopt.step.decide import decide, warn_of_fallbacks
from compiledopt.step.shards import Shards, is_distributed, placed, reason_against
from compiledopt.step.states import StateMaker, is_complete, relay, settle_scalars
from compiledopt.torch_private import is_known_tracer

Batch = CompiledBatch | EagerBatch | WholeBatch
EAGER = {"direct": DirectBatch, "foreach": ForeachBatch, "for-loop": ForLoopBatch, "sparse": SparseBatch}


@dataclass(frozen=True, eq=False)
class Owner:
    """What a plan needs of its optimizer. reasons: fallbacks it was already warned of; fresh: parameters whose states
    were made ahead of their first update; watched: who looks at every operator
    of this step, if anybody does."""

    name: str
    rule: Rule
    groups: list[dict[str, Any]]
    state: MutableMapping[torch.Tensor, Any]
    reasons: set[str]
    fresh: set[torch.Tensor]
    scaling: Scaling | None = None
    clipping: Clipping | None = None
    watched: str | None = None

    def groups_on(self, device: torch.device) -> Sequence[Mapping[str, Any]]:
        """The groups as a batch on `device` reads them."""
        groups: Sequence[Mapping[str, Any]] = self.groups
        if self.scaling is not None:
            groups = self.scaling.views(groups, device)
        return groups if self.clipping is None else self.clipping.views(groups, device)

    def traced(self, group: Mapping[str, Any]) -> Traced:
        program = traced(self.rule, group)
        return program if self.scaling is None else program.scaled


class Options:
    """What of a group's options a plan depends on: which executor, which program. Numbers are not among them, but for
    the branching ones being zero."""

    def __init__(self, rule: Rule, group: Mapping[str, Any]) -> None:
        self.rule, self.around, rule = rule, around(rule, group), derived(rule, group)
        flags = [name for name, part in zip(rule.options, signature(rule, group), strict=True) if isinstance(part, tuple)]
        self.names = [*flags, *(name for name in choose.OPTIONS if name in group)]
        self.values = [group[name] for name in self.names]
        self.branches = [(name, truthy(group[name])) for name in rule.branches]
        # A None among numbers selects a program, as in Adafactor's eps; rules that are elementwise have no such numbers.
        self.tuples = [name for name in rule.options if isinstance(group.get(name), tuple | list) and not rule.elementwise]
        self.absent = self._absent(group)

    def _absent(self, group: Mapping[str, Any]) -> list[bool]:
        return [value is None for name in self.tuples for value in group[name]]

    def fit(self, group: Mapping[str, Any]) -> bool:
        if [group[name] for name in self.names] != self.values or around(self.rule, group) != self.around:
            return False
        if self.tuples and self._absent(group) != self.absent:
            return False
        return all(truthy(group[name]) is value for name, value in self.branches)


class Plan:
    """Batches of parameters, one per executor and bucket; `rounds` has a second one where a parameter is listed twice."""

    def __init__(self, owner: Owner) -> None:
        STATS.plans_built += 1
        self.owner = owner
        self.options = [Options(owner.rule, group) for group in owner.groups]
        self.params = [param for group in owner.groups for param in group["params"]]
        self.waiting: list[torch.Tensor] = []
        self.shards = Shards()
        entries = self._entries()
        maker = StateMaker(owner.state)
        try:
            for number, entry in enumerate(entries):
                group = owner.groups[entry.group]
                entry.first = maker.make(entry.traced, entry.param, group, len(entries) - number)
                entry.first |= entry.param in owner.fresh
                entry.state = owner.state[entry.param]
                check_state(entry, owner.name)
            for entry in entries:
                if entry.choice.executor == "compiled":
                    if not is_distributed(entry.param):
                        relay(entry.traced, entry.param, entry.state)
                    settle_scalars(entry.traced, entry.param, owner.groups[entry.group], entry.state)
                if is_distributed(entry.param) and self._runs_on_shards(entry):
                    self.shards.localize(entry)
            self.rounds = [self._settle(self._batches(part)) for part in _rounds(entries)]
            self.prepared = all(batch.prepare() for batch in self.rounds[0]) if self.rounds else True
        except BaseException:
            maker.undo()
            self.shards.take_back()
            raise
        self.states = list(owner.state.values())
        self.native = any(isinstance(batch, CompiledBatch) for batch in chain(*self.rounds))

    # ---- deciding ----

    def _entries(self) -> list[Entry]:
        """Every parameter with a gradient, checked, with its executor; kernels are compiled here."""
        owner, entries = self.owner, []
        for index, group in enumerate(owner.groups):
            choose.check_options(group)
            program = owner.traced(group)
            for param in group["params"]:
                known = owner.state.get(param, {})
                if param.grad is not None:
                    check_gradient(program, param, param.grad, owner.name)
                elif param in owner.fresh or not is_complete(program, param, known):
                    self.waiting.append(param)
                    continue
                entries.append(Entry(param, known, index, program, self._choose(program, group, param)))
        warn_of_fallbacks(entries, owner.groups, owner.name, owner.reasons)
        return entries

    def _choose(self, program: Traced, group: Mapping[str, Any], param: torch.Tensor) -> Choice:
        if self.owner.watched is None:
            return decide(program, group, param, self.owner.state.get(param, {}))
        # Who looks at operators would miss what native code writes; also where fused=True asks for a kernel, as in torch.
        wish = choose.wanted(group, param.device)
        surprise = wish.executor == "compiled" and not wish.required and not is_known_tracer(self.owner.watched)
        return Choice("for-loop", f"{self.owner.watched} is active and looks at every operator", fallback=surprise)

    def _batches(self, entries: Sequence[Entry]) -> list[Batch]:
        name = self.owner.name
        buckets: dict[Any, list[Entry]] = {}
        for entry in entries:
            buckets.setdefault(self._bucket(entry), []).append(entry)
        batches: list[Batch] = []
        for (executor, *more), members in buckets.items():
            groups = self.owner.groups_on(members[0].param.device)
            if executor == "compiled":
                batches.append(more[0](members, groups))
            elif executor == "whole":
                batches.append(WholeBatch(members, groups, name, stack=members[0].choice.executor == "foreach"))
            else:
                batches.append(EAGER[executor](members, groups, name))
        return batches

    def _settle(self, batches: Sequence[Batch]) -> list[Batch]:
        """A compiled batch whose tensors the launcher does not take, for instance states made in inference mode, gets an
        eager executor."""
        settled: list[Batch] = []
        for batch in batches:
            if isinstance(batch, CompiledBatch) and not batch.prepare():
                eager = Choice("for-loop", "a gradient or state is not a plain dense tensor", fallback=True)
                for entry in batch.entries:
                    if entry.choice.required:
                        raise choose.refused(entry.choice, eager.reason)
                    entry.choice = eager
                warn_of_fallbacks(batch.entries, self.owner.groups, self.owner.name, self.owner.reasons)
                whole = isinstance(batch, PassesBatch)
                name, members, groups = self.owner.name, batch.entries, batch.groups
                batch = WholeBatch(members, groups, name, False) if whole else ForLoopBatch(members, groups, name)
            settled.append(batch)
        return settled

    def _runs_on_shards(self, entry: Entry) -> bool:
        """Whether what happens to the local shards happens to the whole."""
        return (
            entry.traced.elementwise
            and reason_against(entry.param) is None
            and not self.owner.groups[entry.group].get("differentiable")
        )

    def _bucket(self, entry: Entry) -> tuple[Any, ...]:
        if entry.choice.executor == "compiled":
            kind = self._compiled(entry)
            options: tuple[torch.dtype, ...] = ()
            if kind is CapturableBatch:
                options = option_dtypes(entry, self.owner.groups_on(entry.param.device)[entry.group])
            spread = placed(entry) if entry.traced.is_clipped else None  # whose norms are summed in one way
            return ("compiled", kind, options, spread, *bucket_of(entry))
        group = self.owner.groups[entry.group]
        on_device = group.get("capturable") and entry.param.device.type != "cpu"
        if group.get("differentiable") or on_device or (self.owner.watched and not is_sparse(entry.param.grad)):
            return ("direct",)
        if not entry.traced.elementwise:
            return ("whole", entry.choice.executor)
        if is_sparse(entry.param.grad):
            return ("sparse",)
        return (entry.choice.executor,)

    def _compiled(self, entry: Entry) -> type[CompiledBatch]:
        if not entry.traced.elementwise:
            return PassesBatch
        if choose.backend(entry.param.device) != "triton":
            return CompiledBatch
        # As torch's, fused=True keeps the 0-dim states on the device, and so does a loaded state from there.
        there = any(entry.state[name].device.type != "cpu" for name in entry.traced.scalar_names)
        return CapturableBatch if there or self.owner.groups[entry.group].get("capturable") else TritonBatch

    # ---- running ----

    def fits(self, state: MutableMapping[torch.Tensor, Any]) -> bool:
        """Whether groups, parameters, options and state dicts are the ones that this plan was made for."""
        owner = self.owner
        if state is not owner.state or len(self.options) != len(owner.groups):
            return False
        for group, options in zip(owner.groups, self.options, strict=True):
            if not options.fit(group):
                return False
        if self.native:
            unchanged = cpp.launcher().unchanged
            return bool(unchanged(owner.groups, self.params, state, self.states, self.waiting))
        return self._unchanged(state)

    def _unchanged(self, state: MutableMapping[torch.Tensor, Any]) -> bool:
        params = list(chain.from_iterable(group["params"] for group in self.owner.groups))
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and len(state) == len(self.states)
            and all(map(is_, state.values(), self.states))
            and all(param.grad is None for param in self.waiting)
        )

    def run(self) -> bool:
        """Check every tensor, then update. False, with nothing written: the plan must be made again."""
        if not self.shards.known:
            return self._run()
        try:
            return self.shards.lend() and self._run()
        finally:
            self.shards.take_back()

    def _run(self) -> bool:
        for number, batches in enumerate(self.rounds):
            if not self.prepared and not all(batch.prepare() for batch in batches):
                if number == 0:
                    return False
                raise RuntimeError(f"{self.owner.name}: a parameter listed twice changed during the step")
            self.prepared = False
            if self.owner.clipping is not None:
                scale = None if self.owner.scaling is None else self.owner.scaling.last[0]
                self.owner.clipping.measure(batches, scale, again=number > 0)
            for batch in batches:
                batch.launch()
        if self.owner.fresh:
            self.owner.fresh.difference_update(entry.param for batch in self.batches for entry in batch.entries)
        return True

    @property
    def batches(self) -> list[Batch]:
        return list(chain(*self.rounds))


def foresee(rule: Rule, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], plan: Plan | None = None) -> list[Entry]:
    """What a step would do if every parameter had a gradient of its own dtype; kernels are compiled here.

    plan: the one at work, if there is; what it decided stands. Mutates: nothing. Raises: as `decide`.
    """
    entries: list[Entry] = []
    batches = plan.batches if plan is not None else []
    settled = {e.param if e.whole is None else e.whole: e.choice for batch in batches for e in batch.entries}
    for index, group in enumerate(groups):
        choose.check_options(group)
        program = traced(rule, group)
        for param in group["params"]:
            if is_lazy(param):  # nothing is known of a parameter without storage before its module has run
                continue
            known = state.get(param, {})
            choice = settled.get(param) or decide(program, group, param, known)
            entries.append(Entry(param, known, index, program, choice))
    return entries


def _rounds(entries: Sequence[Entry]) -> list[list[Entry]]:
    """A parameter listed n times is updated n times, one after the other, as in torch."""
    rounds: list[list[Entry]] = []
    seen: dict[int, int] = {}
    for entry in entries:
        number = seen.get(id(entry.param), 0)
        seen[id(entry.param)] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(entry)
    return rounds
