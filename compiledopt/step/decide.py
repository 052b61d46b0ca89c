"""The executor of one parameter, once it is known whether what its group asks for can be had; kernels are compiled for that."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compiledopt.backends.batch import Choice, Entry
from compiledopt.backends.distributed import is_distributed, local, reason_against
from compiledopt.backends.eager.backend import CALLS, DIRECT, PIECED, SEQUENCES, SPARSE
from compiledopt.backends.layout import NOT_DENSE, is_sparse, tensor_reason
from compiledopt.backends.registry import compiled_for
from compiledopt.errors import warn
from compiledopt.rules.traced import Traced, Variant
from compiledopt.stats import STATS
from compiledopt.step import choose
from compiledopt.torch_private import is_known_tracer


def decide(traced: Traced, group: Mapping[str, Any], param: torch.Tensor, state: MutableMapping[str, Any]) -> Choice:
    """The executor of a parameter; its kernel is compiled if it is to have one.

    Raises: CompileError, where compiled=True or fused=True cannot be had.
    """
    wish = choose.wanted(group, param.device)
    entry = Entry(param, state, 0, traced, wish)
    choice = _special(entry, group)
    if choice is None and wish.executor == "compiled":
        choice = _compiled(entry, group)
    elif choice is not None and wish.required:
        raise choose.refused(wish, choice.reason)
    choice = choice or wish
    return choice if choice.backend is not None else eagerly(choice, traced, group, param)


def kind_of(param: torch.Tensor, state: Mapping[str, Any]) -> Hashable | None:
    """What parameters of a group have in common that get the same choice; None for one that is to be looked at by itself."""
    if type(param) not in (torch.nn.Parameter, torch.Tensor) or param.is_complex():
        return None
    if not param.is_contiguous() or param.is_inference() or param.is_neg():
        return None
    grad = param.grad
    known = [(name, value.dtype, value.device) for name, value in state.items() if isinstance(value, torch.Tensor)]
    return param.dtype, param.device, param.dim(), grad is None or (grad.dtype, grad.layout), tuple(known)


def eagerly(choice: Choice, traced: Traced, group: Mapping[str, Any], param: torch.Tensor, watched: bool = False) -> Choice:
    """A choice of an eager executor, with who runs it. watched: whether somebody looks at every operator."""
    if is_sparse(param.grad) and (watched or not group.get("differentiable")) and traced.elementwise:
        return replace(choice, backend=SPARSE)
    on_device = group.get("capturable") and param.device.type != "cpu"
    composed = traced.elementwise and traced.program.is_composed
    if watched or group.get("differentiable") or on_device or composed:
        return replace(choice, backend=DIRECT)
    return replace(choice, backend=(SEQUENCES if traced.elementwise else CALLS)[choice.executor])


def decide_watched(watched: str, traced: Traced, group: Mapping[str, Any], param: torch.Tensor) -> Choice:
    """Who looks at operators would miss what native code writes; also where fused=True asks for a kernel, as in torch."""
    wish = choose.wanted(group, param.device)
    surprise = wish.executor == "compiled" and not wish.required and not is_known_tracer(watched)
    choice = Choice("for-loop", f"{watched} is active and looks at every operator", fallback=surprise)
    return eagerly(choice, traced, group, param, watched=True)


def _special(entry: Entry, group: Mapping[str, Any]) -> Choice | None:
    """The executor where the rule or the gradient leaves no choice of the kind that `choose` makes."""
    traced, param, wish = entry.traced, entry.param, entry.choice
    if is_sparse(param.grad) or not traced.rule.dense:
        return Choice("for-loop", "sparse gradients touch some rows alone")
    if traced.elementwise:
        return None
    compiled = wish.executor == "compiled"
    backend = compiled_for(param.device)
    reason = wish.reason
    if compiled:
        found = choose.without_executor(wish, param) if backend is None else backend.objection(entry, group)
        if found is None:
            return None
        reason = found
    # A rule that says of itself that it is not elementwise surprises nobody; one that turns out not to be is warned of, and one
    # that has kernels on other devices.
    elsewhere = not is_distributed(param) and isinstance(traced.variant(param), Variant)
    surprise = compiled and (traced.rule.elementwise or elsewhere)
    loop = group.get("foreach") is False or group.get("differentiable")
    choice = Choice("for-loop" if loop else "foreach", reason, fallback=surprise)
    return _in_pieces(choice, entry, group) if compiled and not loop else choice


def _in_pieces(choice: Choice, entry: Entry, group: Mapping[str, Any]) -> Choice:
    """The same, and what of the rule is pointwise by kernels, where there are such for single tensors."""
    if not PIECED.serves(entry.param.device) or is_distributed(entry.param) or tensor_reason(entry.param) is not None:
        return choice
    refusal = PIECED.refusal(entry, group)
    if refusal is None:
        return replace(choice, backend=PIECED)
    return replace(
        choice, reason=f"{choice.reason}, and of what is pointwise in it there are no kernels: {refusal}", fallback=True
    )


def _compiled(entry: Entry, group: Mapping[str, Any]) -> Choice:
    """The compiled executor, or what stands in for it. Raises: CompileError where it was asked for by name."""
    param, wish = entry.param, entry.choice
    backend = compiled_for(param.device)
    if backend is None:
        reason: str | None = choose.without_executor(wish, param)
    else:
        reason = backend.missing(param.device) or (reason_against(param) if is_distributed(param) else None)
        reason = reason or tensor_reason(local(param)) or backend.refusal(entry, group)
    if reason is None:
        return replace(wish, backend=backend)
    if wish.required:
        raise choose.refused(wish, reason)
    if not entry.traced.elementwise:
        return Choice("foreach", reason, fallback=True)
    if reason == NOT_DENSE:
        return Choice("for-loop", reason, fallback=True)
    return choose.eager_choice(param.device, reason, fallback=True)


def fall_back(entry: Entry, group: Mapping[str, Any], reason: str) -> None:
    """Give a parameter an eager executor after all. Raises: CompileError where the compiled one was asked for by name."""
    if entry.choice.required:
        raise choose.refused(entry.choice, reason)
    entry.choice = eagerly(Choice("for-loop", reason, fallback=True), entry.traced, group, entry.param)


NAMED = 3  # parameters that a warning names


def warn_of_fallbacks(entries: Sequence[Entry], groups: Sequence[Mapping[str, Any]], owner: str, said: set[str]) -> None:
    """Say once for each reason which parameters do not get the compiled executor, which nobody declined.

    said: the reasons given before. Mutates: said.
    """
    fallbacks: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.choice.fallback and entry.choice.reason not in said:
            fallbacks.setdefault(entry.choice.reason, []).append(entry)
    count = sum(len(group["params"]) for group in groups)
    for reason, members in fallbacks.items():
        said.add(reason)
        STATS.fallbacks += 1
        many = len(members) > 1
        names = ", ".join(_name(entry, groups[entry.group]) for entry in members[:NAMED])
        names += f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        mend = (
            "Pass compiled=False"
            if len(members) == count
            else f"Put {'them' if many else 'it'} into a group with compiled=False"
        )
        warn(
            f"compiledopt.{owner}: {len(members)} of {count} parameters {'run' if many else 'runs'} on the "
            f"{members[0].choice.executor} executor, because {reason}: {names}. {mend} to choose that without this warning."
        )


def _name(entry: Entry, group: Mapping[str, Any]) -> str:
    """As torch's named parameters have it, or where it stands."""
    param = entry.param if entry.whole is None else entry.whole
    index = next(index for index, other in enumerate(group["params"]) if other is param)
    names = group.get("param_names")
    name = repr(names[index]) if names else f"param_groups[{entry.group}]['params'][{index}]"
    return f"{name} of shape {tuple(param.shape)}"
