"""Which executor runs a parameter, and why. The one place that reads foreach, fused, compiled, capturable and the device.

nothing asked             compiled where a compiler for the device works, else foreach on accelerators, else for-loop
compiled=True, fused=True compiled, or an error with the reason
foreach=True              foreach
foreach=False, fused=False, compiled=False   for-loop, as in torch (compiled=False alone: foreach on accelerators)
differentiable=True       for-loop
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.triton import kernels as triton
from compiledopt.errors import CompileError

NOT_DENSE = "a parameter is not dense in memory"
OPTIONS = ("foreach", "fused", "compiled", "capturable", "differentiable")


@dataclass(frozen=True)
class Choice:
    """executor: "compiled", "foreach" or "for-loop"; reason: why; required: whether it was asked for by name;
    fallback: whether it stands in for the compiled executor, which nobody declined."""

    executor: str
    reason: str
    required: bool = False
    fallback: bool = False


def check_options(group: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other. Raises: RuntimeError, in torch's words where torch has them."""
    fused, foreach, compiled = group.get("fused"), group.get("foreach"), group.get("compiled")
    differentiable = group.get("differentiable")
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if compiled and differentiable:
        raise RuntimeError("`compiled` does not support `differentiable`")
    if compiled and foreach:
        raise RuntimeError("`compiled` and `foreach` cannot be `True` together.")
    if compiled is False and fused:
        raise RuntimeError("`fused=True` means the compiled executor here, which `compiled=False` declines")


def wanted(group: Mapping[str, Any], device: torch.device) -> Choice:
    """What the options ask for, before it is known whether it can be had."""
    fused, foreach, compiled = group.get("fused"), group.get("foreach"), group.get("compiled")
    if group.get("differentiable"):
        return Choice("for-loop", "differentiable=True")
    if compiled or fused:
        return Choice("compiled", "compiled=True" if compiled else "fused=True", required=True)
    if foreach:
        return Choice("foreach", "foreach=True")
    if foreach is False or fused is False:
        return Choice("for-loop", "foreach=False" if foreach is False else "fused=False")
    if compiled is False:
        return eager_choice(device, "compiled=False")
    return Choice("compiled", "the default")


def eager_choice(device: torch.device, reason: str, fallback: bool = False) -> Choice:
    accelerator = device.type not in ("cpu", "meta")
    return Choice("foreach" if accelerator else "for-loop", reason, fallback=fallback)


def device_reason(device: torch.device) -> str | None:
    """Why no kernel can be had for a device, or None. That a compiler is missing shows when a kernel is wanted."""
    if backend(device) == "cpp":
        return cpp.platform_reason()
    if backend(device) is None:
        return f"there is no compiled executor for {device.type}"
    return triton.missing() or cpp.platform_reason()


def backend(device: torch.device) -> str | None:
    """Who makes kernels for a device: "cpp", "triton" or None.

    COMPILEDOPT_TRITON_ON_CPU=1, with TRITON_INTERPRET=1: Triton's interpreter runs the kernels of the GPU path on CPU tensors.
    """
    if device.type == "cpu":
        return "triton" if os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1" else "cpp"
    return "triton" if device.type in ("cuda", "xpu") else None


def kernels(device: torch.device) -> ModuleType:
    """The module whose `kernel` makes the kernels for a device that has a backend."""
    return triton if backend(device) == "triton" else cpp


def tensor_reason(param: torch.Tensor) -> str | None:
    """Why this parameter cannot go through a whole-model launch, or None."""
    real = torch.view_as_real(param.detach()).dtype if param.is_complex() else param.dtype
    if type(param).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:  # type: ignore[attr-defined]
        return f"{type(param).__name__} is a tensor subclass with its own dispatch"
    if not cpp.supports_dtype(real):
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


def refused(choice: Choice, reason: str) -> CompileError:
    return CompileError(f"{choice.reason} cannot be had: {reason}. Leave {choice.reason.split('=')[0]} at None to fall back.")
