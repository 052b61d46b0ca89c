"""Writes where an operand stands, for rules that are called on tensors: what a product is added to need not be copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compiledopt.rules.pieces import Numbers, Piece, Runner, run_by
from compiledopt.torch_private import mapped, stacked_again, unstacked

__all__ = ["InPlace", "Met", "Trial", "as_number", "is_same", "is_stacked", "mapped"]

Met = tuple[Piece, Numbers, tuple[torch.dtype, ...]]  # a piece, the numbers and the dtypes of the tensors that it was given


class InPlace(Runner):
    """Runs rules by torch's operations, but for products. owned: operands that may be written, since what takes their place is
    written there at last, and nothing reads the old value then (`Trial`). apart: (a stand-in for a stack, the tensors of which
    it would be one): of operands that nothing but pieces and products read; no two begin at the same place in memory."""

    has_kernels: ClassVar[bool] = False  # of pieces

    def __init__(self, owned: Iterable[Tensor], apart: Iterable[tuple[Tensor, Sequence[Tensor]]] = ()) -> None:
        self.owned = {id(tensor): tensor for tensor in owned}
        self.apart = {stand_in.data_ptr(): tensors for stand_in, tensors in apart}
        self.written: set[int] = set()  # of what is owned, by now

    def __enter__(self) -> None:
        self.within = run_by(self)
        self.within.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.within.__exit__(*error)

    def owns(self, tensor: Tensor) -> bool:
        return self.owned.get(id(tensor)) is tensor

    def run(self, piece: Piece, tensors: Sequence[Tensor], numbers: Numbers) -> tuple[Any, ...] | None:
        """By torch's operations."""
        given = [self.joined(tensor) for tensor in tensors]
        if all(one is tensor for one, tensor in zip(given, tensors, strict=True)):
            return None
        found = piece.function(*given, **numbers)
        return found if isinstance(found, tuple) else (found,)

    def parts(self, stack: Tensor) -> Sequence[Tensor] | None:
        """The tensors of which it would be a stack, where it is a stand-in for one, or seen as that is."""
        if not self.apart or stack.dim() == 0 or stack.stride(0) != 0 or (found := self.apart.get(stack.data_ptr())) is None:
            return None
        as_they_are = stack.shape[1:] == found[0].shape and stack.stride()[1:] == found[0].stride()
        return found if as_they_are else [each.as_strided(stack.shape[1:], stack.stride()[1:]) for each in found]

    def joined(self, tensor: Tensor) -> Tensor:
        """The stack itself, where a tensor is a stand-in for one."""
        stack, level = unstacked(tensor)
        found = self.parts(stack)
        return tensor if found is None else stacked_again(torch.stack(list(found)), level)

    def product(self, left: Tensor, right: Tensor) -> Tensor | None:
        if not self.apart:
            return None
        (one, level), (two, other) = unstacked(left), unstacked(right)
        first, second = self.parts(one), self.parts(two)
        if first is None and second is None:
            return None
        if level != other or one.dim() != 3 or two.dim() != 3:
            return self.joined(left) @ self.joined(right)
        found = one.new_empty(len(one), one.shape[1], two.shape[2])
        for a, b, out in zip(first or one.unbind(), second or two.unbind(), found.unbind(), strict=True):
            torch.mm(a, b, out=out)
        return stacked_again(found, level)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any) -> Tensor | None:
        (home, level), (one, other), (two, last) = map(unstacked, (total, left, right))
        parts = [self.parts(stack) for stack in (home, one, two)]
        alike = home.dtype == one.dtype == two.dtype and home.dim() == one.dim() == two.dim() and level == other == last
        single = not any(isinstance(number, Tensor) and unstacked(number)[1] is not None for number in (beta, alpha))
        if not (self.owns(home) and alike and single):
            if not any(parts):
                return None
            return beta * self.joined(total) + alpha * (self.joined(left) @ self.joined(right))  # type: ignore[no-any-return]
        numbers = {"beta": as_number(beta), "alpha": as_number(alpha)}
        if any(parts):
            rows = (some or stack.unbind() for some, stack in zip(parts, (home, one, two), strict=True))
            for each, a, b in zip(*rows, strict=True):
                each.addmm_(a, b, **numbers)
        else:
            (home.addmm_ if home.dim() == 2 else home.baddbmm_)(one, two, **numbers)
        self.written.add(id(home))
        return stacked_again(home, level)


