"""The interface between a step and what runs it: what a backend is asked, and what its batches promise.

A step goes in two phases over all batches. `prepare` reads and checks: whatever can fail, fails there, with nothing written.
`launch` writes, and must not fail for anything that `prepare` could have seen. Between the two, where gradients are clipped or
a rule sums over all parameters, `squares` and `totals` are asked of every batch, and `renew` told that the sums are known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from operator import is_
from typing import Any, ClassVar

import torch

from compiledopt.backends.distributed import local, placed, summed
from compiledopt.backends.layout import as_real, scalar_dtype
from compiledopt.rules.program import Node, Program
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Runnable, Traced, Variant

Value = torch.Tensor | float
TotalOf = tuple[str, int | None]  # a total by its name, and the group that it is summed over, if it is one
Unchanged = Callable[[Any, Any, Any, Any, Any], bool]
Steady = Callable[[Any], bool]  # takes a step of an optimizer; False, with nothing written, where anything changed


@dataclass(frozen=True)
class Choice:
    """executor: what `optimizer.executor` says: "compiled", "foreach" or "for-loop"; reason: why; backend: who runs it;
    required: whether it was asked for by name; fallback: whether it stands in for the compiled executor, which nobody
    declined."""

    executor: str
    reason: str
    required: bool = False
    fallback: bool = False
    backend: Backend | None = field(default=None, compare=False)


@dataclass(eq=False)
class Entry:
    """A parameter with a gradient. group: the index of its group; first: whether its states are made in this step; number: of
    the parameter in its optimizer; offset: of the first of its elements that are here, where it is a shard."""

    param: torch.Tensor
    state: MutableMapping[str, Any]
    group: int
    traced: Traced
    choice: Choice
    first: bool = False
    whole: torch.Tensor | None = None  # the distributed parameter that `param` is the local shard of
    number: int = 0
    offset: int = 0

    @property
    def runs(self) -> Traced | Variant:
        """What the compiled executor runs for it."""
        return self.traced.runs(self.param)

    @property
    def measured(self) -> Runnable:
        """What knows the sums over all parameters that its rule asks for."""
        return self.traced.measured(self.param)

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the operands of `runs`; of states that are not made yet, what they will be."""
        grad = self.param if self.param.grad is None else self.param.grad
        return (self.param.dtype, grad.dtype, *future_dtypes(self.traced, self.param, self.state))

    def state_bytes(self) -> dict[str, float]:
        """Of each state that is not 0-dim, for each element of the parameter."""
        shapes, count = self.traced.shapes_of(self.param), max(1, self.param.numel())
        dtypes = future_dtypes(self.traced, self.param, self.state)
        return {
            name: dtype.itemsize * shape.numel() / count for (name, shape), dtype in zip(shapes.items(), dtypes, strict=True)
        }


def future_dtypes(traced: Traced, param: torch.Tensor, state: Mapping[str, Any]) -> tuple[torch.dtype, ...]:
    """The dtypes of the states that are not 0-dim, as they are, or as they will be made."""
    values = [(state.get(name), made) for name, made in traced.dtypes_of(param).items()]
    return tuple(value.dtype if isinstance(value, torch.Tensor) else made for value, made in values)


def operand_dtypes(entry: Entry) -> tuple[torch.dtype, ...]:
    """Of the operands of `runs`; of states that are not made yet, what they will be."""
    runs, own = entry.runs, entry.dtypes()
    if not isinstance(runs, Variant) or not runs.fed:
        return own
    fed = [entry.state.get(name) for name in runs.fed]
    return (*own, *[value.dtype if isinstance(value, torch.Tensor) else scalar_dtype({}) for value in fed])


def counted_of(traced: Traced | Variant, param: torch.Tensor) -> tuple[str, ...]:
    """The 0-dim states of a parameter that follow from numbers; the others follow from tensors, and are where those are."""
    variant = None if isinstance(traced, Variant) or traced.elementwise else traced.variant(param)
    return variant.scalar_names if isinstance(variant, Variant) else traced.scalar_names


@dataclass(eq=False)
class Context:
    """What the batches of a plan share. owner: the optimizer's name, for messages; groups: as they are; rules: one for each;
    step: the step's own numbers, for one device, kept up to date in place by who makes the plan."""

    owner: str
    groups: Sequence[Mapping[str, Any]]
    rules: Sequence[Rule]
    step: Mapping[str, Any] = field(default_factory=dict)
    numbers: list[dict[str, Any]] = field(default_factory=list)  # of each group, as its rule reads them
    more: list[dict[str, Any]] = field(default_factory=list)  # numbers of each group that are not in it: totals over it

    def read(self) -> list[tuple[Any, ...]]:
        """Read the groups again. Returns: what of each selects a program."""
        found = [rule.read(group) for rule, group in zip(self.rules, self.groups, strict=True)]
        self.numbers[:] = [read.numbers for read in found]
        self.add_more()
        return [read.flags for read in found]

    def add_more(self) -> None:
        for numbers, more in zip(self.numbers, self.more, strict=False):
            numbers.update(more)

    def number(self, group: int, name: str) -> Any:
        """A number by its name in a program, a float or a tensor as it stands."""
        return self.step[name] if name in self.step else self.numbers[group][name]


