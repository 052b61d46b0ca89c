"""program → Python: the elementwise part as an in-place sequence of torch's operations.

The eager executors must cost no more than torch's hand-written loops, so the sequence is derived here: products are folded
into add(alpha=), addcmul and addcdiv, and an operation whose operand dies writes into it. One derivation serves the
for-loop (Tensor methods) and foreach (torch._foreach_*), and `explain --source` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from compiledopt.rules.ops import OPS
from compiledopt.rules.program import Argument, Node, Program, node_args
from compiledopt.rules.scalars import literal

COMMUTE = ("add", "mul", "maximum", "minimum")


def select(condition: float, a: Any, b: Any) -> torch.Tensor:
    """where() for a 0-dim condition: a copy of one branch, since what follows may write into it."""
    chosen, other = (a, b) if condition else (b, a)
    return chosen.clone() if isinstance(chosen, torch.Tensor) else torch.full_like(other, chosen)


def choose(condition: Any, a: float, b: float, like: torch.Tensor) -> torch.Tensor:
    """where() between two numbers, in the dtype of a tensor."""
    return torch.where(condition, number(a, like), number(b, like))


def number(value: float, like: torch.Tensor) -> torch.Tensor:
    """A number for what takes tensors alone."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


@dataclass(frozen=True, eq=False)
class Step:
    """One eager operation: result = op(*args), with a number `scale` for add(alpha=), addcmul and addcdiv."""

    op: str
    args: tuple[Argument, ...]
    result: Node
    scale: Argument | None = None
    negate: bool = False


def _product(node: Argument, uses: dict[Node, int]) -> tuple[str, tuple[Argument, ...], Argument] | None:
    """node as scale·a, scale·a·b or scale·a/b, where nothing else reads the parts."""
    if not isinstance(node, Node) or node.scalar or node.op not in ("mul", "div") or uses[node] != 1:
        return None
    left, right = node.args
    if node.op == "mul" and _is_scalar(left) != _is_scalar(right):
        scale, tensor = (left, right) if _is_scalar(left) else (right, left)
        return "add", (tensor,), scale
    if _is_scalar(left) or _is_scalar(right):
        return None
    fused = "addcmul" if node.op == "mul" else "addcdiv"
    inner = _product(left, uses)
    if inner and inner[0] == "add":
        return fused, (inner[1][0], right), inner[2]
    return fused, (left, right), 1.0


def _is_scalar(arg: Argument) -> bool:
    return not isinstance(arg, Node) or arg.scalar


def _root(arg: Argument) -> str:
    """The input that a chain of operations started from: where its result would best be written."""
    while isinstance(arg, Node) and arg.op != "input":
        arg = next((a for a in arg.args if not _is_scalar(a)), 0.0)
    return arg.name if isinstance(arg, Node) else ""


def eager_steps(program: Program) -> list[Step]:
    """The elementwise part with its products folded into the additions that consume them."""
    uses: dict[Node, int] = {}
    for node in program.elementwise_part:
        for arg in node_args(node):
            uses[arg] = uses.get(arg, 0) + 1
    for node in program.outputs.values():
        uses[node] = uses.get(node, 0) + 1
    steps: dict[Node, Step] = {}
    folded: set[Node] = set()
    for node in program.elementwise_part:
        step = _fold(node, uses) if node.op in ("add", "sub") else None
        if step is None:
            step = Step(node.op, node.args, node)
        else:
            folded.update(_parts(step, node))
        steps[node] = step
    return [step for node, step in steps.items() if node not in folded]


def _parts(step: Step, node: Node) -> set[Node]:
    """The product nodes between `node` and the arguments of its folded step."""
    kept = {arg for arg in step.args if isinstance(arg, Node)}
    found: set[Node] = set()
    pending = [arg for arg in node_args(node) if arg not in kept and not arg.scalar]
    while pending:
        part = pending.pop()
        found.add(part)
        pending += [arg for arg in node_args(part) if arg not in kept and not arg.scalar]
    return found


def _fold(node: Node, uses: dict[Node, int]) -> Step | None:
    left, right = node.args
    candidates = [(left, right)] if node.op == "sub" else [(left, right), (right, left)]
    if _root(candidates[-1][0]) not in ("grad", "") and _root(left) in ("grad", ""):
        candidates.reverse()
    for base, other in candidates:
        product = _product(other, uses)
        if product and not _is_scalar(base):
            op, args, scale = product
            return Step(op, (base, *args), node, scale, node.op == "sub")
    return None


