"""Operations of a program that are made of torch's: one name for each, so that a program shows what is meant. And what a
program may know of its elements: random bits, and the largest size in a block of them."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from compiledopt.rules.ops import Op
from compiledopt.rules.random import bits_at

COMPOSED: dict[str, Op] = {}


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a pointwise function in torch's operators one operation of a program, which shows it by its name.

    function: of as many tensors or numbers as it has arguments, to one tensor. It computes in the dtype that it is given.
    """
    name, digest = function.__name__, _digest(function)
    if name in COMPOSED and COMPOSED[name].definition != digest:
        raise ValueError(f"{name} is an operation already; give this one another name")

    @wraps(function)
    def called(*args: Any) -> Any:
        if has_torch_function(args):
            return handle_torch_function(called, args, *args)
        return function(*args)

    COMPOSED[name] = Op(name, function.__code__.co_argcount, function, _no_number, in_place=False, definition=digest)
    return called


def _digest(function: Callable[..., Any]) -> str:
    """Of the file, since a function calls others there, and of those of the package that it has functions from; of the function
    alone where there is no file."""
    try:
        content = "".join(inspect.getsource(sys.modules[name]) for name in sorted(_files(function.__module__, set()))).encode()
    except (OSError, TypeError):
        content = function.__code__.co_code + repr(function.__code__.co_consts).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _files(module: str, known: set[str]) -> set[str]:
    """A module and those of its package that it has functions from. Mutates: `known`."""
    known.add(module)
    package = module.partition(".")[0]
    for value in list(vars(sys.modules[module]).values()):
        home = getattr(value, "__module__", None) if inspect.isfunction(value) else None
        if home and home not in known and home.partition(".")[0] == package and home in sys.modules:
            _files(home, known)
    return known


def _no_number(*_: float) -> float:
    raise TypeError("this operation is for tensors, and was given numbers alone")


LARGEST, MARKED = "largest", "marked_largest"


def largest(x: Any, block: int) -> Any:
    """The largest finite size among the elements of each block, of which the last dimension is a multiple."""
    if has_torch_function((x,)):
        return handle_torch_function(largest, (x,), x, block)
    return _of_blocks(x, block, lambda values, size: torch.where(size < torch.inf, size, 0.0).amax(-1, keepdim=True))


def marked_largest(x: Any, block: int) -> Any:
    """The same, and with a minus where an element of the block is not finite."""
    if has_torch_function((x,)):
        return handle_torch_function(marked_largest, (x,), x, block)

    def found(values: Any, size: Any) -> Any:
        most = torch.where(size < torch.inf, size, 0.0).amax(-1, keepdim=True)
        return torch.where((size < torch.inf).all(-1, keepdim=True), most, -most)

    return _of_blocks(x, block, found)


def _of_blocks(x: Any, block: int, found: Callable[[Any, Any], Any]) -> Any:
    """One value for each block; for each element where blocks are smaller than the last dimension."""
    if x.shape[-1] == block:
        return found(x, x.abs())
    values = x.unflatten(-1, (-1, block))
    return found(values, values.abs()).expand_as(values).flatten(-2)


SCALES = {LARGEST: largest, MARKED: marked_largest}
COMPOSED.update({name: Op(name, 2, made, _no_number, in_place=False, definition=name) for name, made in SCALES.items()})
# 32 bits for each element, of (seed, step): who runs a program knows the parameter, and which of its elements a tensor holds.
RANDOM = "random_bits"
COMPOSED[RANDOM] = Op(RANDOM, 2, _no_number, _no_number, in_place=False, definition=_digest(bits_at))


def random_bits(seed: Any, step: Any) -> Any:
    """32 random bits for each element, where a rule is traced. seed, step: numbers without a fraction, below 2^24."""
    return handle_torch_function(random_bits, (seed, step), seed, step)
