"""Rules that are not elementwise and do not run in passes: called on tensors, on stacks of those with one shape where that
saves calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.distributed import is_distributed, put
from compiledopt.backends.eager.given import as_option, drawn_from, given_to, meta_number, noise_bits, number, operand
from compiledopt.backends.eager.rows import LIMIT, bytes_of, cut, reserve
from compiledopt.backends.eager.trial import can_stack, try_rule
from compiledopt.backends.layout import HALF
from compiledopt.rules.options import NOISE, SEED
from compiledopt.rules.trace import named
from compiledopt.rules.traced import Traced

TEMPORARIES = 4  # of a parameter's size, that a rule is expected to hold at once
# On the CPU, stacks of sixteen 256 × 256 matrices: longer ones leave the cache, shorter ones waste calls.
CPU_LIMIT = 16 * 2**20
# Of one parameter, from which on a stack costs more than the calls that it saves: Muon on 24 matrices of 512 × 512 takes 10%
# longer in stacks of four, on 48 of 256 × 256 it takes 28% less in stacks of sixteen.
CPU_ALONE = 2**20


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
        self.kept: frozenset[str] = frozenset()  # of what the last call gave back
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

    def check(self) -> bool:
        """Try the rule without data; whether it can run on stacks. Raises: TraceError."""
        rule = self.traced.rule
        operands = {name: self.operand(self.entries[0], name) for name in self.names}
        every = {name: {**operands, **self.scalars}.get(name) for name in ("param", "grad", *rule.states)}
        bits = torch.zeros_like(operands["param"], dtype=torch.int32, device="meta")
        noisy = self.seed is not None
        try_rule(rule, every, {**self.options, NOISE: drawn_from(bits)} if noisy else self.options)
        options, scalars = self.options, self.scalars
        self.options = {name: meta_number(value) for name, value in options.items()}
        self.scalars = {name: meta_number(value) for name, value in scalars.items()}
        try:
            return can_stack(self.call, [*operands.values(), *[bits] * noisy]) is None
        finally:
            self.options, self.scalars = options, scalars

    def bounds(self, together: bool) -> list[int]:
        """Where to cut the parameters, so that what is stacked stays small."""
        params = [entry.param for entry in self.entries]
        on_host = params[0].device.type == "cpu"
        if not together or (on_host and bytes_of(params[0]) >= CPU_ALONE):
            return list(range(len(params) + 1))
        return cut(params, TEMPORARIES, CPU_LIMIT if on_host else LIMIT)

    def update(self, entries: Sequence[Entry]) -> None:
        columns = {name: [self.operand(entry, name) for entry in entries] for name in self.names}
        if self.seed is not None:
            columns[NOISE] = [noise_bits(entry, self.seed) for entry in entries]
        if len(entries) == 1:
            given = {name: column[0] for name, column in columns.items()}
            results = [
                [_before(name, result, given)] for name, result in zip(self.targets, self.call(*given.values()), strict=True)
            ]
        else:
            stacked = torch.vmap(self.call)(*map(torch.stack, columns.values()))
            results = [list(result.unbind()) for result in stacked]
        for name, values in zip(self.targets, results, strict=True):
            if name in self.kept:  # as it was, such as matrices that are not due
                continue
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


class StackedBatch(Batch):
    """Parameters whose rule is not elementwise. stack: whether to run those of one shape as one."""

    executor = "foreach"

    stack = True

    def __init__(self, entries: list[Entry], context: Context) -> None:
        self.entries = entries
        self.context = context
        self.checked: dict[tuple[Any, ...], bool] = {}

    def prepare(self) -> bool:
        """Read and check every tensor; a rule that meets a shape for the first time is tried without data."""
        stacks: dict[tuple[Any, ...], Stack] = {}
        for entry in self.entries:
            param, grad, traced = entry.param, entry.param.grad, entry.traced
            if grad is None:
                continue
            check_gradient(traced, param, grad, self.context.owner)
            check_state(entry, self.context.owner)
            values = tuple(float(entry.state[name]) for name in counts(traced))
            dtypes = (param.dtype, grad.dtype, *[entry.state[name].dtype for name in traced.states_of(param)])
            branch = entry.first and "first" in traced.rule.branches
            shape = (traced, entry.group, param.shape, param.device, dtypes, branch)
            key = (*shape, entry.first, values)
            if key not in stacks:
                stacks[key] = Stack(entry, self.context, values)
            stacks[key].entries.append(entry)
            if shape not in self.checked:
                self.checked[shape] = stacks[key].check()
        self.work = [(stack, stack.bounds(self.stack and self.checked[key[:6]])) for key, stack in stacks.items()]
        for stack, bounds in self.work:
            most = max(end - begin for begin, end in pairwise(bounds))
            param = stack.entries[0].param
            reserve(most * (TEMPORARIES + len(stack.names)) * bytes_of(param), param.device)
        return True

    def renew(self) -> None:
        for stack, _ in self.work:
            stack.options["grad_norm"] = number(self.context.step["grad_norm"])

    def launch(self) -> None:
        with torch.no_grad():
            for stack, bounds in self.work:
                for begin, end in pairwise(bounds):
                    stack.update(stack.entries[begin:end])
                for entry in stack.entries:
                    entry.first = False
        self.work = []


class OneByOneBatch(StackedBatch):
    """The same without stacks."""

    executor = "for-loop"
    stack = False
