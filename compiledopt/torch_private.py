"""What is private of torch, but for backends/inductor.py and the launcher: what a new torch must be tried on.

Each entry was tried on torch 2.11.0 and 2.13.0, and by hand on 2.15.0 (CONTRIBUTING.md); what it says where torch does not
know it any more stands beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks as _all_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _all_pre_hooks

_outside: dict[Callable[..., Any], Callable[..., Any]] = {}
LOCAL_TENSOR = "_local_tensor"


_tracing, _level, _modes = (
    torch._C._get_tracing_state,
    torch._C._functorch.peek_interpreter_stack,
    torch._C._len_torch_dispatch_stack,
)
_profiler_enabled = torch._C._autograd._profiler_enabled
_before_dispatch = torch._ops._len_torch_dispatch_stack_pre_dispatch


def watched_by() -> str | None:
    """Who looks at every operator that runs now, so that writes of native code would be lost to it: a dispatch mode, a
    transform of torch.func, or torch.jit.trace; None where nobody does."""
    if _tracing() is not None:
        return "torch.jit.trace"
    if _level() is not None:
        return "a transform of torch.func"
    if _modes():
        return type(torch._C._get_dispatch_stack_at(_modes() - 1)).__name__
    if _before_dispatch():  # type: ignore[no-untyped-call]  # torch.export before it functionalizes
        return "a tracer before dispatch"
    return None


def is_known_tracer(name: str) -> bool:
    """Whether who watches only traces or computes without data, where nobody waits for a step's speed."""
    return name.startswith(("torch.", "a ", "FakeTensorMode", "ProxyTorchDispatchMode", "FunctionalTensorMode"))


def is_observed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether anybody sees torch's wrapper around a step: hooks of the optimizer or of all of them, or a profiler."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _all_pre_hooks
        or _all_post_hooks
        or is_profiled()
    )


def is_profiled() -> bool:
    return not torch.compiler.is_compiling() and (torch.autograd.profiler._is_profiler_enabled or _profiler_enabled())


def observers(optimizer: torch.optim.Optimizer) -> tuple[list[Any], list[tuple[dict[str, Any], list[tuple[str, Any]]]]]:
    """What native code looks at to see what `is_observed` sees: dicts that are empty then, and (module's dict, (name, value))
    that hold then; the profiler's own flag is in c10, where a launcher finds it."""
    own = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return [*own, _all_pre_hooks, _all_post_hooks], [(vars(torch.autograd.profiler), [("_is_profiler_enabled", False)])]


def is_watched_by_dynamo() -> bool:
    """Whether Dynamo looks at the frames that run now, as it does between the parts of a compiled function."""
    module = sys.modules.get("torch._C._dynamo.eval_frame")
    return module is not None and module.get_eval_frame_callback() not in (None, False)


def outside_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with Dynamo off: it must not trace our Python, of which it made 250 frames before it hit its limit of
    recompilations. Not a decorator, since that would import Dynamo."""
    if function not in _outside:
        _outside[function] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return _outside[function]


def wants_whole_graph() -> bool:
    """Asked while Dynamo traces: whether the user said fullgraph=True, or error_on_graph_break. False where that cannot be
    found out; a graph break at the step then raises Dynamo's own error, which says so."""
    try:
        translator = sys.modules["torch._dynamo.symbolic_convert"].InstructionTranslator.current_tx()
        return bool(translator.one_graph or getattr(translator, "error_on_graph_break", False))
    except (AttributeError, KeyError, TypeError):
        return False


# What torch.compiler.assume_constant_result does, without importing Dynamo: the answer is a constant of the graph.
wants_whole_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """to_local(), which in torch 2.13 makes a new object at each call for a parameter: then every step would look as if the
    parameter had been exchanged. Where the attribute is gone, that is what happens: right, and slower."""
    part: torch.Tensor | None = getattr(tensor, LOCAL_TENSOR, None)
    if part is not None:
        return part
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined,no-any-return]


def unstacked(tensor: torch.Tensor) -> tuple[torch.Tensor, int | None]:
    """(the stack that stands behind a tensor within torch.vmap, the stacked dimension first; the level of the vmap), or any
    other tensor as it is, and None."""
    functorch = torch._C._functorch
    if not functorch.is_batchedtensor(tensor):
        return tensor, None
    level = functorch.maybe_get_level(tensor)
    value, dim = functorch._unwrap_batched(tensor, level)
    return (value if not dim else value.movedim(dim, 0)), level


def mapped(function: Callable[..., tuple[torch.Tensor, ...]], stacks: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """torch.vmap(function)(*stacks), along the first dimension, for a function that was mapped so before: without its trees of
    arguments, which take longer than the products of sixteen 64 × 64 matrices."""
    if watched_by() is not None:
        return torch.vmap(function)(*stacks)
    functorch, count = torch._C._functorch, len(stacks[0])
    level = functorch._vmap_increment_nesting(count, "error")
    try:
        found = function(*[functorch._add_batch_dim(stack, 0, level) for stack in stacks])
        return [functorch._remove_batch_dim(one, level, count, 0) for one in found]
    finally:
        functorch._vmap_decrement_nesting()


def stacked_again(stack: torch.Tensor, level: int | None) -> torch.Tensor:
    """The other direction of `unstacked`."""
    return stack if level is None else torch._C._functorch._add_batch_dim(stack, 0, level)  # type: ignore[no-any-return]


def first_row(tensor: Any) -> int:
    """Of a distributed tensor, which of its rows comes first in the part that is here."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] if offset else 0
