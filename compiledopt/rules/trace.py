"""rule → program: the rule is called once with symbols, which write down what is done to them.

torch's own tracers (make_fx over fake tensors) were tried first: 0.5 s and an import of sympy for each program, against
0.2 ms here, which is why a warm start needs no cache of programs. What they add, shapes and dtypes, a pointwise rule
must not depend on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from compiledopt.rules.author import LateTotal, NotElementwise, TraceError, author_line, not_compiled
from compiledopt.rules.composed import COMPOSED, RANDOM, SCALES
from compiledopt.rules.ops import CUBE_ROOT, OPS, Op
from compiledopt.rules.options import NOISE, RESERVED, SEED, STEP, is_number, truthy
from compiledopt.rules.program import (
    BLOCKS,
    ELEMENTS,
    NUMBER,
    PACKED,
    REDUCTIONS,
    Argument,
    Node,
    Program,
    depends_on,
    sources,
)
from compiledopt.rules.reducer import FedByTensors, Reducer, Shape
from compiledopt.rules.rule import Rule
from compiledopt.rules.spellings import ALIASES, SPELLINGS, unknown
from compiledopt.rules.stand_in import StandIn
from compiledopt.rules.symbol import SHAPING, Symbol, Zero

T = TypeVar("T")


class Tracer(Reducer):
    """Makes the nodes of one program; the same operation on the same values is one node. name: of the rule.

    device: of the parameters, where that is known; given_back: what stands for the result of a function of whole matrices
    (rules/matrix_program.py), and taken: that function, what it is given, and its other arguments, once it is called.
    """

    device: torch.device | None = None
    given_back: Symbol | None = None
    taken: tuple[Any, Symbol, tuple[Any, ...]] | None = None

    def __init__(self, shape: Shape | None = None, name: str = "") -> None:
        super().__init__(shape)
        self.name = name
        self.totals: list[Node] = []
        self.asked: list[str] = []  # for totals, by name
        self.param: Any = None

    def whole(self, function: Any, value: Symbol, arguments: tuple[Any, ...]) -> Symbol:
        """A function of whole matrices (rules/products.py), of which a program may be cut at one."""
        if self.given_back is None or self.taken is not None or value.shaped != self.given_back.shaped:
            raise not_compiled(f"{function.__name__} is a function of whole matrices, and there is no kernel for it")
        self.taken = (function, value, arguments)
        return self.given_back

    def total(self, value: Symbol, over: str) -> Symbol:
        """The sum of a value over all parameters: a number that is known before the update (rules/totals.py)."""
        if self.frame is not None and (strange := _reduced_in(value.node)) is not None:
            raise LateTotal(
                f"{author_line()}: total(...) of what follows from {strange}; sums over all parameters are taken before a rule "
                "reduces over its own: write one of param, grad, states of the parameter's shape and numbers, and leave out "
                "gradient_centralization, which takes a mean of the gradient"
            )
        if value.node.scalar:  # once for each element
            value = self.apply("where", (self.param == self.param, value, value), {})
        key = ("total", value.node, over)
        if key not in self.known:
            name = f"{self.name}.{over}_total[{len(self.totals)}]"
            self.known[key] = Node("total", (value.node,), True, name, author_line(), NUMBER)
            self.totals.append(self.known[key])
        self.asked.append(self.known[key].name)
        return Symbol(self, self.known[key])

    def beside(self, inputs: Sequence[Node]) -> tuple[Node, ...]:
        """Inputs, and what the rule asked for besides."""
        return (*inputs, *self.totals, *self.sizes.values())

    def record(self, op: str, args: tuple[Argument, ...]) -> Symbol:
        if op == "div" and isinstance(args[1], Node) and args[1].scalar and not _is_number(args[0]):
            # One division in the scalar part instead of one per element: 12% of AdamW's time on 300 × 1000. What is reduced is
            # no float64: below 2⁻¹²⁸ its reciprocal is infinite.
            op, args = "mul", (args[0], self.record("reciprocal", (args[1],)).node)
        if op == "pow" and args[1] == 1 / 3 and not _is_scalar(args[0]):
            op, args = CUBE_ROOT, args[:1]
        key = (op, *((arg if isinstance(arg, Node) else (type(arg), arg)) for arg in args))
        if key not in self.known:
            axes = _axes_of(op, args)
            scalar = all(_is_scalar(arg) for arg in args) and op != RANDOM
            self.known[key] = Node(op, args, scalar, line=author_line(), axes=axes)
        return Symbol(self, self.known[key])

    def apply(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """An operation by its torch name, with the keywords that torch gives it."""
        if (other := next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, StandIn)), None)) is not None:
            return other.__torch_function__(getattr(torch, name), (), args, kwargs)
        if self.is_reduction(name):
            return self.reduce(name, *args, **kwargs)
        name = ALIASES.get(name, name)
        if kwargs.get("out") is not None or kwargs.get("inplace"):
            raise TraceError(
                f"{author_line()}: {name} with out= or inplace=True mutates; a rule returns new values: write x = ..."
            )
        if name in COMPOSED:
            return self.shaped_like(self.record(name, tuple(map(self.argument, args))), args)
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        if (function := SPELLINGS.get(name) or self.spelled(name)) is not None:
            return self._bound(function, name, args, kwargs)
        if name not in OPS and name in SHAPING:
            return getattr(args[0], name)(*args[1:], **kwargs)
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
        result = self.record(name, tuple(nodes))
        return self.shaped_like(result, args)

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
        return (
            any(name in known for known in (OPS, ALIASES, SPELLINGS))
            or self.is_reduction(name)
            or self.spelled(name) is not None
        )

    def constant(self, value: Any, like: Symbol) -> Symbol:
        """A number that stands for a tensor full of it."""
        result = self.record("add", (float(value), 0.0))
        result.shaped = like.shaped
        return result

    def argument(self, value: Any) -> Argument:
        if isinstance(value, Symbol):
            node = value.node
            constant = node.op in OPS and not any(isinstance(arg, Node) for arg in node.args)
            return OPS[node.op].number(*node.args) if constant else node
        if isinstance(value, (bool, int, float)):
            return value if isinstance(value, bool) else float(value)
        raise TraceError(
            f"{author_line()}: a rule computes with its arguments and with numbers, not with {type(value).__name__}"
            f"{getattr(value, 'mend', '')}"
        )


def _reduced_in(node: Node) -> str | None:
    """What of a value is not the parameter's own, element by element, in words."""
    for one in sources(node, into_totals=False):
        if one.op in REDUCTIONS:
            return f"a {one.op} over the parameter"
        if one.op == "input" and not one.scalar and one.axes not in (ELEMENTS, BLOCKS, PACKED):
            return f"the state {one.name}, which is smaller than the parameter"
    return None