class Trial(Runner):
    """Watches a rule that is tried without data. operands: what it is given; met: the pieces that it calls; taken: operands
    whose new values it has; read: those of them that it reads all the same, or returns, so that they must stay; touched:
    operands that not only pieces and products read."""

    def __init__(self, operands: Mapping[str, Tensor | None]) -> None:
        self.operands = {id(tensor): name for name, tensor in operands.items() if tensor is not None}
        self.new: dict[int, tuple[Tensor, str]] = {}  # what took the place of operands
        self.met: list[Met] = []
        self.taken: set[str] = set()
        self.read: set[str] = set()
        self.touched: set[str] = set()
        self.inside = False

    def run(self, piece: Piece, tensors: Sequence[Tensor], numbers: Numbers) -> tuple[Tensor, ...]:
        self.met.append((piece, numbers, tuple(tensor.dtype for tensor in tensors)))
        self.touched.update(name for one in tensors if one._base is not None for name in self._names([one]))
        self.see(tensors, touched=False)
        found = self._without_a_look(lambda: piece.function(*tensors, **numbers))
        found = found if isinstance(found, tuple) else (found,)
        for place, result in zip(piece.places, found, strict=True):
            if place >= 0:
                self._take(tensors[place], result)
        return found

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        self._multiplied(left, right)
        return self._without_a_look(lambda: left @ right)  # type: ignore[no-any-return]

    def _multiplied(self, *factors: Tensor) -> None:
        """Something multiplies these, which may be operands, or those seen in another way."""
        for factor in factors:
            self.see((factor,), touched=not _is_matrix(factor))

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any) -> Tensor:
        self.see((total,), touched=total._base is not None)
        self._multiplied(left, right)
        found: Tensor = self._without_a_look(lambda: total + left @ right)
        self._take(total, found)
        return found

    def _take(self, tensor: Tensor, by: Tensor) -> None:
        if id(tensor) in self.new:  # once is enough, and the first may still be read
            self.read.add(self.new[id(tensor)][1])
        elif (name := self.operands.get(id(tensor))) is not None:
            self.taken.add(name)
            self.new[id(by)] = by, name

    def see(self, values: Iterable[Any], touched: bool = True) -> None:
        """Something reads these."""
        names = self._names(values) if not self.inside else []
        self.read.update(self.taken.intersection(names))
        self.touched.update([*names, *self._names(values, self._known_new())] if touched and not self.inside else ())

    def see_results(self, results: Mapping[str, Tensor]) -> None:
        for name, value in results.items():
            self.read.update(self.taken.intersection(self._names([value])))
            several = [*self._names([value]), *self._names([value], self._known_new())]
            self.touched.update(other for other in several if other != name or value._base is not None)

    def see_all(self) -> None:
        """Nothing is known of the rule."""
        self.read.update(self.operands.values())
        self.touched.update(self.operands.values())

    def _without_a_look(self, call: Any) -> Any:
        self.inside = True
        try:
            return call()
        finally:
            self.inside = False

    def _known_new(self) -> dict[int, str]:
        return {key: name for key, (_, name) in self.new.items()}

    def _names(self, values: Iterable[Any], known: Mapping[int, str] | None = None) -> list[str]:
        """Of operands, or of what is known, and of views of them."""
        known = self.operands if known is None else known
        flat = [one for value in values for one in (value if isinstance(value, (list, tuple)) else (value,))]
        tensors = [one if one._base is None else one._base for one in flat if isinstance(one, Tensor)]
        return [known[id(tensor)] for tensor in tensors if id(tensor) in known]


def is_same(result: Tensor, given: Tensor | None) -> bool:
    """Whether a result is what was given, or stands there; of stacks, the stack."""
    return given is not None and unstacked(result)[0] is unstacked(given)[0]


def is_stacked(tensor: Tensor) -> bool:
    """Whether torch.vmap stands behind a tensor."""
    return unstacked(tensor)[1] is not None


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it is a matrix, and where it is a view, of all of a tensor."""
    whole = tensor if tensor._base is None else tensor._base
    as_much = tensor.numel() == whole.numel() and tensor.storage_offset() == whole.storage_offset()
    return tensor.dim() == 2 and as_much


def as_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
