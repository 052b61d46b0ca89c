"""How tensors lie in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

NOT_DENSE = "a parameter is not dense in memory"
HALF = (torch.float16, torch.bfloat16)
IN_BYTES = (torch.float8_e4m3fn,)
FLOATING = (torch.float64, torch.float32, *HALF)  # that kernels are made for


LARGEST = torch.finfo(torch.float32).max


def held(value: float, dtype: torch.dtype) -> float:
    """A number as torch's operations on this dtype can take it: one that is beyond float32 they refuse to convert, which would
    be in the middle of an update, and kernels take for infinite."""
    if dtype is torch.float64 or -LARGEST <= value <= LARGEST or math.isnan(value):
        return value
    return math.copysign(math.inf, value)


def is_sparse(grad: torch.Tensor | None) -> bool:
    return grad is not None and grad.layout is not torch.strided


def lacks_memory(tensor: torch.Tensor | None) -> bool:
    """Whether the storage of a plain tensor has not all of its elements, as one that was resized to nothing meanwhile."""
    if tensor is None or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    try:
        size = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # what stands for a tensor under torch.func has none
        return False
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return size < (last + 1) * tensor.element_size()


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as twice as many reals, sharing memory unless it is lazily conjugated, as a gradient may be."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_operand(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a program sees it: complex numbers as reals, float8 as bytes (storage/float8.py), sharing memory."""
    return tensor.view(torch.uint8) if tensor.dtype in IN_BYTES else as_real(tensor)


def as_stored(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a program made for a tensor of this dtype, as one: the other direction of `as_operand`."""
    return values.to(torch.uint8).view(dtype) if dtype in IN_BYTES else values.to(dtype)


def kernel_dtypes(dtypes: Sequence[torch.dtype]) -> tuple[torch.dtype, ...]:
    """The dtypes that a kernel sees: complex numbers are two reals, float8 is bytes."""
    return tuple(torch.uint8 if dtype in IN_BYTES else dtype.to_real() for dtype in dtypes)


def tensor_reason(param: torch.Tensor) -> str | None:
    """Why this parameter cannot go through a whole-model launch, or None."""
    real = torch.view_as_real(param.detach()).dtype if param.is_complex() else param.dtype
    if type(param).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:  # type: ignore[attr-defined]
        return f"{type(param).__name__} is a tensor subclass with its own dispatch"
    if real not in FLOATING:
        return f"{param.dtype} has no kernel"
    if param.layout is not torch.strided or param.is_inference() or param.is_conj() or param.is_neg():
        return "a parameter is not a plain strided tensor"
    return None if is_dense(param) else NOT_DENSE


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one block of memory, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape put each element at the same offset."""
    if a.shape != b.shape or a.layout is not b.layout:
        return False
    if a.stride() == b.stride() or a.numel() == 0:
        return True
    return all(n == 1 or s == t for s, t, n in zip(a.stride(), b.stride(), a.shape, strict=True))


def scalar_dtype(group: Mapping[str, Any]) -> torch.dtype:
    """As torch's _get_scalar_dtype: float32, unless the default dtype is float64."""
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.float64 if wide else torch.float32