def _axes_of(op: str, args: tuple[Argument, ...]) -> int:
    """Along which axes the result of a pointwise operation varies."""
    if op == RANDOM or op in SCALES:
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
    tracer, inputs = Tracer(shape, rule.name), list[Node]()
    numbers = {*rule.scalars, *rule.shared} - (frozenset() if shape is None else shape.fed)

    def symbol(name: str, scalar: bool, branch: bool = False) -> Symbol:
        shaped = tracer.shape_of(name, () if scalar or name in rule.scalars else None)
        axes = NUMBER if scalar else _of_blocks(rule, name) or tracer.axes_of(shaped)
        if axes is None:
            raise NotElementwise(f"state {name} has neither the shape of the parameter nor that of its rows or columns")
        inputs.append(Node("input", (), scalar, name, axes=axes))
        return Symbol(tracer, inputs[-1], branch, shaped)

    present = tuple(
        n for n in rule.states_for(options) if shape is None or n in tracer.views or n in rule.scalars or n in rule.shared
    )
    states = {n: symbol(n, False) for n in ("param", "grad", *present) if n not in rule.scalars and n not in rule.shared}
    tracer.param = states["param"]
    states |= {n: symbol(n, n in numbers) for n in sorted([n for n in present if n not in states], key=numbers.__contains__)}
    arguments: dict[str, Any] = {}
    for name in rule.options:
        value = 0.0 if name in RESERVED else options[name]
        if name == NOISE:
            arguments[name] = tracer.noise(lambda: (arguments[SEED], states[STEP]))
        elif name == "dtype" and shape is not None:
            arguments[name] = shape.dtype
        elif name in rule.static or not (isinstance(value, (tuple, list)) or is_number(value)):
            arguments[name] = value
        elif isinstance(value, (tuple, list)):
            arguments[name] = tuple(None if one is None else symbol(f"{name}[{i}]", True) for i, one in enumerate(value))
        elif name in RESERVED:
            arguments[name] = symbol(name, True)
        elif name in rule.branches and not truthy(value):
            arguments[name] = Zero()
        else:
            arguments[name] = symbol(name, True, name in rule.branches)
    returned = rule(states["param"], states["grad"], *(states.get(name) for name in rule.states), **arguments)
    outputs = _outputs(rule, present, returned, states)
    shared = frozenset(rule.shared) & set(present)
    for name in shared:
        _check_shared(rule, name, outputs[name], tracer)
    return Program(rule.name, tracer.beside(inputs), outputs, shared, _sizes(rule, present), tuple(tracer.asked))


