"""program → formula: what a traced rule computes, as sympy expressions, text and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from compiledopt.rules.composed import COMPOSED, RANDOM
from compiledopt.rules.ops import CUBE_ROOT, OPS
from compiledopt.rules.printing import Latex, Text
from compiledopt.rules.program import AXES, NUMBER, REDUCTIONS, Argument, Node, Program, node_args

# The field's letters; a name that is not here stands for itself.
LETTERS = {
    "param": "theta",
    "grad": "g",
    "step": "t",
    "lr": "gamma",
    "betas[0]": "beta_1",
    "betas[1]": "beta_2",
    "eps": "epsilon",
    "weight_decay": "lambda",
    "momentum": "mu",
    "dampening": "tau",
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "max_exp_avg_sq": "v_max",
    "momentum_buffer": "b",
    "square_avg": "v",
    "grad_avg": "m",
    "acc_delta": "u",
    "exp_inf": "u",
    "sum": "s",
    "lr_decay": "eta",
    "lambd": "Lambda",
    "t0": "t_0",
    "ax": "a",
    "mu_product": "M",
    "momentum_decay": "psi",
    "prev": "g_prev",
    "step_size": "s",
    "etas[0]": "eta_minus",
    "etas[1]": "eta_plus",
    "step_sizes[0]": "s_min",
    "step_sizes[1]": "s_max",
    "row_var": "r",
    "col_var": "c",
    "variance": "v",
    "beta2_decay": "tau",
    "eps[1]": "epsilon_2",
    "param.numel": "n_elements",
    "param.shape[0]": "n_0",
    "param.shape[1]": "n_1",
    "param.shape[-1]": "n_last",
    "beta": "beta",
    "exp_avg_var": "s",
    "max_exp_avg_var": "s_max",
    "beta1_weight": "w_1",
    "beta2_weight": "w_2",
    "nus[0]": "nu_1",
    "nus[1]": "nu_2",
    "betas[2]": "beta_3",
    "gamma": "rho",  # γ is the learning rate
    "final_lr": "Gamma",
    "base_lr": "gamma_0",
    "previous_grad": "g_prev",
    "exp_avg_lr_1": "c_1",
    "exp_avg_lr_2": "c_2",
    "grad_sum_sq": "v",
    "x0": "theta_0",
    "exp_avg_diff": "e",
    "exp_avg_fast": "m_1",
    "exp_avg_slow": "m_2",
    "clip_exp": "p",
    "trust_coeff": "tau",
    "steps": "t",
}
NO_LETTERS: Mapping[str, str] = {}
_SYMPY: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    CUBE_ROOT: lambda a: a ** sympy.Rational(1, 3),
    "neg": lambda a: -a,
    "abs": sympy.Abs,
    "sign": sympy.sign,
    "sqrt": sympy.sqrt,
    "rsqrt": lambda a: 1 / sympy.sqrt(a),
    "reciprocal": lambda a: 1 / a,
    "square": lambda a: a**2,
    "exp": sympy.exp,
    "exp2": lambda a: 2**a,
    "expm1": lambda a: sympy.exp(a) - 1,
    "log": sympy.log,
    "log2": lambda a: sympy.log(a) / sympy.log(2),
    "log10": lambda a: sympy.log(a) / sympy.log(10),
    "log1p": lambda a: sympy.log(1 + a),
    "tanh": sympy.tanh,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "hypot": lambda a, b: sympy.sqrt(a**2 + b**2),
    "floor": sympy.floor,
    "remainder": lambda a, b: a - b * sympy.floor(a / b),
    "floor_divide": lambda a, b: sympy.floor(a / b),
    "maximum": sympy.Max,
    "minimum": sympy.Min,
    "xlogy": lambda a, b: a * sympy.log(b),
    "logaddexp": lambda a, b: sympy.log(sympy.exp(a) + sympy.exp(b)),
    "lerp": lambda a, b, weight: _rest(weight) * a + weight * b,
    "where": lambda condition, a, b: sympy.Piecewise((a, condition), (b, True)),
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "lt": sympy.Lt,
    "le": sympy.Le,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
    "logical_and": sympy.And,
    "logical_or": sympy.Or,
    "logical_xor": sympy.Xor,
    "logical_not": sympy.Not,
    "normal": lambda bits, draw: _function("normal")(*bits.args, draw),
    "uniform": lambda bits, draw: _function("uniform")(*bits.args, draw),
}


def _rest(weight: Any) -> Any:
    """1 − w, case by case where w has cases."""
    if isinstance(weight, sympy.Piecewise):
        return sympy.Piecewise(*((1 - value, when) for value, when in weight.args))
    return 1 - weight


@dataclass(frozen=True)
class Formula:
    """lines: (left side, right side), each right side in terms of old values and of left sides above it; new values are
    primed. meanings: symbol → the name in the rule. numbers: the symbols that are 0-dim, new values included."""

    lines: tuple[tuple[sympy.Symbol, Any], ...]
    meanings: Mapping[str, str]
    numbers: frozenset[sympy.Symbol] = frozenset()

    @property
    def text(self) -> list[str]:
        return self._written(Text())

    @property
    def latex(self) -> list[str]:
        return self._written(Latex())

    def _written(self, printer: Text | Latex) -> list[str]:
        old = {_primed(symbol): symbol for symbol in (sympy.Symbol(name, real=True) for name in self.meanings)}
        return [f"{printer.doprint(left)} = {printer.line(right, self.numbers, old.get(left))}" for left, right in self.lines]


def symbols_of(program: Program, more: Mapping[str, str] = NO_LETTERS) -> dict[Node, sympy.Symbol]:
    """A real symbol for each input, by the field's letter where no other input has the same. more: letters beside LETTERS."""
    inputs = [node for node in program.inputs if node.op == "input"]
    letters = [{**LETTERS, **more}.get(node.name, node.name) for node in inputs]
    names = [letter if letters.count(letter) == 1 else n.name for n, letter in zip(inputs, letters, strict=True)]
    return {node: sympy.Symbol(name, real=True) for node, name in zip(inputs, names, strict=True)}


