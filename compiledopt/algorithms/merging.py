"""Parameters that are seen with some of their dimensions as one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from compiledopt.algorithms.matrices import wide


def merged(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """A shape whose neighbouring dimensions are one, from the first on, for as long as that is not longer than `most`."""
    found, size = [], 1
    for each in shape:
        if size * each <= most:
            size *= each
        else:
            found += [size if size > 1 else each]
            size = each if size > 1 else 1
    return (*found, size) if size > 1 or not found else tuple(found)


def _seen(param: Any, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """The shape of a parameter as it is seen."""
    return merged(param.shape, options["max_precond_dim"]) if options["merge_dims"] and param.ndim > 1 else tuple(param.shape)


def dimensions_seen(param: Any, options: dict[str, Any]) -> int:
    return len(_seen(param, options))


def matrix_seen(param: Any, index: int, options: dict[str, Any]) -> Any:
    """Zeros of n × n for a dimension of n, as it is seen; None where n is more than an option says, and for vectors without."""
    size = _seen(param, options)[index]
    if size > options["max_precond_dim"] or not (param.ndim > 1 or options["precondition_1d"]):
        return None
    return torch.zeros(size, size, dtype=wide(param), device=param.device)


def with_merge_dims(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a parameter as it is seen, with the option `merge_dims`."""

    @functools.wraps(function)
    def seen(param: Any, grad: Any, step: Any, m: Any, v: Any, *lists: Any, merge_dims: bool, **options: Any) -> Any:
        if not merge_dims or param.ndim < 2:
            return function(param, grad, step, m, v, *lists, **options)
        shape = merged(param.shape, options["max_precond_dim"])
        new, grad, m, v = (one.reshape(shape) for one in (param, grad, m, v))
        new, step, m, v, *others = function(new, grad, step, m, v, *lists, **options)
        return (new.reshape(param.shape), step, m.reshape(param.shape), v.reshape(param.shape), *others)

    signature, option = inspect.signature(function), inspect.Parameter("merge_dims", inspect.Parameter.KEYWORD_ONLY)
    seen.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return seen
