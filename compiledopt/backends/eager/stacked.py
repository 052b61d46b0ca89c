"""Rules that are not elementwise and do not run in passes: called on tensors, on stacks of those with one shape where that
saves calls."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry, TotalOf, Value
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.cpp import matrices
from compiledopt.backends.cpp.kernels import pieces_driver, platform_reason
from compiledopt.backends.cpp.pieces import Compiled, make
from compiledopt.backends.eager.in_place import InPlace, Met
from compiledopt.backends.eager.measured import totals_of_entries
from compiledopt.backends.eager.rows import bytes_of, reserve
from compiledopt.backends.eager.stack import TEMPORARIES, Stack, Tried, counts
from compiledopt.errors import CompileError, warn


class StackedBatch(Batch):
    """Parameters whose rule is not elementwise. stack: whether to run those of one shape as one."""

    executor = "foreach"

    goes_beside = True
    stack = True
    runs: type[InPlace] = InPlace

    def __init__(self, entries: list[Entry], context: Context) -> None:
        self.entries = entries
        self.context = context
        self.checked: dict[tuple[Any, ...], Tried] = {}
        self.stacks: list[Stack] = []
        self.idle: list[torch.Tensor] = []  # parameters that had no gradient when the stacks were made

    def prepare(self) -> bool:
        """Read and check every tensor and every number; nothing is written."""
        as_before = self.stacks and all(param.grad is None for param in self.idle)
        if not (as_before and all(stack.is_as_before() for stack in self.stacks)):
            self._make_stacks()
        known: dict[Any, Any] = {}
        for stack in self.stacks:
            stack.read(known, self.context)
            param = stack.entries[0].param
            reserve(stack.most * (TEMPORARIES + len(stack.names)) * bytes_of(param), param.device)
        return True

    def _make_stacks(self) -> None:
        """The full check of every tensor; a rule that meets a shape for the first time is tried without data."""
        stacks: dict[tuple[Any, ...], Stack] = {}
        known: dict[Any, Any] = {}
        self.stacks, self.idle = [], []
        for entry in self.entries:
            param, grad, traced = entry.param, entry.param.grad, entry.traced
            if grad is None:
                self.idle.append(param)
                continue
            check_gradient(traced, param, grad, self.context.owner)
            check_state(entry, self.context.owner)
            if not param.numel():
                self.idle.append(param)  # so that the next step looks again
                entry = _counted(entry)
                param, grad = entry.param, entry.param.grad
                assert grad is not None
            values = tuple(float(entry.state[name]) for name in counts(traced))
            dtypes = (param.dtype, grad.dtype, *[entry.state[name].dtype for name in traced.states_of(param)])
            branch = entry.first and "first" in traced.rule.branches
            shape = (traced, entry.group, param.shape, param.device, dtypes, branch)
            key = (*shape, entry.first, values)
            if key not in stacks:
                stacks[key] = Stack(entry, values)
            stacks[key].entries.append(entry)
            if shape not in self.checked:
                stacks[key].read(known, self.context)
                self.checked[shape], met = stacks[key].check()
                self.make_ready(met)
            stacks[key].tried = self.checked[shape]
        for stack in stacks.values():
            stack.seal(self.stack)
        self.stacks = list(stacks.values())

    def make_ready(self, met: Sequence[Met]) -> None:
        """Of a rule that was tried, the pieces that it calls."""

    def totals(self, round: int) -> dict[TotalOf, Value]:
        return totals_of_entries((entry for entry in self.entries if entry.param.grad is not None), self.context, round)

    def renew(self) -> None:
        for stack in self.stacks:
            stack.read_measured(self.context)

    def launch(self) -> None:
        with torch.no_grad():
            for stack in self.stacks:
                for begin, end in pairwise(stack.bounds):
                    stack.update(begin, end, self.runs)
            for entry in self.entries:
                if entry.param.grad is not None:
                    entry.first = False


def _counted(entry: Entry) -> Entry:
    """For a parameter without elements, whose means and extremes are no numbers: one that has some, and its counts."""

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros([max(1, size) for size in tensor.shape], dtype=tensor.dtype, device=tensor.device)

    assert entry.param.grad is not None
    param = filled(entry.param)
    param.grad = filled(entry.param.grad)
    state = {name: value if value.dim() == 0 else filled(value) for name, value in entry.state.items()}
    return replace(entry, param=param, state=state)


class OneByOneBatch(StackedBatch):
    """The same without stacks."""

    executor = "for-loop"
    stack = False


class PiecedBatch(StackedBatch):
    """The same, and what of the rule is pointwise by kernels."""

    runs = Compiled

    @staticmethod
    def refusal() -> str | None:
        """Why there are no kernels on this machine, or None."""
        try:
            pieces_driver()
        except CompileError as error:
            return str(error)
        return platform_reason()

    @staticmethod
    def bucket(entry: Entry) -> Hashable | None:
        """What entries have in common for which there are kernels around one function of whole matrices."""
        return matrices.bucket(entry)

    described = staticmethod(matrices.described)

    @staticmethod
    def around(entries: list[Entry], context: Context) -> Batch:
        """Of those."""
        return matrices.batch(entries, context) or PiecedBatch(entries, context)

    def make_ready(self, met: Sequence[Met]) -> None:
        for piece, numbers, dtypes in met:
            try:
                make(piece, numbers, dtypes)
            except CompileError as error:
                warn(
                    f"compiledopt.{self.context.owner}: {piece.name}, a piece of the update, runs by torch's operations, "
                    f"because {error}. Pass compiled=False to choose that without this warning."
                )