def expressions(program: Program) -> dict[str, Any]:
    """{"param" or state: its new value in terms of old ones}, as sympy expressions over `symbols_of(program)`."""
    known: dict[Node, Any] = dict(symbols_of(program))
    return {name: _expression(node, known) for name, node in program.outputs.items()}


def formula(program: Program, more: Mapping[str, str] = NO_LETTERS) -> Formula:
    """The update line by line: what several lines share gets a name, and a new value stands for itself once it is there.

    more: letters beside LETTERS.
    """
    symbols = symbols_of(program, more)
    by_name = {node.name: symbol for node, symbol in symbols.items()}
    named = {node: _primed(by_name[name]) for name, node in program.outputs.items() if node.op != "input"}
    shared = [node for node in program.nodes if node not in named and _is_shared(program, node, symbols)]
    named |= {node: sympy.Symbol(f"h_{i}", real=True) for i, node in enumerate(shared, 1)}
    known: dict[Node, Any] = dict(symbols)
    lines = []
    for node in program.nodes:
        if node in named:
            lines.append((named[node], _expression(node, known)))
            known[node] = named[node]
    new = _primed(by_name["param"])
    if not any(new in right.free_symbols for _, right in lines):
        lines.sort(key=lambda line: line[0] == new)
    numbers = frozenset(symbol for node, symbol in {*symbols.items(), *named.items()} if node.scalar)
    return Formula(tuple(lines), {symbol.name: node.name for node, symbol in symbols.items()}, numbers)


def _primed(symbol: sympy.Symbol) -> sympy.Symbol:
    return sympy.Symbol(f"{symbol.name}'", real=True)


def _is_shared(program: Program, node: Node, symbols: Mapping[Node, Any]) -> bool:
    """Whether a value is used twice and is worth a name: any tensor, and 0-dim ones that are long."""
    if (
        node.op == RANDOM
        or (node.op in OPS and OPS[node.op].boolean)
        or sum(arg is node for other in program.nodes for arg in set(node_args(other))) < 2
    ):
        return False
    return not node.scalar or _expression(node, symbols).count_ops() >= 5


def _expression(node: Node, known: Mapping[Node, Any]) -> Any:
    """The value of a node in terms of the nodes in `known`."""
    done: dict[Node, Any] = {}

    def visit(arg: Argument) -> Any:
        if not isinstance(arg, Node):
            return _number(arg)
        if arg in known:
            return known[arg]
        if arg not in done:
            done[arg] = _operation(arg)(*map(visit, arg.args))
        return done[arg]

    return visit(node)


def _operation(node: Node) -> Callable[..., Any]:
    """A reduction is a function named for what it gives: mean, or mean_row where there is one per row; total, over all
    parameters, or total_group."""
    if node.op == "total":
        return _function("total_group" if node.is_of_group else "total")
    if node.op in REDUCTIONS:
        return _function(node.op if node.axes == NUMBER else f"{node.op}_{AXES[node.axes]}")
    if node.op in _SYMPY:
        return _SYMPY[node.op]
    if node.op in COMPOSED:
        return _function(node.op)
    op = OPS[node.op]
    if op.boolean:  # a condition to sympy: a function that is not zero
        return lambda *args: sympy.Ne(_function(op.name)(*args), 0)
    return getattr(sympy, op.formula) if op.formula else _function(op.name)


def _function(name: str) -> Callable[..., Any]:
    """One that sympy knows no rules of."""
    return sympy.Function(name, real=True)  # type: ignore[no-any-return]


def _number(value: float) -> Any:
    return sympy.nsimplify(value) if value == value and abs(value) != float("inf") else sympy.sympify(value)
