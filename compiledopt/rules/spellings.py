"""What else torch calls pointwise, spelled by the operations of rules/ops.py; and what a rule must write instead of the rest.

Each function has torch's arguments, and is given symbols and numbers. So formulas, eager sequences and kernels have all of
them with no further word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from compiledopt.rules.author import not_compiled
from compiledopt.rules.ops import OPS

# Other names for operations of OPS.
ALIASES = {
    "true_divide": "div", "divide": "div", "subtract": "sub", "multiply": "mul", "negative": "neg", "absolute": "abs",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne", "fix": "trunc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh",
    "arctan2": "atan2", "bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_xor": "logical_xor",
    "bitwise_not": "logical_not", "sgn": "sign", "mod": "remainder", "special_expit": "sigmoid", "expit": "sigmoid",
    "special_erf": "erf", "special_erfc": "erfc", "special_expm1": "expm1", "special_log1p": "log1p",
    "special_exp2": "exp2", "special_xlogy": "xlogy", "special_gammaln": "lgamma",
}  # fmt: skip


def op(name: str, *args: Any) -> Any:
    """An operation of OPS on symbols and numbers."""
    symbol = next((arg for arg in args if hasattr(arg, "tracer")), None)
    return OPS[name].number(*args) if symbol is None else symbol.tracer.operation(name, args, {})


def where(condition: Any, x: Any, y: Any) -> Any:
    return op("where", condition, x, y)


def maximum(x: Any, y: Any) -> Any:
    return op("maximum", x, y)


def minimum(x: Any, y: Any) -> Any:
    return op("minimum", x, y)


# ---- sums and products ----


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = None) -> Any:
    return input + (tensor1 if value is None else value * tensor1) * tensor2


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = None) -> Any:
    return input + (tensor1 if value is None else value * tensor1) / tensor2


def rsub(input: Any, other: Any, *, alpha: Any = None) -> Any:
    return op("sub", other, input if alpha is None else alpha * input)


def ldexp(input: Any, other: Any) -> Any:
    return input * op("exp2", other)


# ---- bounds ----


def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    if min is None and max is None:
        raise ValueError("torch.clamp: At least one of 'min' or 'max' must not be None")
    low = input if min is None else maximum(input, min)
    return low if max is None else minimum(low, max)


def clamp_min(input: Any, min: Any) -> Any:
    return maximum(input, min)


def clamp_max(input: Any, max: Any) -> Any:
    return minimum(input, max)


def larger(input: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.max, which is of two tensors, or over one."""
    return _of_two("max", input, args, kwargs)


def smaller(input: Any, *args: Any, **kwargs: Any) -> Any:
    return _of_two("min", input, args, kwargs)


