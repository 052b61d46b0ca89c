"""Parameters of one shape, for a rule that is called on tensors: on stacks of them where that saves calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import is_
from typing import Any

import torch

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.eager.given import (
    as_option,
    drawn_from,
    given_to,
    may_write,
    meta_number,
    noise_bits,
    number,
    operand,
    put_back,
    told,
)
from compiledopt.backends.eager.in_place import InPlace, Met, as_number, is_same, is_stacked, mapped
from compiledopt.backends.eager.rows import LIMIT, bytes_of, cut
from compiledopt.backends.eager.tape import Tape
from compiledopt.backends.eager.trial import can_stack, try_rule, without_data
from compiledopt.backends.layout import HALF, held, is_dense, lacks_memory
from compiledopt.rules.options import NOISE, NORM, SEED
from compiledopt.rules.trace import named
from compiledopt.rules.traced import Traced

TEMPORARIES = 4  # of a parameter's size, that a rule is expected to hold at once
# On the CPU, stacks of sixteen 256 × 256 matrices: longer ones leave the cache, shorter ones waste calls.
CPU_LIMIT = 16 * 2**20
# Of one parameter, from which on a stack costs more than the calls that it saves: Muon on 24 matrices of 512 × 512 takes 10%
# longer in stacks of four, on 48 of 256 × 256 it takes 28% less in stacks of sixteen.
CPU_ALONE = 2**20


@dataclass(frozen=True)
class Tried:
    """What trying a rule told of it. together: whether it runs on stacks; read, touched: as `Trial` has them; tape: what it
    calls, where that is all that it does."""

    together: bool
    read: frozenset[str]
    touched: frozenset[str]
    tape: Tape | None


class Stack:
    """Parameters of one shape, with the same dtypes, options and 0-dim states. values: of those that are counts."""

    tried: Tried
    given: dict[str, Any]
    options: dict[str, Any]
    scalars: dict[str, torch.Tensor]
    totals: tuple[torch.Tensor, ...]

    def __init__(self, entry: Entry, values: tuple[float, ...]) -> None:
        self.traced: Traced = entry.traced
        self.entries: list[Entry] = []
        self.first, self.values = entry.first, values
        self.placed, self.counts = places(self.traced), counts(self.traced)
        self.names = ("param", "grad", *self.traced.states_of(entry.param), *self.placed)
        # Of what the last call gave back: what is where it was given, and which 0-dim states are one for all.
        self.there: set[str] = set()
        self.alike: set[str] = set()
        self.seed: Any = None
        self.asked, self.totals = entry.measured.asked, ()

    def read(self, known: dict[Any, dict[str, Any]], context: Context) -> None:
        """Read the numbers of a step. known: what was read of them for other shapes. Mutates: `known`."""
        entry, rule = self.entries[0], self.traced.rule
        key = self.traced, entry.group, entry.first, entry.param.dtype
        if key not in known:
            known[key] = given_to(entry, context)
        self.given, self.made = dict(known[key]), False
        self.read_measured(context)
        self.seed = self.given[SEED] if NOISE in rule.options else None

    def read_measured(self, context: Context) -> None:
        """Read the numbers that follow from the gradients of all parameters."""
        if NORM in self.given:
            self.given[NORM] = context.step[NORM]
        self.totals = tuple(number(context.number(self.entries[0].group, name)) for name in self.asked)

    def _make(self) -> None:
        """The numbers that were read, as the rule takes them."""
        rule, self.made = self.traced.rule, True
        self.options = {name: as_option(rule, name, self.given[name]) for name in rule.options}
        self.scalars = {name: number(value) for name, value in zip(self.counts, self.values, strict=True)}

    def seal(self, together: bool) -> None:
        """Keep what was checked, for `is_as_before`. together: whether to stack what can be stacked."""
        params = [entry.param for entry in self.entries]
        self.bounds = self._bounds(together and self.tried.together)
        self.most = max(end - begin for begin, end in pairwise(self.bounds))
        self.seen = _seen(params), _seen([param.grad for param in params])
        self.states = {name: [entry.state[name] for entry in self.entries] for name in (*self.names[2:], *self.counts)}
        self.homes = {"param": params, **self.states}
        self.as_they_are = {name for name in self.homes if name in self.names and all(map(self._is_given, self.homes[name]))}
        self.as_they_are -= {*self.placed}
        self.inference = torch.is_inference_mode_enabled()  # outside of it, some states cannot be written

    @staticmethod
    def _is_given(home: torch.Tensor) -> bool:
        """Whether the rule is given this very tensor."""
        return operand(home) is home and not home.is_inference()

    def is_as_before(self) -> bool:
        """Whether nothing changed that the full check looks at, and the counts are one for all, which are read."""
        if any(entry.first is not self.first for entry in self.entries) or self.inference != torch.is_inference_mode_enabled():
            return False
        params = self.homes["param"]
        if any(lacks_memory(tensor) for param in params for tensor in (param, param.grad)):
            return False
        if (_seen(params), _seen([param.grad for param in params])) != self.seen:
            return False
        for name, tensors in self.states.items():
            if not all(map(is_, [entry.state.get(name) for entry in self.entries], tensors)):
                return False
        return self._read_counts()

    def _read_counts(self) -> bool:
        try:
            columns = [[state.item() for state in self.states[name]] for name in self.counts]
        except RuntimeError:  # several elements: the full check tells
            return False
        self.values = tuple(column[0] for column in columns)
        return all(column.count(column[0]) == len(column) for column in columns)

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rule on tensors named as in `names`, to the new values of `targets`, in that order."""
        rule, options = self.traced.rule, self.options
        if self.seed is not None:
            *tensors, bits = tensors  # type: ignore[assignment]
            options = {**options, NOISE: drawn_from(bits)}
        operands = {**dict(zip(self.names, tensors, strict=True)), **self.scalars}
        ordered = [operands.get(name) for name in ("param", "grad", *rule.states)]
        with told(self.totals):
            results = named(rule, rule(*ordered, **options), self.targets, torch.Tensor)
        self.there = {name for name in self.targets if is_same(results[name], operands.get(name))}
        self.alike = {name for name in self.scalars if not is_stacked(results[name])}
        return tuple(results[name] for name in self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        return ("param", *self.names[2:], *self.scalars)

    def of(self, entry: Entry, name: str) -> torch.Tensor:
        if name == "param":
            return entry.param
        return entry.param.grad if name == "grad" else entry.state[name]  # type: ignore[return-value]

    def operand(self, entry: Entry, name: str) -> torch.Tensor:
        """What the rule is given; a 0-dim state that is stacked has the dtype of the others, as torch.vmap wants it."""
        if name not in self.placed:
            return operand(self.of(entry, name))
        wide = torch.float32 if entry.param.dtype in HALF else entry.param.dtype
        number: torch.Tensor = entry.state[name].reshape(())
        return number.to(entry.param.device, wide)

    def check(self) -> tuple[Tried, list[Met]]:
        """Try the rule without data; (what that told, the pieces that it calls). Raises: TraceError."""
        rule = self.traced.rule
        self._make()
        operands = {name: self.operand(self.entries[0], name) for name in self.names}
        every = {name: {**operands, **self.scalars}.get(name) for name in ("param", "grad", *rule.states)}
        bits = torch.zeros_like(operands["param"], dtype=torch.int32, device="meta")
        noisy = self.seed is not None
        options, scalars, totals = self.options, self.scalars, self.totals
        with told(meta_number(totals)):
            trial = try_rule(rule, every, {**options, NOISE: drawn_from(bits)} if noisy else options)
        self.options = {name: meta_number(value) for name, value in options.items()}
        self.scalars = {name: meta_number(value) for name, value in scalars.items()}
        self.totals = meta_number(totals)
        try:
            together = can_stack(self.call, [*operands.values(), *[bits] * noisy]) is None
        finally:
            self.options, self.scalars, self.totals = options, scalars, totals
        return Tried(together, frozenset(trial.read), frozenset(trial.touched), self._taped(every)), trial.met

    def _taped(self, every: Mapping[str, torch.Tensor | None]) -> Tape | None:
        """Its calls, written down; None where it does more than that. every: the operands."""
        if self.seed is not None or self.asked or self.entries[0].param.device.type != "cpu":
            return None
        with torch.inference_mode(False):
            operands = {name: without_data(value) for name, value in every.items() if name not in self.scalars}
        tape = Tape(self.traced.rule, operands, self.counts, self.placed)
        try:
            tape.write(operands, self.options)
        except (TypeError, AttributeError, ValueError, RuntimeError):  # what a rule says to symbols, and they to it
            return None
        return tape

    def _bounds(self, together: bool) -> list[int]:
        """Where to cut the parameters, so that what is stacked stays small."""
        params = [entry.param for entry in self.entries]
        on_host = params[0].device.type == "cpu"
        if not together or (on_host and bytes_of(params[0]) >= CPU_ALONE):
            return list(range(len(params) + 1))
        return cut(params, TEMPORARIES, CPU_LIMIT if on_host else LIMIT)

    def update(self, begin: int, end: int, runs: type[InPlace]) -> None:
        """Update the parameters from `begin` to `end`. runs: by what."""
        tape, entries = self.tried.tape if runs.has_kernels else None, self.entries[begin:end]
        if tape is not None and (played := self._plays(tape, begin, end)) is not None:
            self._play(tape, begin, end, played)
            return
        columns = {
            name: self.homes[name][begin:end] if name in self.as_they_are else [self.operand(each, name) for each in entries]
            for name in self.names
        }
        if self.seed is not None:
            columns[NOISE] = [noise_bits(entry, self.seed) for entry in entries]
        self._map(begin, end, columns, runs)

    def _map(self, begin: int, end: int, columns: Mapping[str, list[torch.Tensor]], runs: type[InPlace]) -> None:
        """By the rule, on stacks."""
        entries, alone = self.entries[begin:end], end - begin == 1
        if not self.made:
            self._make()
        apart = [] if alone else self._apart(entries, columns)
        given = {name: column[0] if alone else torch.stack(column) for name, column in columns.items() if name not in apart}
        given |= {name: columns[name][0].detach().expand(len(entries), *columns[name][0].shape) for name in apart}
        owned = [name for name in self.targets if name in given and name not in self.tried.read]
        owned = [name for name in owned if name in apart or may_write(self.of(entries[0], name), given[name])]
        runner = runs([given[name] for name in owned], [(given[name], columns[name]) for name in apart])
        ordered = [given[name] for name in columns]
        with runner:
            found = self.call(*ordered) if alone else mapped(self.call, ordered)
        new: dict[str, list[torch.Tensor]] = {}
        for name, result in zip(self.targets, found, strict=True):
            if name in self.there and (name in apart or name not in given or not self._is_copy(entries[0], name, given[name])):
                continue  # as it was, such as matrices that are not due, or written by now
            if name in self.there and id(given[name]) not in runner.written:
                continue
            new[name] = [_before(name, result, given)] if alone else list(result.unbind())
        for name, values in new.items():
            homes = self.homes[name][begin:end]
            if name in self.alike and values[0].device.type == "cpu":
                value = values[0].item()
                for home in homes:
                    home.fill_(held(value, home.dtype))
            else:
                put_back(homes, values)

    def _plays(self, tape: Tape, begin: int, end: int) -> Mapping[str, list[torch.Tensor]] | None:
        """The operands, where tensors are given as they are, and lie in memory as those did that the tape was written with."""
        if any(name not in self.as_they_are for name in tape.names if name != "grad"):
            return None
        grads = [self.of(entry, "grad") for entry in self.entries[begin:end]]
        columns = {name: grads if name == "grad" else self.homes[name][begin:end] for name in tape.names}
        return columns if all(operand(grad) is grad for grad in grads) and tape.fits(columns) else None

    def _play(self, tape: Tape, begin: int, end: int, columns: Mapping[str, list[torch.Tensor]]) -> None:
        numbers = dict(zip(self.counts, self.values, strict=True))
        for name, value in self.given.items():
            if isinstance(value, (tuple, list)):
                numbers.update((f"{name}[{i}]", as_number(one)) for i, one in enumerate(value))
            else:
                numbers[name] = as_number(value)
        for name, value in tape.play(columns, numbers).items():
            for home in self.homes[name][begin:end]:
                home.fill_(held(value, home.dtype))

    def _apart(self, entries: Sequence[Entry], columns: Mapping[str, list[torch.Tensor]]) -> list[str]:
        """What need not be stacked. On a GPU one product of stacks is faster than its parts."""
        if entries[0].param.device.type != "cpu":
            return []
        found = [name for name in columns if name not in self.tried.touched and self._stays(entries, name, columns)]
        starts = [columns[name][0].data_ptr() for name in found]  # of tensors without elements: none
        return [name for name, start in zip(found, starts, strict=True) if start and starts.count(start) == 1]

    def _stays(self, entries: Sequence[Entry], name: str, columns: Mapping[str, list[torch.Tensor]]) -> bool:
        """Whether what is given are the tensors themselves, which lie in memory alike."""
        if name == "grad":
            homes = (entry.param.grad for entry in entries)
            if not all(given is home and not given.is_inference() for given, home in zip(columns[name], homes, strict=True)):
                return False
        elif name not in self.as_they_are:
            return False
        first, stride = columns[name][0], columns[name][0].stride()
        return is_dense(first) and all(given.stride() == stride for given in columns[name])

    def _is_copy(self, entry: Entry, name: str, given: torch.Tensor) -> bool:
        home = self.of(entry, name)
        return given is not home and given.data_ptr() != home.data_ptr()


def _seen(tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """What a full check looks at."""
    return [one if one is None else (one.layout, one.dtype, one.shape, one.device) for one in tensors]


def places(traced: Traced) -> tuple[str, ...]:
    """The 0-dim states in which parameters of one stack differ, so that they are stacked too."""
    return tuple(name for name in traced.scalar_names if traced.rule.starts_from_place(name))


def counts(traced: Traced) -> tuple[str, ...]:
    """The other 0-dim states, which are one number for a stack."""
    return tuple(name for name in traced.scalar_names if not traced.rule.starts_from_place(name))


def _before(name: str, result: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What becomes of `name`: where that is another operand as it was, a copy, since that may be written first."""
    others = [value for other, value in given.items() if other != name]
    return result.clone() if any(result is value or result._base is value for value in others) else result