def _sizes(rule: Rule, present: Sequence[str]) -> dict[str, int]:
    return {name: size for name, size in {**rule.in_blocks, **rule.packed}.items() if name in present}


def _of_blocks(rule: Rule, name: str) -> int | None:
    return BLOCKS if name in rule.in_blocks else PACKED if name in rule.packed else None


def _check_shared(rule: Rule, name: str, value: Node, tracer: Tracer) -> None:
    """Refuse a shared state that follows from what is a parameter's own. Raises: TraceError."""
    owned = ("first", *sorted(rule.scalars), *(node.name for node in tracer.sizes.values()))
    own = next((one for one in owned if depends_on(value, one, into_totals=False)), None)
    if own is not None:
        raise TraceError(
            f"{value.line or rule.place}: rule {rule.name} computes the shared state {name} from {own!r}, which each parameter "
            "has for itself; a shared state follows from numbers of the group, from shared states and from total(...)"
        )


def named(rule: Rule, returned: Any, present: Sequence[str], kind: type[T]) -> dict[str, T]:
    """{"param" or state: new value} of what a rule returned. Raises: TraceError where it is not (param, *states)."""
    expected = ("param", *rule.states)
    alone = not isinstance(returned, tuple) and (isinstance(returned, kind) or len(expected) == 1)
    returned = (returned,) if alone else returned
    if not isinstance(returned, tuple) or len(returned) != len(expected):
        got = f"{len(returned)} values" if isinstance(returned, tuple) else f"{type(returned).__name__}, which is no tuple"
        raise TraceError(f"{rule.place}: rule {rule.name} must return ({', '.join(expected)}), got {got}")
    values = {name: value for name, value in zip(expected, returned, strict=True) if name == "param" or name in present}
    for name, value in values.items():
        if not isinstance(value, kind):
            mend = f"; write torch.full_like({name}, {value})" if isinstance(value, (int, float)) else ""
            raise TraceError(f"{rule.place}: rule {rule.name} returned {type(value).__name__} for {name}, not a tensor{mend}")
    return values


def _outputs(rule: Rule, present: tuple[str, ...], returned: Any, inputs: Mapping[str, Symbol]) -> dict[str, Node]:
    outputs: dict[str, Node] = {}
    for name, value in named(rule, returned, present, Symbol).items():
        home = inputs[name]
        if home.node.axes == NUMBER and not value.node.scalar:
            value = Symbol(value.tracer, value.tracer.of_all(value.node), shaped=value.shaped)
        if home.node.scalar and not value.node.scalar:
            words = (
                f"{value.node.line}: rule {rule.name} returned a tensor for {name}, which is 0-dim: such a state follows from "
                "numbers and from reductions over all of a parameter"
            )
            if value.tracer.frame is None:
                raise TraceError(words)
            raise FedByTensors(name, words) if value.node.axes == NUMBER else NotElementwise(words)
        outputs[name] = _fitted(rule, name, value, home)
    return {name: _before(name, node, outputs) for name, node in outputs.items()}


def _before(name: str, node: Node, outputs: Mapping[str, Node]) -> Node:
    """What becomes of `name`: where that is another operand as it was, which is written to as well, a value of its own."""
    taken = node.op == "input" and not node.scalar and node.name != name and outputs.get(node.name, node) is not node
    return Node("mul", (node, 1.0), False, line=node.line, axes=node.axes) if taken else node


def _fitted(rule: Rule, name: str, value: Symbol, home: Symbol) -> Node:
    """A new value, in every place where it is a number in all. Raises: NotElementwise where it has another shape."""
    tracer, node = value.tracer, value.tracer.number(value.node)
    like = node.axes == home.node.axes or home.node.axes == PACKED
    if tracer.frame is None or home.node.scalar or (value.shaped == home.shaped and like):
        return node  # type: ignore[no-any-return]
    if value.shaped != home.shaped:
        raise NotElementwise(f"{value.node.line}: rule {rule.name} returned a tensor of another shape for {name}")
    same = tracer.record("eq", (home.node, home.node)).node
    return tracer.record("where", (same, node, node)).node  # type: ignore[no-any-return]