class _Sequence:
    """Writes the in-place sequence: which name holds which value, and which may be overwritten."""

    def __init__(self, program: Program, foreach: bool, upcast: bool) -> None:
        self.program, self.foreach = program, foreach
        self.steps = eager_steps(program)
        self.columns = {node: f"c{i}" for i, node in enumerate(program.columns)}
        self.lines: list[str] = []
        self.names: dict[Node, str] = {}
        self.temporaries = self.peak = 0
        self.last_use = self._last_uses()
        self.home = {name: f"{name}_" if upcast else name for name in (n.name for n in program.tensors)}
        for node in program.tensors:
            self.names[node] = self.home[node.name]
            if upcast:
                cast = f"{node.name}.to(compute, copy=True)"
                each = f"[t.to(compute, copy=True) for t in {node.name}]"
                self.lines.append(f"{self.home[node.name]} = {each if foreach else cast}")
        # A gradient is never written to; a copy of one in a wider dtype may be.
        self.writable = {name for node_name, name in self.home.items() if node_name != "grad" or upcast}

    def _last_uses(self) -> dict[Node, int]:
        last: dict[Node, int] = {}
        for index, step in enumerate(self.steps):
            for arg in step.args:
                if isinstance(arg, Node):
                    last[arg] = index
        for node in self.program.outputs.values():
            last[node] = len(self.steps)
        return last

    def _may_overwrite(self, node: Node, index: int, result: Node) -> bool:
        """Whether step `index` may put `result` where `node` is: nobody reads it later, and the place is right."""
        name = self.names[node]
        if name not in self.writable or self.last_use.get(node, -1) > index:
            return False
        homes = {home: node_name for node_name, home in self.home.items()}
        if name not in homes or homes[name] == "grad":
            return True
        return self._leads_to(result, self.program.outputs.get(homes[name]))

    def _leads_to(self, node: Node, goal: Node | None) -> bool:
        """Whether `goal` is computed from `node` by operations on its first tensor operand alone."""
        while node is not goal:
            users = [step for step in self.steps if node in step.args]
            if not users or self.last_use[node] != self.steps.index(users[-1]):
                return False
            following = users[-1]
            if self._target(following) is not node:
                return False
            node = following.result
        return True

    def _target(self, step: Step) -> Node | None:
        """The operand that the in-place form of a step writes into."""
        tensors = [arg for arg in step.args if isinstance(arg, Node) and not arg.scalar]
        if step.scale is None and (not OPS[step.op].in_place or not tensors):
            return tensors[0] if step.op in ("maximum", "minimum") and len(tensors) == 2 else None
        return tensors[0] if step.op in COMMUTE or tensors[0] is step.args[0] else None

    def argument(self, arg: Argument) -> str:
        if isinstance(arg, Node):
            return self.columns[arg] if arg.scalar else self.names[arg]
        return literal(arg)

    def build(self) -> list[str]:
        for index, step in enumerate(self.steps):
            self._emit(index, step)
        self._store()
        return self.lines

    def _emit(self, index: int, step: Step) -> None:
        target = self._target(step)
        commutes = step.op in COMMUTE and step.scale is None
        options = [a for a in step.args if isinstance(a, Node) and not a.scalar] if commutes else [target]
        into = next((a for a in options if a is not None and target and self._may_overwrite(a, index, step.result)), None)
        if into is not None and into is not step.args[0]:
            step = Step(step.op, (into, *(a for a in step.args if a is not into)), step.result, step.scale, step.negate)
        args = [self.argument(arg) for arg in step.args]
        scale = None if step.scale is None else ("-" if step.negate else "") + self.argument(step.scale)
        if into is not None:
            self.names[step.result] = self.names[into]
            self.lines.append(self._in_place(step, args, scale))
        else:
            self.names[step.result] = self._temporary()
            self.lines.append(f"{self.names[step.result]} = {self._fresh(step, args, scale)}")
        self._let_go(index, step)

    def _temporary(self) -> str:
        self.temporaries += 1
        name = f"t{self.temporaries}"
        self.writable.add(name)
        live = {self.names[n] for n, last in self.last_use.items() if n in self.names and last >= 0}
        self.peak = max(self.peak, 1 + sum(name.startswith("t") and name[1:].isdigit() for name in live))
        return name

    def _let_go(self, index: int, step: Step) -> None:
        """Drop the names of temporaries that died, so that their memory is free for the next one."""
        for arg in set(step.args):
            if not isinstance(arg, Node) or arg.scalar or self.last_use.get(arg, -1) > index:
                continue
            name = self.names[arg]
            holds_other = any(self.names.get(n) == name and last > index for n, last in self.last_use.items())
            if name.startswith("t") and name[1:].isdigit() and not holds_other:
                self.lines.append(f"del {name}")
            self.last_use[arg] = -1

    def _each(self, call: str, args: list[str], step: Step, *more: str) -> str:
        """foreach where torch has none: one call per tensor. more: further lists that `call` reads, after the arguments."""
        lists = self._lists(args, step, *more)
        inner = {name: f"x{i}" for i, name in enumerate(lists)}
        body = call.format(*(inner.get(a, a) for a in (*args, *more)))
        pairs = ", ".join(inner[name] for name in lists)
        over = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)})"
        return f"[{body} for {pairs} in {over}]"

    @staticmethod
    def _lists(args: list[str], step: Step, *more: str) -> list[str]:
        """The arguments that are tensors, each once."""
        tensors = [a for a, arg in zip(args, step.args, strict=True) if isinstance(arg, Node) and not arg.scalar]
        return list(dict.fromkeys((*tensors, *more)))

    def _form(self, step: Step) -> str:
        """How an operation is called that torch has no list of. A number is a tensor where torch takes no other."""
        op, tensors = OPS[step.op], [isinstance(a, Node) and not a.scalar for a in step.args]
        wrapped = not op.numbers or not (op.first or tensors[0])
        like = tensors.index(True)
        form = [f"{{{i}}}" if tensor or not wrapped else f"number({{{i}}}, {{{like}}})" for i, tensor in enumerate(tensors)]
        return ", ".join(form)

    def _fresh(self, step: Step, args: list[str], scale: str | None) -> str:
        op, tensors = step.op, [isinstance(a, Node) and not a.scalar for a in step.args]
        if scale is not None:
            keyword = "alpha" if op == "add" else "value"
            if self.foreach:
                return f"_foreach_{op}({', '.join(args)}, {keyword}={scale})"
            return f"{op}({', '.join(args)}, {keyword}={scale})"
        if op in COMMUTE and not tensors[0]:
            args, tensors = args[::-1], tensors[::-1]
            step = Step(op, step.args[::-1], step.result)
        if self.foreach and OPS[op].foreach and tensors[0]:
            return f"_foreach_{OPS[op].foreach}({', '.join(args)})"
        call = f"{op}({self._form(step)})"
        more: list[str] = []
        if op in ("sub", "div") and not tensors[0]:
            call = {"sub": "rsub({1}, {0})", "div": "mul(reciprocal({1}), {0})"}[op]
        elif op == "where":
            call, more = self._where(tensors)
        elif op in ("maximum", "minimum") and not tensors[1]:
            call = f"clamp_{'min' if op == 'maximum' else 'max'}({{0}}, {{1}})"
        return self._each(call, args, step, *more) if self.foreach else call.format(*args, *more)

    def _where(self, tensors: Sequence[bool]) -> tuple[str, list[str]]:
        """How where() is called, and what is read besides."""
        if not tensors[0]:
            return "select({0}, {1}, {2})", []
        return ("where({0}, {1}, {2})", []) if any(tensors[1:]) else ("choose({0}, {1}, {2}, {3})", [self.home["param"]])

    def _in_place(self, step: Step, args: list[str], scale: str | None) -> str:
        op = step.op
        if scale is not None:
            keyword = "alpha" if op == "add" else "value"
            rest = f"{', '.join(args[1:])}, {keyword}={scale}"
            return f"_foreach_{op}_({args[0]}, {rest})" if self.foreach else f"{args[0]}.{op}_({rest})"
        if self.foreach and OPS[op].foreach:
            return f"_foreach_{OPS[op].foreach}_({', '.join(args)})"
        if op in ("maximum", "minimum"):
            return f"{op}({', '.join(args)}, out={args[0]})"
        first, _, rest = self._form(step).partition(", ")
        call = f"{first}.{op}_({rest})"
        if not self.foreach:
            return call.format(*args)
        lists = self._lists(args, step)
        inner = {name: f"x{i}" for i, name in enumerate(lists)}
        body = call.format(*(inner.get(a, a) for a in args))
        over = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)})"
        return f"for {', '.join(inner.values())} in {over}: {body}"

    def _store(self) -> None:
        """Bring every new value home, where it is not there already."""
        for name, node in self.program.tensor_outputs.items():
            value = self.columns[node] if node.scalar else self.names[node]
            if value == name:
                continue
            if node.scalar:
                self.lines.append(f"for x in {name}: x.fill_({value})" if self.foreach else f"{name}.fill_({value})")
            else:
                self.lines.append(f"_foreach_copy_({name}, {value})" if self.foreach else f"{name}.copy_({value})")


