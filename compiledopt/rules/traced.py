"""The programs of this process: each (rule, flags) is traced once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from compiledopt.rules.author import LateTotal, NotElementwise
from compiledopt.rules.options import NORM, truthy
from compiledopt.rules.program import (
    ANY_ORDER,
    COLUMN_AFTER_COLUMN,
    COLUMNS,
    ELEMENTS,
    MATRICES,
    OUTER,
    REDUCTIONS,
    ROW_AFTER_ROW,
    Program,
)
from compiledopt.rules.reducer import FedByTensors, Shape
from compiledopt.rules.reductions import cut
from compiledopt.rules.rule import Rule
from compiledopt.rules.scalar_part import Measurement, ScalarPart, measurements
from compiledopt.rules.trace import trace
from compiledopt.rules.views import Frame, View
from compiledopt.stats import STATS, timed

# What a rule says to symbols, or to tensors of other shapes than it is for.
REFUSALS = (TypeError, AttributeError, ValueError, IndexError, RuntimeError)


class Runnable:
    """What a batch runs."""

    rule: Rule
    program: Program
    scalars: ScalarPart
    scalar_names: tuple[str, ...]
    measures: tuple[Measurement, ...] = ()
    asked: tuple[str, ...] = ()  # Program.asked

    @cached_property
    def reads_first(self) -> bool:
        return "first" in self.rule.options

    @cached_property
    def is_clipped(self) -> bool:
        return NORM in self.rule.options

    @cached_property
    def is_measured(self) -> bool:
        """Whether something must be summed over all parameters before the update."""
        return self.is_clipped or bool(self.measures)


class Variant(Runnable):
    """A rule that reduces, or whose states are not like every parameter, for parameters of one number of dimensions, dtype and
    order in memory.

    state_names: those that such parameters have, but for the 0-dim ones that follow from numbers; fed: the 0-dim ones among
    them; axes: those along which each operand varies.
    """

    def __init__(self, rule: Rule, program: Program, scalar_names: tuple[str, ...], order: int) -> None:
        self.rule, self.program, self.scalar_names = rule, program, scalar_names
        self.state_names = tuple(node.name for node in program.tensors)[2:]
        self.fed = tuple(name for name in self.state_names if name in rule.scalars)
        self.scalars = ScalarPart(program, scalar_names)
        self.axes = tuple(node.axes for node in program.tensors)
        self.passes = cut(program)
        reduces = any(node.op in REDUCTIONS for node in program.nodes)
        self.told = f"{rule.name} {'reduces' if reduces else 'has states that are not like every parameter'}"
        self.measures, self.asked = measurements(program, scalar_names), program.asked
        self.order = ANY_ORDER if self.passes.is_flat and not program.blocks else order


class Traced(Runnable):
    """A rule under one choice of its flags: its program, and what is derived from that, each derived once.

    A rule that is not elementwise has no program, and `reason` says why; where it reduces, it has variants instead.
    made: what backends made of it.
    """

    def __init__(
        self,
        rule: Rule,
        present: tuple[str, ...],
        program: Program | None,
        reason: str,
        group: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule = rule
        self.reason = reason
        self.made: dict[Hashable, Any] = {}
        self.state_names = tuple(name for name in present if name not in rule.scalars and name not in rule.shared)
        self.scalar_names = tuple(name for name in present if name in rule.scalars)
        self.makers = {name: maker for name in self.state_names if (maker := rule.maker(name)) is not None}
        self._program = program
        self._specs: dict[tuple[Any, ...], dict[str, tuple[torch.Size, torch.dtype]]] = {}
        self.axes = (ELEMENTS,) * (2 + len(self.state_names)) if program is None else tuple(n.axes for n in program.tensors)
        self.order = ANY_ORDER if program is None or not program.blocks else ROW_AFTER_ROW
        self._variants: dict[tuple[int, torch.dtype, int, tuple[int, ...]], Variant | str] = {}
        # For variants to be traced later: what the options are called, and which of them are flags.
        self._group = None if group is None else {name: _without_value(group[name]) for name in rule.options if name in group}

    @property
    def elementwise(self) -> bool:
        return self._program is not None

    @property
    def options(self) -> Mapping[str, Any]:
        """What options are called, and which of them are flags: enough to trace another rule that has them."""
        return self._group or {}

    @property
    def program(self) -> Program:  # type: ignore[override]
        assert self._program is not None, self.reason
        return self._program

    # ---- states ----

    def shapes_of(self, param: torch.Tensor) -> dict[str, torch.Size]:
        """The shapes of the states that `param` has, but for the 0-dim ones."""
        return {name: shape for name, (shape, _) in self._made(param).items()}

    def dtypes_of(self, param: torch.Tensor) -> dict[str, torch.dtype]:
        """The dtypes in which the rule makes the states that `param` has, but for the 0-dim ones."""
        return {name: dtype for name, (_, dtype) in self._made(param).items()}

    def _made(self, param: torch.Tensor) -> dict[str, tuple[torch.Size, torch.dtype]]:
        if not self.makers:
            return dict.fromkeys(self.state_names, (param.shape, param.dtype))
        key = (param.dtype, *param.shape)
        known = all(isinstance(size, int) for size in param.shape)  # not those of a tracer
        if not known or key not in self._specs:
            meta = torch.empty(param.shape, dtype=param.dtype, device="meta")
            made = {
                name: self.makers[name](meta, self._group or {}) if name in self.makers else meta for name in self.state_names
            }
            specs = {name: (value.shape, value.dtype) for name, value in made.items() if value is not None}
            if not known:
                return specs
            self._specs[key] = specs
        return self._specs[key]

    def states_of(self, param: torch.Tensor) -> tuple[str, ...]:
        """The names of the states that `param` has, but for the 0-dim ones."""
        return tuple(self.shapes_of(param)) if self.makers else self.state_names

    # ---- the program ----

    @cached_property
    def scalars(self) -> ScalarPart:  # type: ignore[override]
        return ScalarPart(self.program, self.scalar_names)

    @cached_property
    def measures(self) -> tuple[Measurement, ...]:  # type: ignore[override]
        """What is summed over all parameters before the update: those first that others are computed from."""
        if self._program is None:
            return ()
        return measurements(self._program, self.scalar_names)

    @cached_property
    def shared(self) -> ScalarPart:
        """The new shared states."""
        return ScalarPart(self.program.shared_part, ())

    def variant(self, param: torch.Tensor) -> Variant | str:
        """What to run in passes for a parameter like this one, or the reason why that cannot be."""
        key = (param.dim(), param.dtype, order_of(param), outer_of(param))
        if key not in self._variants:
            self._variants[key] = self._make_variant(*key)
        return self._variants[key]

    def measured(self, param: torch.Tensor) -> Runnable:
        """What knows the sums over all parameters that the rule asks for, whoever runs it: this, or where the rule reduces, the
        variant that fits a parameter."""
        found = self if self.elementwise or self.rule.every else self.variant(param)
        return self if isinstance(found, str) else found

    def runs(self, param: torch.Tensor) -> Traced | Variant:
        """What the compiled executor runs for a parameter: this, or where the rule reduces, the variant that fits it."""
        variant = self if self.elementwise else self.variant(param)
        assert not isinstance(variant, str), variant
        return variant

    def _make_variant(self, dims: int, dtype: torch.dtype, order: int, outer: tuple[int, ...]) -> Variant | str:
        """The first way to see such a parameter in which the rule's reductions are those of passes."""
        if self._group is None:
            return self.reason
        probe = torch.empty(tuple(range(2, 2 + dims)), dtype=dtype, device="meta")  # sizes that are all different
        whole, packed = tuple(probe.shape), {*self.rule.in_blocks, *self.rule.packed}
        shapes = {name: whole if name in packed else tuple(shape) for name, shape in self.shapes_of(probe).items()}
        views = {name: view_of(whole, shape) for name, shape in shapes.items()}
        strange = [name for name, view in views.items() if view is None]
        if strange:
            return f"state {strange[0]} has neither the shape of the parameter nor that of its rows or columns"
        known = tuple((name, view) for name, view in views.items() if view is not None)
        reasons = []
        for among in (0, *outer):
            frame = Frame(max(dims, 1), among, order == COLUMN_AFTER_COLUMN and not among)
            try:
                made = self._seen_in(Shape(frame, dtype, known), order, among)
            except LateTotal:
                raise
            except (TypeError, AttributeError, ValueError) as error:  # TraceError among them: what a rule says to symbols
                reasons.append(str(error))
                continue
            if made is not None:
                return made
            reasons.append(f"{self.rule.name} reduces over rows or columns, and a parameter lies in memory in neither order")
        return reasons[0]

    def _seen_in(self, shape: Shape, order: int, among: int) -> Variant | None:
        """A variant for parameters that are seen in one way; None where they lie in memory in another. Raises: TraceError."""
        assert self._group is not None
        while True:
            try:
                program = trace(self.rule, self._group, shape)
                break
            except FedByTensors as state:
                shape = replace(shape, fed=shape.fed | {state.name})
        scalars = tuple(name for name in self.scalar_names if name not in shape.fed)
        cut_by_columns = any(node.axes == MATRICES | COLUMNS for node in program.tensors)
        if program.blocks:  # a backend refuses parameters that lie otherwise, and says so
            return Variant(self.rule, program, scalars, ROW_AFTER_ROW | among << OUTER)
        if among:
            if cut_by_columns and order != ROW_AFTER_ROW:
                return None
            code = (ROW_AFTER_ROW if cut_by_columns else ANY_ORDER) | among << OUTER
            return Variant(self.rule, program, scalars, code)
        made = Variant(self.rule, program, scalars, order)
        return None if order == ANY_ORDER and not made.passes.is_flat else made


