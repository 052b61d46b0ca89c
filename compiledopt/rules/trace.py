"""rule → program: the rule is called once with symbols, which write down what is done to them.

torch's own tracers (make_fx over fake tensors) were tried first: 0.5 s and an import of sympy for each program, against
0.2 ms here, which is why a warm start needs no cache of programs. What they add, shapes and dtypes, a pointwise rule
must not depend on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from compiledopt.rules.author import NotElementwise, TraceError, author_line, not_compiled
from compiledopt.rules.composed import COMPOSED, LARGEST, RANDOM
from compiledopt.rules.ops import OPS, Op
from compiledopt.rules.options import RESERVED, is_number, truthy
from compiledopt.rules.program import BLOCKS, COLUMNS, ELEMENTS, NUMBER, REDUCTIONS, ROWS, Argument, Node, Program, depends_on
from compiledopt.rules.rule import Rule
from compiledopt.rules.spellings import ALIASES, SPELLINGS, unknown
from compiledopt.rules.stand_in import StandIn
from compiledopt.rules.symbol import Symbol, Zero

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """What a rule that reduces is told of its parameter. dims: how many; axes: (state, the axes along which it varies) of
    those of its states that are not 0-dim."""

    dims: int
    dtype: torch.dtype
    axes: tuple[tuple[str, int], ...]
    turned: bool = False  # whether it lies in memory column after column


NORMS = ("norm", "linalg_vector_norm", "vector_norm")


class Tracer:
    """Makes the nodes of one program; the same operation on the same values is one node. dims: of the parameter, where the
    rule may reduce; None where it may not; turned: whether it lies in memory column after column; name: of the rule."""

    def __init__(self, dims: int | None = None, turned: bool = False, name: str = "") -> None:
        self.dims = dims
        self.name = name
        self.last_axes = {1: ROWS, 2: COLUMNS} if turned else {1: COLUMNS, 2: ROWS}
        self.known: dict[tuple[Any, ...], Node] = {}
        self.totals: list[Node] = []

    def total(self, value: Symbol, over: str) -> Symbol:
        """The sum of a value over all parameters: a number that is known before the update (rules/totals.py)."""
        if self.dims is not None:
            raise TraceError(
                f"{author_line()}: total(...) in a rule that reduces over its own parameter, which is not compiled"
            )
        key = ("total", value.node, over)
        if key not in self.known:
            name = f"{self.name}.{over}_total[{len(self.totals)}]"
            self.known[key] = Node("total", (value.node,), True, name, author_line(), NUMBER)
            self.totals.append(self.known[key])
        return Symbol(self, self.known[key])

    def record(self, op: str, args: tuple[Argument, ...]) -> Symbol:
        if op == "div" and isinstance(args[1], Node) and args[1].axes == NUMBER and not _is_number(args[0]):
            # One division in the scalar part instead of one per element: 12% of AdamW's time on 300 × 1000.
            op, args = "mul", (args[0], self.record("reciprocal", (args[1],)).node)
        key = (op, *((arg if isinstance(arg, Node) else (type(arg), arg)) for arg in args))
        if key not in self.known:
            axes = _axes_of(op, args)
            scalar = all(_is_scalar(arg) for arg in args) and op != RANDOM
            self.known[key] = Node(op, args, scalar, line=author_line(), axes=axes)
        return Symbol(self, self.known[key])

    def reduce(self, op: str, value: Symbol, dim: Any = None, keepdim: bool = False) -> Symbol:
        """A sum or the like over all of a value, or over its rows or columns. Raises: NotElementwise for anything else."""
        if self.dims is None or value.node.scalar:
            raise not_compiled(unknown(op))
        dims = [dim] if isinstance(dim, int) else range(self.dims) if dim is None else dim
        gone = {index + self.dims if index < 0 else index for index in dims}
        known = set(range(self.dims)) if len(gone) == self.dims else set(range(max(self.dims - 2, 0), self.dims))
        if not gone or not gone <= known or (len(gone) < self.dims and not keepdim):
            raise NotElementwise(f"{author_line()}: {op} over {dim} with keepdim={keepdim} is not one over rows or columns")
        axes = NUMBER
        if len(gone) < self.dims:
            axes = value.node.axes & ~sum(self.last_axes[self.dims - index] for index in gone)
        if axes == value.node.axes:
            return value
        key = (op, value.node, axes)
        if key not in self.known:
            self.known[key] = Node(op, (value.node,), False, line=author_line(), axes=axes)
        return Symbol(self, self.known[key])

    def norm(self, value: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
        if p not in (2, "fro", None):
            raise NotElementwise(f"{author_line()}: a norm of order {p} is not among the reductions that compiledopt knows")
        return self.reduce("sum", value * value, dim, keepdim).sqrt()

    def apply(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """An operation by its torch name, with the keywords that torch gives it."""
        if (other := next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, StandIn)), None)) is not None:
            return other.__torch_function__(getattr(torch, name), (), args, kwargs)
        if name in REDUCTIONS or name in NORMS:
            kwargs = _of_reduction(name, kwargs)
            return self.norm(*args, **kwargs) if name in NORMS else self.reduce(name, *args, **kwargs)
        name = ALIASES.get(name, name)
        if kwargs.get("out") is not None or kwargs.get("inplace"):
            raise TraceError(
                f"{author_line()}: {name} with out= or inplace=True mutates; a rule returns new values: write x = ..."
            )
        if name in COMPOSED:
            return self.record(name, tuple(map(self.argument, args)))
        if name in SPELLINGS:
            return self._bound(SPELLINGS[name], name, args, kwargs)
        if name not in OPS:
            raise not_compiled(unknown(name))
        return self.operation(name, args, dict(kwargs))

    def _bound(self, function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A spelling, called. Raises: TraceError where torch has no such arguments."""
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise TraceError(f"{author_line()}: {name}: {error}") from error
        return function(*bound.args, **bound.kwargs)

    def operation(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of OPS, with the keywords that torch gives it."""
        op, scale, mode = OPS[name], kwargs.pop("alpha", None), kwargs.pop("rounding_mode", None)
        for argument in op.arguments[len(args) :]:
            if argument in kwargs:
                args = (*args, kwargs.pop(argument))
        if kwargs or (scale is not None and name not in ("add", "sub")) or (mode is not None and name != "div"):
            extra = sorted([*kwargs, *["alpha"] * (scale is not None), *["rounding_mode"] * (mode is not None)])
            raise TraceError(f"{author_line()}: {name} with {', '.join(extra)} is not supported in a rule; leave it out")
        if len(args) != op.arity:
            raise TraceError(f"{author_line()}: {name} takes {op.arity} arguments here, got {len(args)}")
        if scale is not None:
            args = (args[0], scale * args[1])
        if mode is not None:
            return self.apply("floor_divide", args, {}) if mode == "floor" else self.apply("div", args, {}).trunc()
        nodes = [self._typed(op, place, self.argument(arg)) for place, arg in enumerate(args)]
        if name == "lerp" and not all(map(_is_scalar, nodes)) and any(map(_is_scalar, nodes[:2])):
            return args[0] + args[2] * (args[1] - args[0])  # torch has no lerp from or to a number
        return self.record(name, tuple(nodes))

    def _typed(self, op: Op, place: int, arg: Argument) -> Argument:
        """A truth where numbers are wanted is 1 or 0; a number where truths are wanted is whether it is not 0."""
        if not isinstance(arg, Node):
            return arg
        if op.truths or (op.name == "where" and place == 0):
            return arg if self.is_truth(arg) else self.record("ne", (arg, 0.0)).node
        return self.number(arg)

    def number(self, node: Node) -> Node:
        """1 or 0 for a truth; else the node itself."""
        return self.record("where", (node, 1.0, 0.0)).node if self.is_truth(node) else node

    @staticmethod
    def is_truth(node: Node) -> bool:
        return node.op in OPS and OPS[node.op].boolean

    def knows(self, name: str) -> bool:
        """Whether there is an operation of this name."""
        return name in OPS or name in ALIASES or name in SPELLINGS or name in REDUCTIONS or name in NORMS

    def constant(self, value: Any) -> Symbol:
        """A number that stands for a tensor full of it."""
        return self.record("add", (float(value), 0.0))

    def argument(self, value: Any) -> Argument:
        if isinstance(value, Symbol):
            node = value.node
            constant = node.op in OPS and not any(isinstance(arg, Node) for arg in node.args)
            return OPS[node.op].number(*node.args) if constant else node
        if isinstance(value, (bool, int, float)):
            return value if isinstance(value, bool) else float(value)
        raise TraceError(
            f"{author_line()}: a rule computes with its arguments and with numbers, not with {type(value).__name__}"
        )


def _of_reduction(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a sum, norm or the like that say what is to be done. The dtype does not: sums are taken in float64."""
    kwargs = {"p" if key == "ord" else key: value for key, value in kwargs.items() if value is not None or key == "dim"}
    dtype = kwargs.pop("dtype", None)
    extra = sorted(set(kwargs) - {"input", "dim", "keepdim", *(("p",) if name in NORMS else ())})
    if dtype not in (None, torch.float32, torch.float64):
        extra.append(f"dtype={dtype}")
    if extra:
        raise TraceError(f"{author_line()}: {name} with {', '.join(extra)} is not supported in a rule; leave it out")
    if "input" in kwargs:
        kwargs["value"] = kwargs.pop("input")
    return kwargs


def _axes_of(op: str, args: tuple[Argument, ...]) -> int:
    """Along which axes the result of a pointwise operation varies."""
    if op in (RANDOM, LARGEST):
        return ELEMENTS if op == RANDOM else BLOCKS
    axes = 0
    for arg in args:
        axes |= arg.axes if isinstance(arg, Node) else NUMBER
    return ELEMENTS if axes > ELEMENTS and axes != BLOCKS else axes


def _is_scalar(arg: Argument) -> bool:
    return not isinstance(arg, Node) or arg.scalar


def _is_number(arg: Argument) -> bool:
    return not isinstance(arg, Node) or arg.axes == NUMBER


def trace(rule: Rule, options: Mapping[str, Any], shape: Shape | None = None) -> Program:
    """Call `rule` once with symbols under the flags in `options`, and return what it did.

    options: the parameter group. A number listed in `rule.branches` that is zero becomes the constant zero.
    shape: given, the rule may reduce.
    Raises: TraceError, naming the line, where the rule mutates, branches on a value, or returns the wrong things;
    NotElementwise, where it uses an operation that is not pointwise, and no reduction that `shape` allows.
    """
    tracer = Tracer(name=rule.name) if shape is None else Tracer(max(shape.dims, 1), shape.turned, rule.name)
    inputs: list[Node] = []
    axes = dict(shape.axes) if shape else {}

    def symbol(name: str, scalar: bool, branch: bool = False) -> Symbol:
        kept = BLOCKS if name in rule.in_blocks else axes.get(name, ELEMENTS)
        inputs.append(Node("input", (), scalar, name, axes=NUMBER if scalar else kept))
        return Symbol(tracer, inputs[-1], branch)

    numbers = {*rule.scalars, *rule.shared}
    present = tuple(n for n in rule.states_for(options) if shape is None or n in axes or n in numbers)
    states = {n: symbol(n, False) for n in ("param", "grad", *present) if n not in numbers}
    states |= {n: symbol(n, True) for n in present if n in numbers}
    arguments: dict[str, Any] = {}
    for name in rule.options:
        value = 0.0 if name in RESERVED else options[name]
        if name == "dtype" and shape is not None:
            arguments[name] = shape.dtype
        elif name in rule.static:
            arguments[name] = value
        elif isinstance(value, (tuple, list)):
            arguments[name] = tuple(None if one is None else symbol(f"{name}[{i}]", True) for i, one in enumerate(value))
        elif not is_number(value):
            arguments[name] = value
        elif name in rule.branches and not truthy(value):
            arguments[name] = Zero()
        else:
            arguments[name] = symbol(name, True, name in rule.branches)
    returned = rule(states["param"], states["grad"], *(states.get(name) for name in rule.states), **arguments)
    outputs = _outputs(rule, present, returned, states)
    shared = frozenset(rule.shared) & set(present)
    for name in shared:
        _check_shared(rule, name, outputs[name])
    return Program(rule.name, (*inputs, *tracer.totals), outputs, shared)


def _check_shared(rule: Rule, name: str, value: Node) -> None:
    """Refuse a shared state that follows from what is a parameter's own. Raises: TraceError."""
    own = next((one for one in ("first", *sorted(rule.scalars)) if depends_on(value, one, into_totals=False)), None)
    if own is not None:
        raise TraceError(
            f"{value.line or rule.place}: rule {rule.name} computes the shared state {name} from {own!r}, which each parameter "
            "has for itself; a shared state follows from numbers of the group, from shared states and from total(...)"
        )


def named(rule: Rule, returned: Any, present: Sequence[str], kind: type[T]) -> dict[str, T]:
    """{"param" or state: new value} of what a rule returned. Raises: TraceError where it is not (param, *states)."""
    expected = ("param", *rule.states)
    returned = returned if isinstance(returned, tuple) else (returned,)
    if len(returned) != len(expected):
        raise TraceError(f"{rule.place}: rule {rule.name} must return ({', '.join(expected)}), got {len(returned)} values")
    values = {name: value for name, value in zip(expected, returned, strict=True) if name == "param" or name in present}
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TraceError(f"{rule.place}: rule {rule.name} returned {type(value).__name__} for {name}, not a tensor")
    return values


def _outputs(rule: Rule, present: tuple[str, ...], returned: Any, inputs: Mapping[str, Symbol]) -> dict[str, Node]:
    outputs: dict[str, Node] = {}
    for name, value in named(rule, returned, present, Symbol).items():
        if inputs[name].node.scalar and not value.node.scalar:
            kind = TraceError if value.tracer.dims is None else NotElementwise
            raise kind(
                f"{value.node.line}: rule {rule.name} returned a tensor for {name}, which is 0-dim: where a rule is compiled, "
                "such a state is a number that follows from numbers"
            )
        if value.tracer.dims is not None and value.node.axes != inputs[name].node.axes:
            raise NotElementwise(f"{value.node.line}: rule {rule.name} returned a tensor of another shape for {name}")
        outputs[name] = value.tracer.number(value.node)
    return {name: _before(name, node, outputs) for name, node in outputs.items()}


def _before(name: str, node: Node, outputs: Mapping[str, Node]) -> Node:
    """What becomes of `name`: where that is another operand as it was, which is written to as well, a value of its own."""
    taken = node.op == "input" and not node.scalar and node.name != name and outputs.get(node.name, node) is not node
    return Node("mul", (node, 1.0), False, line=node.line, axes=node.axes) if taken else node
