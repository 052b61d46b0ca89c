"""The checks of a parameter that come before any write."""

from __future__ import annotations

import torch

from compiledopt.backends.batch import Entry
from compiledopt.backends.layout import is_sparse, lacks_memory
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import Traced


def check_layout(rule: Rule, param: torch.Tensor, grad: torch.Tensor, owner: str) -> None:
    """Refuse a sparse or dense gradient that the rule has no use for. Raises: RuntimeError, in torch's words."""
    if not is_sparse(grad):
        if not rule.dense:
            raise RuntimeError(f"{owner} does not support dense gradients, please consider Adam instead")
    elif rule.dense_alone:
        raise RuntimeError(f"{owner} does not support sparse gradients with `{'` or `'.join(rule.dense_alone)}`")
    elif rule.sparse is None or grad.layout is not torch.sparse_coo:
        raise RuntimeError(f"{owner} does not support sparse gradients, please consider SparseAdam instead")
    elif param.is_complex():
        raise RuntimeError(f"{owner} does not support sparse gradients of complex parameters; use torch.view_as_real")


def check_memory(what: str, tensor: torch.Tensor, owner: str) -> None:
    """Refuse a tensor without memory behind it, which a kernel of anybody's would crash on. Raises: RuntimeError."""
    if lacks_memory(tensor):
        size = tensor.untyped_storage().nbytes()
        raise RuntimeError(
            f"{owner}: the storage of a {what} of shape {tuple(tensor.shape)} was resized to {size} bytes, which do not hold "
            "its elements; give it its memory back before the step, or set the gradient to None"
        )


def check_gradient(traced: Traced, param: torch.Tensor, grad: torch.Tensor, owner: str) -> None:
    """Refuse what no executor can use. Raises: RuntimeError or TypeError with what, the bound, the value, the mend."""
    check_layout(traced.rule, param, grad, owner)
    if traced.measures and is_sparse(grad):
        raise RuntimeError(f"{owner} does not support sparse gradients: it sums over all parameters")
    if is_sparse(grad) and traced.rule.sparse == "rows" and not traced.elementwise:
        words = f"{owner} does not support sparse gradients, of which sparse='rows' updates the rows alone that they touch"
        raise RuntimeError(f"{words}: {traced.reason}")
    if param.is_complex() and not traced.elementwise:
        named = [f" with `{name}`" for name in traced.rule.dense_alone if traced.rule.elementwise]
        raise RuntimeError(f"{owner} does not support complex parameters{''.join(named[:1])}")
    if not (param.is_floating_point() or param.is_complex()):
        raise TypeError(f"{owner}: parameters must be floating point or complex, got {param.dtype}; convert them with .float()")
    if grad.shape != param.shape:
        raise RuntimeError(
            f"{owner}: a gradient of shape {tuple(grad.shape)} does not fit its parameter of shape {tuple(param.shape)}; "
            "run backward again after resizing a parameter"
        )
    check_memory("parameter", param, owner)
    check_memory("gradient", grad, owner)
    if grad.device != param.device:
        raise RuntimeError(f"{owner}: parameter on {param.device}, gradient on {grad.device}; run backward again after moving")
    if grad.is_complex() != param.is_complex():
        raise RuntimeError(f"{owner}: a {grad.dtype} gradient does not fit a {param.dtype} parameter")


def _is_code(*dtypes: torch.dtype) -> bool:
    """Whether one of them is an integer's: floating point numbers of another width are read as what they are."""
    return not all(dtype.is_floating_point or dtype.is_complex for dtype in dtypes)


def check_state(entry: Entry, owner: str) -> None:
    """Refuse states that do not fit their parameter. Raises: RuntimeError, naming the state."""
    param, dtypes = entry.param, entry.traced.dtypes_of(entry.param)
    for name, shape in entry.traced.shapes_of(param).items():
        value = entry.state.get(name)
        if not isinstance(value, torch.Tensor) or value.shape != shape or value.device != param.device:
            got = f"{tuple(value.shape)} on {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise RuntimeError(
                f"{owner}: state {name!r} must be a tensor of shape {tuple(shape)} on {param.device} like its "
                f"parameter, got {got}; delete optimizer.state[param] to start afresh"
            )
        if value.dtype != dtypes[name] and _is_code(value.dtype, dtypes[name]):
            raise RuntimeError(
                f"{owner}: state {name!r} must be {dtypes[name]}, as its group keeps it now, got {value.dtype}: what is kept "
                "in another way is no number here. To change `state_dtype` between steps, take state_dict(), set the group's, "
                "and load_state_dict() it, which converts; or delete optimizer.state[param] to start afresh"
            )
        check_memory(f"state {name!r}", value, owner)
        if value.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{owner}: state {name!r} is an inference tensor. Inplace update to inference tensor outside InferenceMode is "
                "not allowed; replace it by its clone()"
            )
        if is_sparse(value) and not is_sparse(param.grad):
            raise RuntimeError(
                f"{owner}: state {name!r} is sparse, from sparse gradients, and the gradient is dense now; "
                "delete optimizer.state[param] to start afresh"
            )
    for name in entry.traced.scalar_names:
        value = entry.state.get(name)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise RuntimeError(f"{owner}: state {name!r} must be a tensor of one element, got {value!r}")
        check_memory(f"state {name!r}", value, owner)