def _of_two(name: str, input: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    other = args[0] if args else kwargs.get("other")
    if hasattr(other, "tracer"):
        return op(f"{name}imum", input, other)
    if args or kwargs:
        raise not_compiled(f"torch.{name} over a dimension gives values and indices; write a{name}(dim, keepdim=True)")
    return input.tracer.apply(f"a{name}", (input,), {})


def fmax(input: Any, other: Any) -> Any:
    return where(op("isnan", input), other, where(op("isnan", other), input, maximum(input, other)))


def fmin(input: Any, other: Any) -> Any:
    return where(op("isnan", input), other, where(op("isnan", other), input, minimum(input, other)))


def nan_to_num(input: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    result = op("nan_to_num", input)
    result = result if nan is None else where(op("isnan", input), nan, result)
    result = result if posinf is None else where(op("eq", input, math.inf), posinf, result)
    return result if neginf is None else where(op("eq", input, -math.inf), neginf, result)


def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    return where(mask, value, input)


# ---- whole numbers ----


def frac(input: Any) -> Any:
    return input - op("trunc", input)


def rounded(input: Any, *, decimals: int = 0) -> Any:
    return op("round", input) if decimals == 0 else op("round", input * 10.0**decimals) * 10.0**-decimals


# ---- comparisons ----


def isclose(input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    distance, near = op("abs", input - other), atol + rtol * op("abs", other)
    close = op("logical_or", op("eq", input, other), op("logical_and", op("isfinite", distance), op("le", distance, near)))
    both = op("logical_and", op("isnan", input), op("isnan", other)) if equal_nan else None
    return close if both is None else op("logical_or", close, both)


def isposinf(input: Any) -> Any:
    return op("eq", input, math.inf)


def isneginf(input: Any) -> Any:
    return op("eq", input, -math.inf)


# ---- exponentials and what networks use ----


def relu(input: Any, inplace: bool = False) -> Any:
    return maximum(input, 0.0)


def relu6(input: Any, inplace: bool = False) -> Any:
    return clamp(input, 0.0, 6.0)


def hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Any:
    return clamp(input, min_val, max_val)


def hardsigmoid(input: Any, inplace: bool = False) -> Any:
    return clamp(input + 3.0, 0.0, 6.0) / 6.0


def hardswish(input: Any, inplace: bool = False) -> Any:
    return input * hardsigmoid(input)


def leaky_relu(input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Any:
    return where(input > 0, input, negative_slope * input)


def prelu(input: Any, weight: Any) -> Any:
    return leaky_relu(input, weight)


def elu(input: Any, alpha: Any = 1.0, inplace: bool = False) -> Any:
    return where(input > 0, input, alpha * op("expm1", input))


def celu(input: Any, alpha: Any = 1.0, inplace: bool = False) -> Any:
    return where(input > 0, input, alpha * op("expm1", input / alpha))


def selu(input: Any, inplace: bool = False) -> Any:
    return 1.0507009873554804934193349852946 * elu(input, 1.6732632423543772848170429916717)


def gelu(input: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * input * (1.0 + op("tanh", math.sqrt(2.0 / math.pi) * (input + 0.044715 * input * input * input)))
    return 0.5 * input * (1.0 + op("erf", input * math.sqrt(0.5)))


def silu(input: Any, inplace: bool = False) -> Any:
    return input * op("sigmoid", input)


def softplus(input: Any, beta: Any = 1.0, threshold: Any = 20.0) -> Any:
    scaled = input * beta
    return where(scaled > threshold, input, op("log1p", op("exp", scaled)) / beta)


def mish(input: Any, inplace: bool = False) -> Any:
    return input * op("tanh", softplus(input))


def logsigmoid(input: Any) -> Any:
    return minimum(input, 0.0) - op("log1p", op("exp", -op("abs", input)))


def softsign(input: Any) -> Any:
    return input / (1.0 + op("abs", input))


def tanhshrink(input: Any) -> Any:
    return input - op("tanh", input)


def softshrink(input: Any, lambd: Any = 0.5) -> Any:
    return where(input > lambd, input - lambd, where(input < -lambd, input + lambd, input * 0.0))


def hardshrink(input: Any, lambd: Any = 0.5) -> Any:
    inside = op("logical_and", op("ge", input, -lambd), op("le", input, lambd))
    return where(inside, 0.0, input)


def threshold(input: Any, threshold: Any, value: Any, inplace: bool = False) -> Any:
    return where(op("le", input, threshold), value, input)


def logit(input: Any, eps: Any = None) -> Any:
    inside = input if eps is None else clamp(input, eps, 1.0 - eps)
    return op("log", inside / (1.0 - inside))


def logaddexp2(input: Any, other: Any) -> Any:
    return op("logaddexp", input * math.log(2.0), other * math.log(2.0)) / math.log(2.0)


def sinc(input: Any) -> Any:
    angle = input * math.pi
    return where(op("eq", input, 0.0), 1.0, op("sin", angle) / angle)


def xlog1py(input: Any, other: Any) -> Any:
    return op("where", op("isnan", other), math.nan, where(op("eq", input, 0.0), 0.0, input * op("log1p", other)))


def ndtr(input: Any) -> Any:
    return 0.5 * op("erfc", -input * math.sqrt(0.5))


def deg2rad(input: Any) -> Any:
    return input * (math.pi / 180.0)


def rad2deg(input: Any) -> Any:
    return input * (180.0 / math.pi)


# ---- the same value again ----


def same(input: Any, *args: Any, **kwargs: Any) -> Any:
    """What changes how a value is kept, and not the value."""
    return input


def to(input: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast. Arithmetic is float32, or float64 where an operand is: what asks for less is rounded, for that is the same."""
    given = (*args, kwargs.get("dtype"))
    dtype = next((arg for arg in given if isinstance(arg, torch.dtype)), torch.float32)
    value = input * 1.0 if input.tracer.is_truth(input.node) else input
    if dtype in (torch.float16, torch.bfloat16):
        return op(str(dtype).removeprefix("torch."), value)
    if dtype is torch.bool:
        return op("ne", value, 0.0)
    if dtype in (torch.int32, torch.int64):
        return op("trunc", value)
    if dtype is torch.float32:
        return value
    raise not_compiled(unknown("double" if dtype is torch.float64 else str(dtype)))


def _cast(dtype: torch.dtype) -> Callable[..., Any]:
    return lambda input, *args, **kwargs: to(input, dtype)


def full_like(input: Any, fill_value: Any, **kwargs: Any) -> Any:
    return fill_value if hasattr(fill_value, "tracer") else input.tracer.constant(fill_value, input)


def zeros_like(input: Any, **kwargs: Any) -> Any:
    return full_like(input, 0.0)


def ones_like(input: Any, **kwargs: Any) -> Any:
    return full_like(input, 1.0)


SPELLINGS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        addcmul, addcdiv, rsub, ldexp, clamp, clamp_min, clamp_max, fmax, fmin, nan_to_num, masked_fill, frac, isclose,
        isposinf, isneginf, relu, relu6, hardtanh, hardsigmoid, hardswish, leaky_relu, prelu, elu, celu, selu, gelu, silu,
        softplus, mish, softsign, tanhshrink, softshrink, hardshrink, threshold, logit, logaddexp2, sinc, xlog1py, deg2rad,
        rad2deg, to, full_like, zeros_like, ones_like,
    )
} | {
    "clip": clamp, "max": larger, "min": smaller, "_threshold": threshold,
    "round": rounded, "log_sigmoid": logsigmoid, "logsigmoid": logsigmoid, "special_logit": logit,
    "special_sinc": sinc, "special_xlog1py": xlog1py, "special_ndtr": ndtr, "special_round": rounded,
    "clone": same, "detach": same, "contiguous": same, "positive": same, "conj": same, "resolve_conj": same,
    "resolve_neg": same, "alias": same, "type": to, "type_as": to, "float": _cast(torch.float32), "half": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16), "bool": _cast(torch.bool), "int": _cast(torch.int32), "long": _cast(torch.int64),
    "double": _cast(torch.float64),
}  # fmt: skip

# What to write instead of an operation that no kernel is made of.
MENDS = {
    "empty_like": "it has no values; write torch.zeros_like",
    "rand_like": "take the keyword argument `noise`, and write noise.uniform()",
    "randn_like": "take the keyword argument `noise`, and write noise.normal()",
    "bernoulli": "take the keyword argument `noise`, and write noise.uniform() < p",
    "dropout": "take the keyword argument `noise`, and write noise.uniform() < p",
    "double": "arithmetic is float32 unless an operand is float64; give a state that dtype with initial={...}",
    "float_power": "it computes in float64; write **",
    "prod": "write the exponential of a sum of logarithms, or elementwise=False",
    "matmul": "write elementwise=False: products of matrices run on tensors",
    "mm": "write elementwise=False: products of matrices run on tensors",
    **dict.fromkeys(("T", "mT", "t", "transpose", "permute", "movedim"), "write elementwise=False: transposes run on tensors"),
    "einsum": "write elementwise=False: products of matrices run on tensors",
    "sort": "write elementwise=False: sorting runs on tensors",
    "topk": "write elementwise=False: sorting runs on tensors",
    "median": "write elementwise=False: sorting runs on tensors",
    "quantile": "write elementwise=False: sorting runs on tensors",
    "cumsum": "write elementwise=False: running sums run on tensors",
    "argmax": "write x == x.amax(dim, keepdim=True) for a mask of the largest",
    "argmin": "write x == x.amin(dim, keepdim=True) for a mask of the smallest",
    "nextafter": "write x * (1 + eps)",
    "polar": "write torch.cos and torch.sin",
    "angle": "write torch.where(x < 0, math.pi, 0.0)",
}


def unknown(name: str) -> str:
    mend = MENDS.get(name, "docs/operations.md lists those that are, and elementwise=False runs a rule on tensors")
    return f"{name} is not a pointwise operation that compiledopt knows; {mend}"