class Batch(ABC):
    """Parameters that are updated together."""

    entries: list[Entry]
    context: Context
    executor: ClassVar[str]
    # What stands in for the gradients, where a batch is given something else to read (Backend.takes_sources).
    sources: Sequence[torch.Tensor] | None = None
    # Whether a native call may take the rest of a step: the batch is prepared before it, and launched after it.
    goes_beside: ClassVar[bool] = False
    # Whether another executor takes over where `prepare` refuses at once: the launcher's checks are stricter than torch's.
    falls_back: ClassVar[bool] = False
    # Why it refused, where that is no tensor's fault.
    refused: str | None = None

    @abstractmethod
    def prepare(self) -> bool:
        """Read and check every tensor and every number; nothing is written. False: the plan no longer fits, make a new one.

        Raises: RuntimeError or TypeError, for what no executor can use.
        """

    @abstractmethod
    def launch(self) -> None:
        """Update what `prepare` saw. Mutates: parameters and states."""

    @cached_property
    def is_clipped(self) -> bool:
        return any(entry.traced.is_clipped for entry in self.entries)

    def squares(self) -> Value:
        """The sum of squares of the gradients that `prepare` read."""
        return sum_of_squares(self.entries)

    def measure_into(self, place: torch.Tensor, first: bool, last: bool) -> bool:
        """Add what `squares` is to place[0], or begin there with it, and leave the root in place[1], without waiting and in one
        launch. first, last: of the batches that do so. Mutates: `place`. False: it cannot."""
        return False

    @cached_property
    def is_measured(self) -> bool:
        return any(entry.measured.is_measured for entry in self.entries)

    @cached_property
    def rounds_of_totals(self) -> int:
        """How often `totals` is to be asked: some are computed from others."""
        return max((len(entry.measured.measures) for entry in self.entries), default=0)

    def totals(self, round: int) -> dict[TotalOf, Value]:
        """What the rule sums over the parameters that `prepare` read, in this round; the context has what came before."""
        raise NotImplementedError

    @abstractmethod
    def renew(self) -> None:
        """Compute again what depends on what was measured, which the context has now; nothing is written."""

    def refresh(self) -> None:  # noqa: B027 - most have nothing to bring
        """Bring numbers that changed to where a captured graph reads them."""

    @property
    def is_captured(self) -> bool:
        """Whether a captured graph reads its tables, which must then outlive the plan."""
        return False

    @property
    def unchanged(self) -> Unchanged:
        """How a plan looks whether it was made for these groups, parameters and states."""
        return unchanged

    @property
    def steady(self) -> Callable[[Standing], Steady | None] | None:
        """What makes one call of all further steps of a plan whose batches are all of this kind, or None."""
        return None


class Sharing(ABC):
    """Computes the new values of what parameters share, where that is."""

    @abstractmethod
    def prepare(self) -> bool:
        """As of a batch."""

    @abstractmethod
    def launch(self) -> None:
        """Write the new values, after all batches."""

    @abstractmethod
    def refresh(self) -> None:
        """As of a batch."""

    @property
    @abstractmethod
    def is_captured(self) -> bool:
        """As of a batch."""


def unchanged(groups: Any, params: Any, state: Any, states: Any, waiting: Any) -> bool:
    now = list(chain.from_iterable(group["params"] for group in groups))
    return (
        len(now) == len(params)
        and all(map(is_, now, params))
        and len(state) == len(states)
        and all(map(is_, state.values(), states))
        and all(param.grad is None for param in waiting)
    )


@dataclass(frozen=True)
class Standing:
    """A plan that just ran, and all that would make another step different, beside the tensors. own: of each group,
    its rule; rules: with what stands around it; states: the values of `state`; waiting: parameters without a gradient;
    attributes: (name, value) of the optimizer, None for one that must not be there; modules: (dict, attributes) likewise;
    empty: dicts that are empty while nobody looks at steps; measure: what must be done between preparing and launching;
    in_place: whether the batches themselves did that in the last step, by launches of theirs alone; norm: on the host, of the
    batches' sums of squares, the norm that they are clipped by."""

    batches: Sequence[Batch]
    own: Sequence[Rule]
    rules: Sequence[Rule]
    groups: list[dict[str, Any]]
    params: list[torch.Tensor]
    state: MutableMapping[torch.Tensor, Any]
    states: list[Any]
    waiting: list[torch.Tensor]
    attributes: Sequence[tuple[str, Any]]
    modules: Sequence[tuple[dict[str, Any], Sequence[tuple[str, Any]]]]
    empty: Sequence[Mapping[Any, Any]]
    measure: Callable[[], None] | None = None
    in_place: bool = False
    norm: Callable[[list[float]], float] | None = None