@dataclass(frozen=True)
class Eager:
    """An executable in-place sequence: function(columns, param, grad, *states)."""

    function: Callable[..., None]
    source: str
    temporaries: int  # tensors of the parameter's size alive at once, at most


@cache  # programs are few, and kept anyhow
def eager(program: Program, *, foreach: bool, compute: torch.dtype | None) -> Eager:
    """Derive the sequence. compute: the dtype to compute in where it is not the tensors' own (float16, bfloat16)."""
    sequence = _Sequence(program, foreach, compute is not None)
    body = sequence.build() or ["pass"]
    tensors = ", ".join(node.name for node in program.tensors)
    columns = ", ".join(sequence.columns.values())
    unpack = [f"{columns}{',' if len(sequence.columns) == 1 else ''} = columns"] if columns else []
    source = "\n    ".join([f"def update(columns, {tensors}):", *unpack, *body])
    namespace: dict[str, Any] = {"compute": compute, "select": select, "choose": choose, "number": number}
    namespace |= {name: op.tensor for name, op in OPS.items()}
    namespace |= {name: getattr(torch, name) for name in ("rsub", "clamp_min", "clamp_max", "addcmul", "addcdiv")}
    namespace |= {name: getattr(torch, name) for name in dir(torch) if name.startswith("_foreach_")}
    exec(compile(source, f"<{'foreach' if foreach else 'for-loop'} of {program.rule}>", "exec"), namespace)
    upcast = len(program.tensors) if compute is not None else 0
    return Eager(namespace["update"], source, sequence.peak + upcast)
