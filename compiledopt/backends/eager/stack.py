"""Parameters of one shape, for a rule that is called on tensors: on stacks of them where that saves calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compiledopt.backends.batch import Context, Entry
from compiledopt.backends.distributed import is_distributed, put
from compiledopt.backends.eager.given import as_option, drawn_from, given_to, meta_number, noise_bits, number, operand
from compiledopt.backends.eager.in_place import InPlace, Met, is_same
from compiledopt.backends.eager.rows import LIMIT, bytes_of, cut
from compiledopt.backends.eager.trial import can_stack, try_rule
from compiledopt.backends.layout import HALF, is_dense, same_layout
from compiledopt.rules.options import NOISE, SEED
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
    """What trying a rule told of it. together: whether it runs on stacks; read, touched: as `Trial` has them."""

    together: bool
    read: frozenset[str]
    touched: frozenset[str]


class Stack:
    """Parameters of one shape, with the same dtypes, options and 0-dim states."""

    def __init__(self, entry: Entry, context: Context, values: Sequence[float]) -> None:
        self.traced: Traced = entry.traced
        self.entries: list[Entry] = []
        rule, param = self.traced.rule, entry.param
        self.placed = places(self.traced)
        self.names = ("param", "grad", *self.traced.states_of(param), *self.placed)
        self.scalars = {name: number(float(value)) for name, value in zip(counts(self.traced), values, strict=True)}
        given = given_to(entry, context)
        self.there: set[str] = set()  # of what the last call gave back: where it was given
        self.options = {name: as_option(rule, name, given[name]) for name in rule.options}
        self.seed = given[SEED] if NOISE in rule.options else None

    def call(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rule on tensors named as in `names`, to the new values of `targets`, in that order."""
        rule, options = self.traced.rule, self.options
        if self.seed is not None:
            *tensors, bits = tensors  # type: ignore[assignment]
            options = {**options, NOISE: drawn_from(bits)}
        operands = {**dict(zip(self.names, tensors, strict=True)), **self.scalars}
        ordered = [operands.get(name) for name in ("param", "grad", *rule.states)]
        results = named(rule, rule(*ordered, **options), self.targets, torch.Tensor)
        self.there = {name for name in self.targets if is_same(results[name], operands.get(name))}
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
        operands = {name: self.operand(self.entries[0], name) for name in self.names}
        every = {name: {**operands, **self.scalars}.get(name) for name in ("param", "grad", *rule.states)}
        bits = torch.zeros_like(operands["param"], dtype=torch.int32, device="meta")
        noisy = self.seed is not None
        trial = try_rule(rule, every, {**self.options, NOISE: drawn_from(bits)} if noisy else self.options)
        options, scalars = self.options, self.scalars
        self.options = {name: meta_number(value) for name, value in options.items()}
        self.scalars = {name: meta_number(value) for name, value in scalars.items()}
        try:
            together = can_stack(self.call, [*operands.values(), *[bits] * noisy]) is None
            return Tried(together, frozenset(trial.read), frozenset(trial.touched)), trial.met
        finally:
            self.options, self.scalars = options, scalars

    def bounds(self, together: bool) -> list[int]:
        """Where to cut the parameters, so that what is stacked stays small."""
        params = [entry.param for entry in self.entries]
        on_host = params[0].device.type == "cpu"
        if not together or (on_host and bytes_of(params[0]) >= CPU_ALONE):
            return list(range(len(params) + 1))
        return cut(params, TEMPORARIES, CPU_LIMIT if on_host else LIMIT)

    def update(self, entries: Sequence[Entry], runs: type[InPlace], tried: Tried) -> None:
        """runs: by what."""
        columns = {name: [self.operand(entry, name) for entry in entries] for name in self.names}
        if self.seed is not None:
            columns[NOISE] = [noise_bits(entry, self.seed) for entry in entries]
        alone = len(entries) == 1
        apart = [name for name in columns if name not in tried.touched and not alone and self._stays(entries, name, columns)]
        given = {name: column[0] if alone else torch.stack(column) for name, column in columns.items() if name not in apart}
        given |= {name: columns[name][0].detach().expand(len(entries), *columns[name][0].shape) for name in apart}
        owned = [name for name in self.targets if name in given and name not in tried.read]
        owned = [name for name in owned if name in apart or self._may_write(entries[0], name, given[name])]
        runner = runs([given[name] for name in owned], [(given[name], columns[name]) for name in apart])
        ordered = [given[name] for name in columns]
        with runner:
            found = self.call(*ordered) if alone else torch.vmap(self.call)(*ordered)
        new: dict[str, list[torch.Tensor]] = {}
        for name, result in zip(self.targets, found, strict=True):
            if name in self.there and (name in apart or name not in given or not self._is_copy(entries[0], name, given[name])):
                continue  # as it was, such as matrices that are not due, or written by now
            if name in self.there and id(given[name]) not in runner.written:
                continue
            new[name] = [_before(name, result, given)] if alone else list(result.unbind())
        for name, values in new.items():
            self._put(name, entries, values)

    def _stays(self, entries: Sequence[Entry], name: str, columns: Mapping[str, Sequence[torch.Tensor]]) -> bool:
        """Whether what is given are the tensors themselves, which lie in memory alike."""
        first = columns[name][0]
        if name == NOISE or name in self.placed or not is_dense(first):
            return False
        homes = (self.of(entry, name) for entry in entries)
        return all(
            given is home and same_layout(first, given) and not given.is_inference()
            for given, home in zip(columns[name], homes, strict=True)
        )

    def _is_copy(self, entry: Entry, name: str, given: torch.Tensor) -> bool:
        home = self.of(entry, name)
        return given is not home and given.data_ptr() != home.data_ptr()

    def _may_write(self, entry: Entry, name: str, given: torch.Tensor) -> bool:
        """Whether what is given may be written: a copy, or a dense tensor that stands nowhere else."""
        home = self.of(entry, name)
        return not is_distributed(home) and (given is not home or (is_dense(home) and not home.is_inference()))

    def _put(self, name: str, entries: Sequence[Entry], values: list[torch.Tensor]) -> None:
        homes = [self.of(entry, name) for entry in entries]
        if homes[0].shape != values[0].shape:  # 0-dim ones, that `operand` gave a dimension
            values = [value.reshape(home.shape) for home, value in zip(homes, values, strict=True)]
        if any(map(is_distributed, homes)):
            for home, value in zip(homes, values, strict=True):
                put(home, value.to(home.dtype)) if is_distributed(home) else home.copy_(value)
        else:
            torch._foreach_copy_(homes, values)


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
