"""What stands for a tensor or a number while a rule is traced: it hands on what is done to it to its tracer."""

from __future__ import annotations

from typing import Any

from compiledopt.rules.author import NotElementwise, TraceError, author_line, not_compiled
from compiledopt.rules.program import Node
from compiledopt.rules.spellings import unknown


class Own:
    """A dtype or device of a rule's own: what its values have already. For `to` and the like, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"the rule's own {self.name}"


class Symbol:
    """Stands for a tensor or a number while a rule is traced."""

    __slots__ = ("branch", "node", "tracer")

    def __init__(self, tracer: Any, node: Node, branch: bool = False) -> None:
        self.tracer = tracer
        self.node = node
        self.branch = branch

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracer = next(arg.tracer for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, Symbol))
        return tracer.apply(func.__name__, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_"):
            raise TraceError(f"{author_line()}: {name} mutates its operand; a rule returns new values: write {name[:-1]}")
        if name in ("item", "tolist", "numpy"):
            raise TraceError(f"{author_line()}: {name}() reads a tensor's value; compute with the tensor itself")
        if name in ("dtype", "device"):
            return Own(name)
        if name == "data":
            return self
        if name in ("ndim", "dim") and self.tracer.dims is not None:
            return self.tracer.dims if name == "ndim" else lambda: self.tracer.dims
        if not self.tracer.knows(name):
            raise not_compiled(unknown(name))
        return lambda *args, **kwargs: self.tracer.apply(name, (self, *args), kwargs)

    def __bool__(self) -> bool:
        if self.branch:
            return True
        raise TraceError(
            f"{author_line()}: a rule must not branch on the value of a tensor or number; use torch.where, or declare a "
            "number that is compared with zero in branches=(...)"
        )

    def __floordiv__(self, other: Any) -> Any:
        return self.tracer.apply("floor_divide", (self, other), {})

    def __rfloordiv__(self, other: Any) -> Any:
        return self.tracer.apply("floor_divide", (other, self), {})

    def where(self, condition: Any, other: Any) -> Any:
        """As a method, it begins with the value."""
        return self.tracer.apply("where", (condition, self, other), {})

    def __getitem__(self, key: Any) -> Any:
        raise NotElementwise(f"{author_line()}: indexing is not a pointwise operation")

    def __float__(self) -> float:
        raise TraceError(
            f"{author_line()}: float() and the functions of math read a value; use torch's, as in torch.cos(x), torch.where"
        )

    def __index__(self) -> int:
        raise TraceError(
            f"{author_line()}: range(), int() and the like read a value; declare a number that the rule takes as it is in "
            "static=(...)"
        )

    def __pos__(self) -> Symbol:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TraceError(f"{author_line()}: assigning to elements mutates; use torch.where")

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: Any) -> Any:
        return self.tracer.apply("eq", (self, other), {})

    def __ne__(self, other: Any) -> Any:
        return (
            True
            if self.branch and isinstance(other, (int, float)) and other == 0
            else self.tracer.apply("ne", (self, other), {})
        )


class Zero(float):
    """A number of `branches` while it is zero. What would fail when it is not fails now, and not in the middle of training."""

    def _compared(self, other: Any) -> bool:
        raise TraceError(
            f"{author_line()}: a number in branches=(...) may be compared with zero by == and != alone, since zero and not "
            "zero are two programs; write != 0, or use torch.where for its sign or size"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _compared


def _binary(name: str, reflected: bool = False) -> Any:
    def method(self: Symbol, other: Any) -> Any:
        return self.tracer.apply(name, (other, self) if reflected else (self, other), {})

    return method


def _mutation(name: str) -> Any:
    def method(self: Symbol, other: Any) -> Any:
        raise TraceError(f"{author_line()}: {name} mutates a tensor in place; write x = x {name[:-1]} y")

    return method


for _dunder, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow", "mod": "remainder"}.items():
    setattr(Symbol, f"__{_dunder}__", _binary(_op))
    setattr(Symbol, f"__r{_dunder}__", _binary(_op, reflected=True))
for _dunder, _op in {"gt": "gt", "ge": "ge", "lt": "lt", "le": "le"}.items():
    setattr(Symbol, f"__{_dunder}__", _binary(_op))
for _dunder, _op in {"and": "logical_and", "or": "logical_or", "xor": "logical_xor"}.items():
    setattr(Symbol, f"__{_dunder}__", _binary(_op))
    setattr(Symbol, f"__r{_dunder}__", _binary(_op, reflected=True))
for _dunder in ("matmul", "rmatmul"):
    setattr(Symbol, f"__{_dunder}__", _binary("matmul"))
for _dunder, _sign in {
    "iadd": "+=",
    "isub": "-=",
    "imul": "*=",
    "itruediv": "/=",
    "ipow": "**=",
    "ior": "|=",
    "iand": "&=",
}.items():
    setattr(Symbol, f"__{_dunder}__", _mutation(_sign))
for _dunder, _op in {"neg": "neg", "abs": "abs", "invert": "logical_not"}.items():
    setattr(Symbol, f"__{_dunder}__", (lambda op: lambda self: self.tracer.apply(op, (self,), {}))(_op))
