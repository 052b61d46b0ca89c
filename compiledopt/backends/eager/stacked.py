"""Rules that are not elementwise and do not run in passes: called on tensors, on stacks of those with one shape where that
saves calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from compiledopt.backends.batch import Batch, Context, Entry
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.cpp.kernels import pieces_driver, platform_reason
from compiledopt.backends.cpp.pieces import Compiled, make
from compiledopt.backends.eager.given import number
from compiledopt.backends.eager.in_place import InPlace, Met
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
        self.work: list[tuple[Stack, list[int], Tried]] = []

    def prepare(self) -> bool:
        """Read and check every tensor; a rule that meets a shape for the first time is tried without data."""
        stacks: dict[tuple[Any, ...], Stack] = {}
        for entry in self.entries:
            param, grad, traced = entry.param, entry.param.grad, entry.traced
            if grad is None:
                continue
            check_gradient(traced, param, grad, self.context.owner)
            check_state(entry, self.context.owner)
            if not param.numel():  # means and extremes of nothing are no numbers; kernels have nothing to do
                continue
            values = tuple(float(entry.state[name]) for name in counts(traced))
            dtypes = (param.dtype, grad.dtype, *[entry.state[name].dtype for name in traced.states_of(param)])
            branch = entry.first and "first" in traced.rule.branches
            shape = (traced, entry.group, param.shape, param.device, dtypes, branch)
            key = (*shape, entry.first, values)
            if key not in stacks:
                stacks[key] = Stack(entry, self.context, values)
            stacks[key].entries.append(entry)
            if shape not in self.checked:
                self.checked[shape], met = stacks[key].check()
                self.make_ready(met)
        self.work = []
        for key, stack in stacks.items():
            tried = self.checked[key[:6]]
            self.work.append((stack, stack.bounds(self.stack and tried.together), tried))
        for stack, bounds, _ in self.work:
            most = max(end - begin for begin, end in pairwise(bounds))
            param = stack.entries[0].param
            reserve(most * (TEMPORARIES + len(stack.names)) * bytes_of(param), param.device)
        return True

    def make_ready(self, met: Sequence[Met]) -> None:
        """Of a rule that was tried, the pieces that it calls."""

    def renew(self) -> None:
        for stack, _, _ in self.work:
            stack.options["grad_norm"] = number(self.context.step["grad_norm"])

    def launch(self) -> None:
        with torch.no_grad():
            for stack, bounds, tried in self.work:
                for begin, end in pairwise(bounds):
                    stack.update(stack.entries[begin:end], self.runs, tried)
                for entry in stack.entries:
                    entry.first = False
        self.work = []


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

    def make_ready(self, met: Sequence[Met]) -> None:
        for piece, numbers, dtypes in met:
            try:
                make(piece, numbers, dtypes)
            except CompileError as error:
                warn(
                    f"compiledopt.{self.context.owner}: {piece.name}, a piece of the update, runs by torch's operations, "
                    f"because {error}. Pass compiled=False to choose that without this warning."
                )