def traced(rule: Rule, group: Mapping[str, Any]) -> Traced:
    """The program of `rule` under the options of `group`. Raises: TraceError where the rule cannot be traced."""
    flags = rule.read(group).flags
    if flags not in rule.programs:
        with timed("seconds_tracing"):
            rule.programs[flags] = _trace(rule, group)
        STATS.programs_traced += 1
    return rule.programs[flags]  # type: ignore[no-any-return]


def _trace(rule: Rule, group: Mapping[str, Any]) -> Traced:
    present, reason = rule.states_for(group), f"{rule.name} is declared with elementwise=False"
    if rule.elementwise:
        other = next((name for name in present if not _is_like_param(rule, name, group)), None)
        try:
            if other is None:
                return Traced(rule, present, trace(rule, group), "", dict(group))
            reason = f"not every parameter has a state {other!r} of its own shape"
        except NotElementwise as error:
            reason = str(error)
    program = None if rule.elementwise else _pointwise(rule, group, present)
    return Traced(rule, present, program, reason if program is None else "", dict(group))


def _pointwise(rule: Rule, group: Mapping[str, Any], present: Sequence[str]) -> Program | None:
    """Of a rule that is declared with elementwise=False, its program where its flags leave nothing to reduce: LARS without
    trust is SGD."""
    if rule.every or "dtype" in rule.options:
        return None
    try:
        program = trace(rule, group)
        return program if all(_is_like_param(rule, name, group) for name in present) else None
    except REFUSALS:
        return None


