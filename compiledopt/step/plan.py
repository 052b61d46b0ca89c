"""Which parameters go to which batch, decided once and kept until something changes.

Order matters: check everything, then compile, then make states, then check every tensor again as it is now, and only then
write. Whatever raises before the last point leaves parameters and states as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import is_
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Choice, Context, Entry, Sharing, unchanged
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.rules.traced import Traced
from compiledopt.stats import STATS
from compiledopt.step.decide import decide, decide_watched, fall_back, kind_of, warn_of_fallbacks
from compiledopt.step.owner import Owner
from compiledopt.step.seen import Seen
from compiledopt.step.shards import Shards, runs_on_shards
from compiledopt.step.shared import Shared
from compiledopt.step.states import StateMaker, is_complete


class Plan:
    """Batches of parameters, one per backend and bucket; `rounds` has a second one where a parameter is listed twice."""

    def __init__(self, owner: Owner) -> None:
        STATS.plans_built += 1
        self.owner = owner
        self.rules = owner.derived()
        self.seen = [Seen(rule, group) for rule, group in zip(owner.rules, owner.groups, strict=True)]
        self.contexts: dict[torch.device, Context] = {}
        self.numbers: list[dict[str, Any]] = []
        self.main = Context(owner.name, list(owner.groups), self.rules, {}, self.numbers)
        self.flags = self.main.read()
        self.programs = owner.programs()
        self.shared = Shared(self.main, self.programs, owner.watched is not None or self._is_captured())
        self.params = [param for group in owner.groups for param in group["params"]]
        self.waiting: list[torch.Tensor] = []
        self.shards = Shards()
        entries = self._entries()
        maker = StateMaker(owner.state)
        try:
            self._make_states(entries, maker)
            self.rounds = [self._settled(self._batches(part)) for part in _rounds(entries)]
            self.shared.settle(self.rounds, self.contexts)
            self.prepared = not self.rounds or self._is_prepared(0)
        except BaseException:
            maker.undo()
            self.shards.drop_gradients()
            raise
        self.states = list(owner.state.values())
        ways = [batch.unchanged for batch in self.batches]
        self.unchanged = next((way for way in ways if way is not unchanged), unchanged)

    def _is_captured(self) -> bool:
        """Whether a graph may be captured, so that no number is read on the host."""
        return any(group.get("capturable") and param.is_cuda for group in self.owner.groups for param in group["params"][:1])

    # ---- deciding ----

    def _entries(self) -> list[Entry]:
        """Every parameter with a gradient, checked, with its executor; kernels are compiled here."""
        owner, entries = self.owner, []
        numbers = {param: number for number, param in reversed(list(enumerate(self.params)))}
        for index, (group, programs) in enumerate(zip(owner.groups, self.programs, strict=True)):
            decided: dict[Any, Choice] = {}
            for param in group["params"]:
                known = owner.state.get(param, {})
                program = programs.of(param)
                if param.grad is not None:
                    check_gradient(program, param, param.grad, owner.name)
                elif param in owner.fresh or not is_complete(program, param, known):
                    self.waiting.append(param)
                    continue
                kind = kind_of(param, known)
                kind = kind if kind is None else (program, kind)
                choice = decided.get(kind)
                if choice is None:
                    choice = self._choose(program, group, param, known)
                    if kind is not None:
                        decided[kind] = choice
                entries.append(Entry(param, known, index, program, choice, number=numbers[param]))
        warn_of_fallbacks(entries, owner.groups, owner.name, owner.reasons)
        return entries

    def _choose(
        self, program: Traced, group: Mapping[str, Any], param: torch.Tensor, known: MutableMapping[str, Any]
    ) -> Choice:
        if self.owner.watched is None:
            return decide(program, group, param, known)
        return decide_watched(self.owner.watched, program, group, param)

    def _make_states(self, entries: Sequence[Entry], maker: StateMaker) -> None:
        owner = self.owner
        made = maker.make([(entry.traced, entry.param, owner.groups[entry.group]) for entry in entries])
        for entry, first in zip(entries, made, strict=True):
            entry.first = first or entry.param in owner.fresh
            entry.state = owner.state.get(entry.param, entry.state)
            check_state(entry, owner.name)
        for entry in entries:
            group = owner.groups[entry.group]
            assert entry.choice.backend is not None
            entry.choice.backend.adopt(entry, group)
            if runs_on_shards(entry, group):
                self.shards.localize(entry)

    def _context(self, device: torch.device) -> Context:
        if device not in self.contexts:
            step = self.owner.step_on(device)
            self.shared.join(step)
            self.contexts[device] = replace(self.main, step=step)
        return self.contexts[device]

    def _batches(self, entries: Sequence[Entry]) -> list[Batch]:
        buckets: dict[Any, list[Entry]] = {}
        for entry in entries:
            backend, context = entry.choice.backend, self._context(entry.param.device)
            assert backend is not None
            buckets.setdefault((backend, entry.param.device, backend.bucket(entry, context)), []).append(entry)
        return [backend.batch(members, self._context(members[0].param.device)) for (backend, *_), members in buckets.items()]

    def _settled(self, batches: Sequence[Batch]) -> list[Batch]:
        """Where a batch does not take its tensors, for instance states made in inference mode, another executor does."""
        settled: list[Batch] = []
        for batch in batches:
            if not batch.falls_back or batch.prepare():
                settled.append(batch)
                continue
            reason = batch.refused or "a gradient or state is not a plain dense tensor"
            for entry in batch.entries:
                fall_back(entry, self.owner.groups[entry.group], reason)
            warn_of_fallbacks(batch.entries, self.owner.groups, self.owner.name, self.owner.reasons)
            settled += self._batches(batch.entries)
        return settled

    # ---- running ----

    def is_of(self, groups: list[dict[str, Any]], state: MutableMapping[torch.Tensor, Any]) -> bool:
        """Whether it has the tensors of these groups and states: it may fit again, and keeps none alive that they do not."""
        if groups is not self.owner.groups or state is not self.owner.state or len(groups) != len(self.main.groups):
            return False
        if not all(map(is_, groups, self.main.groups)) or any(one.is_captured for one in self.replayed):
            return False
        return self.unchanged(groups, self.params, state, self.states, [])

    def fits(self, groups: list[dict[str, Any]], state: MutableMapping[torch.Tensor, Any]) -> bool:
        """Whether groups, parameters, options and state dicts are the ones that this plan was made for."""
        owner = self.owner
        if groups is not owner.groups or state is not owner.state or len(self.rules) != len(groups):
            return False
        if not all(map(is_, owner.groups, self.main.groups)) or not self.shared.fit():
            return False
        if not all(map(Seen.is_as_before, self.seen)) and not (
            all(map(Seen.fits, self.seen)) and self.main.read() == self.flags
        ):
            return False
        return self.unchanged(owner.groups, self.params, state, self.states, self.waiting)

    def run(self) -> bool:
        """Check every tensor, then update. False, with nothing written: the plan must be made again."""
        with self.owner.writing():
            if not self.shards.parameters:
                return self._run()
            try:
                return self.shards.read_gradients() and self._run()
            finally:
                self.shards.drop_gradients()

    def _run(self) -> bool:
        for number, batches in enumerate(self.rounds):
            if not self.prepared and not self._is_prepared(number):
                if number == 0:
                    return False
                raise RuntimeError(f"{self.owner.name}: a parameter listed twice changed during the step")
            self.prepared = False
            self.owner.measure(batches, again=number > 0)
            if self.shared.exist:
                self.shared.measure(batches, again=number > 0)
            for batch in batches:
                batch.launch()
        self.shared.commit()
        self.owner.count(self.batches)
        if self.owner.fresh:
            self.owner.fresh.difference_update(entry.param for batch in self.batches for entry in batch.entries)
        return True

    def _is_prepared(self, number: int) -> bool:
        return all(batch.prepare() for batch in self.rounds[number]) and (number > 0 or self.shared.prepare())

    @property
    def replayed(self) -> list[Batch | Sharing]:
        """What captured graphs may read the tables of."""
        return [*self.batches, *self.shared.sharing]

    @property
    def batches(self) -> list[Batch]:
        return list(chain(*self.rounds))


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
