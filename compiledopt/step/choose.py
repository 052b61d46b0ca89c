"""Which executor is wanted for a parameter, and why. The one place that reads foreach, fused and compiled.

nothing asked             compiled where a compiler for the device works, else foreach on accelerators, else for-loop
compiled=True, fused=True compiled, or an error with the reason
foreach=True              foreach
foreach=False, fused=False, compiled=False   for-loop, as in torch (compiled=False alone: foreach on accelerators)
differentiable=True       for-loop
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch

from compiledopt.backends.batch import Choice
from compiledopt.backends.registry import COMPILED
from compiledopt.errors import CompileError
from compiledopt.rules.rule import Rule

Construct = TypeVar("Construct", bound=Callable[..., None])
OPTIONS = ("foreach", "fused", "compiled", "capturable", "differentiable")


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


def constructor(construct: Construct) -> Construct:
    """That of an optimizer, of parameters and options: outside of Dynamo, which loses what a constructor that it traces sets
    before a graph break. What kernels need is begun before: the first optimizer of a process imports Dynamo for a second."""
    outside = torch._disable_dynamo(construct)  # type: ignore[attr-defined]

    @functools.wraps(construct)
    def constructed(self: Any, params: Any, defaults: Mapping[str, Any]) -> None:
        if not torch.compiler.is_dynamo_compiling():
            _begin(getattr(self, "rule", None), defaults)
        outside(self, params, defaults)

    return cast(Construct, constructed)


def _begin(rule: Rule | None, options: Mapping[str, Any]) -> None:
    """Let backends begin what takes long, where the options of an optimizer that is being made ask for kernels."""
    if rule is not None and rule.elementwise and rule.dense and wanted(options, torch.device("cpu")).executor == "compiled":
        for backend in COMPILED:
            backend.begin()


def eager_choice(device: torch.device, reason: str, fallback: bool = False) -> Choice:
    accelerator = device.type not in ("cpu", "meta")
    return Choice("foreach" if accelerator else "for-loop", reason, fallback=fallback)


def without_executor(choice: Choice, param: torch.Tensor) -> str:
    """Why a parameter on a device that no backend serves is not compiled: in torch's words where `fused` asks for it."""
    reason = f"there is no compiled executor for {param.device.type}"
    if choice.reason != "fused=True":
        return reason
    return f"{reason}; `fused=True` requires all the params to be floating point Tensors of supported devices"


def refused(choice: Choice, reason: str) -> CompileError:
    return CompileError(f"{choice.reason} cannot be had: {reason}. Leave {choice.reason.split('=')[0]} at None to fall back.")