def _is_like_param(rule: Rule, state: str, group: Mapping[str, Any]) -> bool:
    """Whether a state has the parameter's shape, whatever that is; codes and scales are read as if they had."""
    maker = rule.maker(state)
    if maker is None or state in rule.in_blocks or state in rule.packed:
        return True
    for shape in ((2,), (2, 3), (2, 3, 4)):
        try:
            made = maker(torch.empty(shape, device="meta"), group)
        except REFUSALS:  # it is for parameters of other dimensions
            continue
        if made is None or made.shape != shape:
            return False
    return True


def _without_value(value: Any) -> Any:
    """An option for a trace: of a tensor, whether it is zero, so that no cache keeps a tensor alive."""
    if isinstance(value, tuple | list):
        return tuple(map(_without_value, value))
    return float(truthy(value)) if isinstance(value, torch.Tensor) else value


def order_of(param: torch.Tensor) -> int:
    if param.is_contiguous():
        return ROW_AFTER_ROW
    return COLUMN_AFTER_COLUMN if param.dim() > 1 and param.transpose(-1, -2).is_contiguous() else ANY_ORDER


def outer_of(param: torch.Tensor) -> tuple[int, ...]:
    """How many dimensions, from the first, may make up rows: those that lie in memory around all others, in their order."""
    found, strides, sizes = [], param.stride(), param.shape
    for among in range(1, param.dim() - 1 if param.dim() > 2 else 0):
        expected, fits = math.prod(sizes[among:]), True
        for dim in reversed(range(among)):
            fits &= sizes[dim] == 1 or strides[dim] == expected
            expected *= sizes[dim]
        found += [among] if fits else []
    return tuple(found)


def view_of(whole: tuple[int, ...], shape: tuple[int, ...]) -> View | None:
    """How a state is shaped whose parameter has the shape `whole`, all of different sizes and none 1."""
    if not whole:
        return ((0,),) if not shape else None
    places = [whole.index(size) if size in whole else -1 for size in shape if size != 1]
    if -1 in places or sorted(set(places)) != places:
        return None
    return tuple(() if size == 1 else (whole.index(size),) for size in shape)
