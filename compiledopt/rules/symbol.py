"""What stands for a tensor or a number while a rule is traced: it hands on what is done to it to its tracer."""

from __future__ import annotations

from typing import Any

from compiledopt.rules.author import TraceError, author_line, not_compiled
from compiledopt.rules.program import Node
from compiledopt.rules.spellings import unknown
from compiledopt.rules.views import Entry, View, broadcast, dims_of, flattened, indexed, place_of, places_of, reshaped


class Own:
    """A dtype or device of a rule's own: what its values have already. For `to` and the like, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"the rule's own {self.name}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise not_compiled(f"the {self.name}'s {name} is not known where a kernel is made")


class Sizes:
    """The sizes of a value, as numbers of the parameter. of: the value."""

    def __init__(self, of: Symbol) -> None:
        self.of = of

    def __len__(self) -> int:
        return self.of.ndim

    def __iter__(self) -> Any:
        return iter([self[dim] for dim in range(len(self))])

    def __getitem__(self, dim: Any) -> Any:
        tracer, shaped = self.of.tracer, self.of.shaped
        if isinstance(dim, slice):
            return list(self)[dim]
        if tracer.frame is None:
            return tracer.size(dim)
        entry = shaped[place_of(shaped, dim)]
        return tracer.size(frozenset(entry)) if entry else 1

    def numel(self) -> Any:
        return self.of.numel()


class Symbol:
    """Stands for a tensor or a number while a rule is traced."""

    __slots__ = ("branch", "node", "shaped", "tracer")

    def __init__(self, tracer: Any, node: Node, branch: bool = False, shaped: View = ()) -> None:
        self.tracer = tracer
        self.node = node
        self.branch = branch
        self.shaped = shaped  # where the rule may reduce: which dimensions of the parameter it runs over

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
            known = self.tracer.device if name == "device" else None
            return Own(name) if known is None else known
        if name == "data":
            return self
        if not self.tracer.knows(name):
            raise not_compiled(unknown(name))
        return lambda *args, **kwargs: self.tracer.apply(name, (self, *args), kwargs)

    def __bool__(self) -> bool:
        if self.branch:
            return True
        raise TraceError(
            f"{author_line()}: a rule must not branch on the value of a tensor or number, as Python's min, max and `and` do; "
            "use torch.where, .clamp_max, .clamp_min, & or |, or declare a number that is compared with zero, by == or != "
            "alone, in branches=(...)"
        )

    def __floordiv__(self, other: Any) -> Any:
        return self.tracer.apply("floor_divide", (self, other), {})

    def __rfloordiv__(self, other: Any) -> Any:
        return self.tracer.apply("floor_divide", (other, self), {})

    def where(self, condition: Any, other: Any) -> Any:
        """As a method, it begins with the value."""
        return self.tracer.apply("where", (condition, self, other), {})

    # ---- sizes and shapes ----

    @property
    def ndim(self) -> int:
        if self.tracer.frame is None and not self.node.scalar:
            raise not_compiled("the number of dimensions is known where a rule is traced for parameters of that many")
        return len(self.shaped)

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    @property
    def shape(self) -> Sizes:
        return Sizes(self)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> Any:
        return 1 if self.node.scalar and not self.shaped else self.tracer.size(dims_of(self.shaped))

    nelement = numel

    def __len__(self) -> Any:
        raise TraceError(f"{author_line()}: len() wants a number that is known; write param.shape[0]")

    def __getitem__(self, key: Any) -> Symbol:
        if isinstance(key, int) and self.node.scalar and not self.shaped:
            what = f"{self.node.name} is" if self.node.op == "input" else "this is"
            raise TraceError(f"{author_line()}: {what} one number, and the rule takes element {key} of it")
        if self.tracer.frame is None:
            raise not_compiled("indexing is not a pointwise operation")
        return self._as(indexed(self.shaped, key))

    def _as(self, shaped: View) -> Symbol:
        return Symbol(self.tracer, self.node, self.branch, shaped)

    def _reduces(self, name: str) -> View:
        if self.tracer.frame is None:
            raise not_compiled(unknown(name))
        return self.shaped

    def unsqueeze(self, dim: int) -> Symbol:
        shaped = self._reduces("unsqueeze")
        place = place_of(shaped, dim, 1)
        return self._as((*shaped[:place], (), *shaped[place:]))

    def squeeze(self, dim: Any = None) -> Symbol:
        shaped = self._reduces("squeeze")
        places = places_of(shaped, dim)
        return self._as(tuple(entry for place, entry in enumerate(shaped) if entry or place not in places))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Symbol:
        return self._as(flattened(self._reduces("flatten"), start_dim, end_dim))

    def ravel(self) -> Symbol:
        return self.flatten()

    def expand_as(self, other: Symbol) -> Symbol:
        if self.tracer.frame is None:
            return self if self.node.axes == other.node.axes or self.node.scalar else self[None]
        return self._as(broadcast([self.shaped, other.shaped]))

    def view_as(self, other: Symbol) -> Symbol:
        if self.tracer.frame is None:
            return self.expand_as(other)
        return self._as(reshaped(self.shaped, other.shaped))

    reshape_as = view_as

    def expand(self, *sizes: Any) -> Symbol:
        wanted = self._entries(sizes, "expand")
        entries = [
            own if entry is None else entry
            for own, entry in zip(((),) * (len(wanted) - len(self.shaped)) + self.shaped, wanted, strict=True)
        ]
        return self._as(broadcast([self.shaped, tuple(entries)]))

    broadcast_to = expand

    def reshape(self, *sizes: Any) -> Symbol:
        if self.tracer.frame is None and len(sizes) == 1 and isinstance(sizes[0], Sizes):
            return self.view_as(sizes[0].of)
        return self._as(reshaped(self._reduces("reshape"), self._entries(sizes, "reshape")))

    view = reshape

    def _entries(self, sizes: Any, name: str) -> list[Entry | None]:
        """The dimensions that sizes stand for, with None for -1."""
        self._reduces(name)
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, Sizes)) else sizes
        known: dict[Node, Entry] = {self.tracer.size(frozenset({dim})).node: (dim,) for dim in range(self.tracer.frame.dims)}
        known[self.tracer.size().node] = tuple(range(self.tracer.frame.dims))
        found: list[Entry | None] = []
        for size in sizes:
            entry = known.get(size.node) if isinstance(size, Symbol) else {1: (), -1: None}.get(size, "other")
            if entry == "other" or (entry is None and isinstance(size, Symbol)):
                raise not_compiled(f"{name} to the size {size!r}; write 1, -1 and param.shape[i]")
            found.append(entry)  # type: ignore[arg-type]
        return found

    def __float__(self) -> float:
        raise TraceError(
            f"{author_line()}: float() and the functions of math read a value; use torch's, as in torch.cos(x), torch.where"
        )

    def __format__(self, spec: str) -> str:
        if spec:
            raise TraceError(f"{author_line()}: a rule has no values that {spec!r} could format; print outside of the rule")
        return repr(self)

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

    def _branches_on(self, other: Any) -> bool:
        return self.branch and isinstance(other, (int, float)) and other == 0

    def __eq__(self, other: Any) -> Any:
        return False if self._branches_on(other) else self.tracer.apply("eq", (self, other), {})

    def __ne__(self, other: Any) -> Any:
        return True if self._branches_on(other) else self.tracer.apply("ne", (self, other), {})


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


# Functions of torch that are methods here.
SHAPING = ("numel", "unsqueeze", "squeeze", "flatten", "ravel", "reshape", "broadcast_to")