@dataclass(frozen=True)
class Description:
    """What a batch does at a step.

    calls: launches of kernels, or calls of torch's operations, but for the norms: how many more measure that for clipping,
    where it is measured. kernels: compiled ones.
    passes: sweeps over what lies in memory; 0 where torch's operations make them. read, written: bytes per element, the scale
    of a block shared by its elements; at least so many where torch's operations read and write their operands again.
    program: what is computed, if it is known as one. source: makes the text of what runs. products: what of the calls are
    torch's, in words.
    """

    calls: int
    kernels: int
    passes: int
    read: float
    written: float
    program: Program | None
    source: Callable[[], str]
    products: tuple[str, ...] = ()
    norms: int = 1


def bytes_moved(entry: Entry) -> tuple[float, float]:
    """Bytes per element, read and written, of what is shaped like the parameter or has a number for each block of it."""
    param, traced = entry.param, entry.traced
    sizes = {"param": param.dtype.itemsize, "grad": entry.dtypes()[1].itemsize, **entry.state_bytes()}
    like_it = {"param", "grad", *traced.rule.in_blocks, *traced.rule.packed}
    like_it |= {name for name, shape in traced.shapes_of(param).items() if shape == param.shape}
    read = {name: size for name, size in sizes.items() if name in like_it}
    written = traced.program.tensor_outputs if traced.elementwise else [name for name in read if name != "grad"]
    return sum(read.values()), sum(read[name] for name in written)


class Backend(ABC):
    """Makes batches of one kind."""

    executor: ClassVar[str]
    takes_sources: ClassVar[bool] = False  # whether its batches can read other tensors in place of gradients
    numbers_on_host: ClassVar[bool] = True  # whether its batches read the step's own numbers there

    def serves(self, device: torch.device) -> bool:
        """Whether it is the compiled executor of a device. Eager ones serve what they are chosen for."""
        return False

    def begin(self) -> None:  # noqa: B027 - most need nothing for long
        """An optimizer was made that will want kernels: begin what all of them need, and return at once. What fails is said
        when a kernel is wanted."""

    def missing(self, device: torch.device) -> str | None:
        """What it needs and this machine does not have, or None."""
        return None

    def objection(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        """Why a rule that is not elementwise cannot run here, whatever is compiled, or None."""
        return f"{entry.traced.rule.name} is not elementwise"

    def refusal(self, entry: Entry, group: Mapping[str, Any]) -> str | None:
        """Make ready what a parameter will need, kernels included; why that cannot be, or None. Writes nothing."""
        return None

    def adopt(self, entry: Entry, group: Mapping[str, Any]) -> None:  # noqa: B027 - most take states as they are
        """Bring an entry's states, which exist by now, to where and how batches want them. Mutates: the state's entries."""

    def bucket(self, entry: Entry, context: Context) -> Hashable:
        """What the parameters of one batch have in common."""
        return None

    def runs_for(self, entry: Entry) -> Hashable:
        """What runs for an entry, which those that are described together have in common."""
        return entry.traced

    @abstractmethod
    def batch(self, entries: list[Entry], context: Context) -> Batch:
        """Make a batch of entries of one bucket. Raises: CompileError."""

    @staticmethod
    def sharing(traced: Traced, groups: Sequence[int], context: Context, device: torch.device) -> Sharing | None:
        """What advances the shared states of groups whose rule is one program, by launches; None: by the scalar part, from
        Python. Raises: CompileError."""
        return None

    @abstractmethod
    def describe(self, entries: Sequence[Entry], group: Mapping[str, Any]) -> Description:
        """What a batch of these entries would do; kernels are compiled for that. Mutates: nothing."""


# ---- what is summed over all parameters ----


def total_of(node: Node, group: int) -> TotalOf:
    """A total of a parameter of this group."""
    return node.name, group if node.is_of_group else None


def sum_of_squares(entries: Iterable[Entry]) -> Value:
    """Of the gradients that are clipped, over all elements, in float64; where they are on a device, it stays there."""
    spread: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.traced.is_clipped and entry.param.grad is not None:
            spread.setdefault(spread_of(entry), []).append(entry)
    return sum((over_processes(_local_sum(members), members[0]) for members in spread.values()), 0.0)


def spread_of(entry: Entry) -> Hashable:
    """The mesh and the placements of an entry's parameter, where it is distributed."""
    return placed(entry.param if entry.whole is None else entry.whole)


def over_processes(value: Value, entry: Entry) -> Value:
    """The sum over all shards, from that of this process, where parameters like this entry's are distributed."""
    return value if spread_of(entry) is None else summed(value, entry.param if entry.whole is None else entry.whole)


def _local_sum(entries: Sequence[Entry]) -> Value:
    given = [as_real(local(entry.param.grad)) for entry in entries if entry.param.grad is not None]
    wide = torch.float64 if any(grad.dtype is torch.float64 for grad in given) else torch.float32
    norms = [norm.to(given[0].device, non_blocking=True) for norm in torch._foreach_norm(given, 2, wide)]
    return torch.stack(norms).double().square().sum()
