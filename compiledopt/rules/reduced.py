"""What torch has of sums, norms and the like, spelled by four reductions: sum, mean, amax, amin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from compiledopt.rules.author import not_compiled
from compiledopt.rules.spellings import maximum, op, where


def norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    size = op("abs", input)
    if p in (2, "fro", None):
        return (input * input).sum(dim, keepdim).sqrt()
    if p == math.inf:
        return size.amax(dim, keepdim)
    if p == -math.inf:
        return size.amin(dim, keepdim)
    if p == 1:
        return size.sum(dim, keepdim)
    if p == 0:
        return op("ne", input, 0.0).sum(dim, keepdim)
    if isinstance(p, str):
        raise not_compiled(f"a norm of order {p!r} has no kernel; write elementwise=False: it runs on tensors")
    return (size**p).sum(dim, keepdim) ** (1.0 / p)


def vector_norm(input: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return norm(input, ord, dim, keepdim)


def linalg_norm(input: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if ord is not None and len(input.shaped) != 1 and not isinstance(dim, int):
        raise not_compiled("torch.linalg.norm with an order is a matrix's; write torch.linalg.vector_norm")
    return norm(input, 2 if ord is None else ord, dim, keepdim)


def dist(input: Any, other: Any, p: Any = 2) -> Any:
    return norm(input - other, p)


def var_mean(
    input: Any, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None
) -> tuple[Any, Any]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    mean = input.mean(dim, True)
    apart = input - mean
    count = input.tracer.count(input, dim) - (correction if correction is not None else 1.0 if unbiased else 0.0)
    return (apart * apart).sum(dim, keepdim) / count, input.mean(dim, keepdim)


def var(input: Any, *args: Any, **kwargs: Any) -> Any:
    return var_mean(input, *args, **kwargs)[0]


def std(input: Any, *args: Any, **kwargs: Any) -> Any:
    return var_mean(input, *args, **kwargs)[0].sqrt()


def std_mean(input: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    variance, mean = var_mean(input, *args, **kwargs)
    return variance.sqrt(), mean


def aminmax(input: Any, *, dim: Any = None, keepdim: bool = False) -> tuple[Any, Any]:
    return input.amin(dim, keepdim), input.amax(dim, keepdim)


def count_nonzero(input: Any, dim: Any = None) -> Any:
    return op("ne", input, 0.0).sum(dim)


def any_of(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return op("ne", where(op("ne", input, 0.0), 1.0, 0.0).amax(dim, keepdim), 0.0)


def all_of(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return op("ne", where(op("ne", input, 0.0), 1.0, 0.0).amin(dim, keepdim), 0.0)


def nansum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return where(op("isnan", input), 0.0, input).sum(dim, keepdim)


def nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return nansum(input, dim, keepdim) / op("logical_not", op("isnan", input)).sum(dim, keepdim)


def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Any:
    most = input.amax(dim, True)
    total = op("exp", input - most).sum(dim, True).log() + most
    return total if keepdim else total.amax(dim, False)


def softmax(input: Any, dim: Any, dtype: Any = None, **kwargs: Any) -> Any:
    powers = op("exp", input - input.amax(dim, True))
    return powers / powers.sum(dim, True)


def dot(input: Any, other: Any) -> Any:
    return (input * other).sum()


def normalize(input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> Any:
    return input / maximum(norm(input, p, dim, True), eps)


def cosine_similarity(x1: Any, x2: Any, dim: Any = 1, eps: Any = 1e-8) -> Any:
    lengths = maximum(norm(x1, 2, dim), eps) * maximum(norm(x2, 2, dim), eps)
    return (x1 * x2).sum(dim) / lengths


REDUCED: dict[str, Callable[..., Any]] = {
    "norm": norm, "vector_norm": vector_norm, "linalg_vector_norm": vector_norm, "linalg_norm": linalg_norm, "dist": dist,
    "var": var, "std": std, "var_mean": var_mean, "std_mean": std_mean, "aminmax": aminmax, "any": any_of, "all": all_of,
    "count_nonzero": count_nonzero, "nansum": nansum, "nanmean": nanmean, "logsumexp": logsumexp, "softmax": softmax,
    "dot": dot, "vdot": dot, "inner": dot, "normalize": normalize, "cosine_similarity": cosine_similarity,
}  # fmt: skip
