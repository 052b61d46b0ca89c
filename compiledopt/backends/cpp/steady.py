"""The steady step: what it must know so that native code can take it (launcher/step.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from compiledopt.backends.batch import Standing, Steady, spread_of
from compiledopt.backends.cpp.kernels import launcher
from compiledopt.rules.options import NORM
from compiledopt.rules.rule import Rule
from compiledopt.rules.scalars import scalar_lines

Numbers = dict[str, int]  # the numbers that scalar parts read, by their names in programs


def steady(standing: Standing) -> Steady | None:
    """One call for all further steps, or None where Python must take part."""
    # A capture is refused where a parameter waits for its gradient, which is asked of CUDA.
    unknown = standing.measure is not None and standing.norm is None
    if unknown or (standing.waiting and torch.backends.cuda.is_built()):  # type: ignore[no-untyped-call]
        return None
    return assembled(standing, _part, is_on_host, (), norm=standing.norm)


def assembled(
    standing: Standing,
    part_of: Callable[[Any, Numbers], Any | None],
    is_read: Callable[[Any], bool],
    quiet: Sequence[Callable[[], bool]],
    measure: Callable[[], None] | None = None,
    norm: Callable[[list[float]], float] | None = None,
) -> Steady | None:
    """part_of: what native code does of a batch, or None; is_read: whether that, or a kernel, reads a tensor that is a number;
    quiet: what says no while steps may be taken so; measure, norm: Standing's, of which one is asked where gradients are
    clipped."""
    numbers = Numbers()
    parts = [part for batch in standing.batches if (part := part_of(batch, numbers)) is not None]
    every = zip(standing.groups, standing.rules, standing.own, strict=True)
    groups = [group for one in every if (group := _group(*one, numbers, is_read)) is not None]
    if len(parts) != len(standing.batches) or len(groups) != len(standing.groups):
        return None
    given = [known for *_, known in groups]
    for _, _, inputs, rows, *_ in parts:
        if not all({number for _, number in inputs if number >= 0} <= given[group] for group, *_ in rows):
            return None
    made = launcher().Steady(
        attributes=standing.attributes,
        modules=standing.modules,
        empty=standing.empty,
        param_groups=standing.groups,
        params=standing.params,
        state=standing.state,
        states=standing.states,
        waiting=standing.waiting,
        threads=torch.get_num_threads,
        numbers=len(numbers),
        groups=[(group, entries) for group, entries, _ in groups],
        parts=parts,
        quiet=list(quiet),
        measure=measure,
        norm=norm,
    )
    return made.step  # type: ignore[no-any-return]


def _part(batch: Any, numbers: Numbers) -> Any | None:
    if not batch.is_clipped:
        return part(batch, numbers, None)
    # The squares of a distributed gradient are added over processes.
    alone = all(spread_of(entry) is None for entry in batch.entries)
    return part(batch, numbers, None, NORM, batch.squared.address) if alone else None


def part(batch: Any, numbers: Numbers, elsewhere: Any | None, unknown: str = "", squares: int = 0) -> Any | None:
    """A batch: (plan, scalar part, inputs, rows, whether 0-dim states are rounded, elsewhere, squares). Mutates: numbers.

    elsewhere: what Python does of it, (bring, point, take, launch); unknown: a number of the step that is the norm, or 1 where
    only a device knows it; squares: the address of the kernel that sums those of its gradients, 0 where they are not clipped.
    """
    traced = batch.traced
    first = not batch.rows or any(first for _, first, *_ in batch.rows)
    if first or batch.staged or batch.sources is not None:
        return None
    lines = scalar_lines(traced.program, launcher().OPERATIONS)
    if lines is None or tuple(traced.program.scalar_outputs) != traced.scalar_names:
        return None
    inputs = []
    for place, of_step, name in traced.scalars.inputs:
        if of_step and name != unknown:
            return None
        inputs.append((place, -1 if of_step or place >= 0 else numbers.setdefault(name, len(numbers))))
    rows = [(group, states, sizes) for group, _, states, sizes in batch.rows]
    return batch.native, lines, inputs, rows, batch.rounded, elsewhere, squares


def _group(group: dict[str, Any], rule: Rule, own: Rule, numbers: Numbers, is_read: Callable[[Any], bool]) -> Any | None:
    """A group: (dict, (whether another number may take an entry's place, whether none on the other side of zero, [(element
    of a tuple or -1, number)]) of each entry, the numbers that the host knows). own: its rule before that: what else it asks
    for stands around it."""
    entries, given = [], set()
    for name, value in dict.items(group):  # not what a group may compute
        many = isinstance(value, tuple)
        found = {f"{name}[{i}]": (i, one) for i, one in enumerate(value)} if many else {name: (-1, value)}
        read = [
            (element, numbers[key], one) for key, (element, one) in found.items() if key in numbers and name in rule.options
        ]
        if not all(isinstance(one, (float, int)) or is_read(one) for *_, one in read):
            return None
        given |= {number for _, number, one in read if isinstance(one, (float, int)) or is_on_host(one)}
        exchangeable = name in own.options and name not in rule.static
        entries.append((exchangeable, name in rule.branches, [(element, number) for element, number, _ in read]))
    return group, entries, given


def is_on_host(value: Any) -> bool:
    """Whether native code reads a number that is a tensor."""
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() == 1
