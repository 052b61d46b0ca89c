"""The executor of one parameter, once it is known whether what its group asks for can be had; kernels are compiled for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp.batch import MOST_TENSORS, kernel_dtypes
from compiledopt.backends.cpp.reducing import kernel as passes_kernel
from compiledopt.backends.entries import Entry, is_sparse, operand_dtypes
from compiledopt.backends.triton.batch import ready
from compiledopt.backends.triton.capturable import check_scalars, is_on_device
from compiledopt.errors import CompileError, warn
from compiledopt.rules.traced import Traced, Variant
from compiledopt.stats import STATS
from compiledopt.step import choose
from compiledopt.step.choose import Choice
from compiledopt.step.shards import is_distributed, local, reason_against


def decide(program: Traced, group: Mapping[str, Any], param: torch.Tensor, state: Mapping[str, Any]) -> Choice:
    """The executor of a parameter; its kernel is compiled if it is to have one.

    Raises: CompileError, where compiled=True or fused=True cannot be had.
    """
    choice = choose.wanted(group, param.device)
    special = special_choice(program, group, param)
    if special is not None:
        if choice.required:
            raise choose.refused(choice, special.reason)
        return special
    if choice.executor != "compiled":
        return choice
    reason = choose.device_reason(param.device) or (reason_against(param) if is_distributed(param) else None)
    reason = reason or choose.tensor_reason(local(param)) or compile_reason(program, group, param, state)
    if reason is None:
        return choice
    if choice.required:
        raise choose.refused(choice, reason)
    if not program.elementwise:
        return Choice("foreach", reason, fallback=True)
    if reason == choose.NOT_DENSE:
        return Choice("for-loop", reason, fallback=True)
    return choose.eager_choice(param.device, reason, fallback=True)


def special_choice(program: Traced, group: Mapping[str, Any], param: torch.Tensor) -> Choice | None:
    """The executor where the rule or the gradient leaves no choice of the kind that `choose` makes."""
    if is_sparse(param.grad) or not program.rule.dense:
        return Choice("for-loop", "sparse gradients touch some rows alone")
    if program.elementwise:
        return None
    wish = choose.wanted(group, param.device)
    reason = no_passes(program, group, param) if wish.executor == "compiled" else wish.reason
    if reason is None:
        return None
    # A rule that says of itself that it is not elementwise surprises nobody; one that turns out not to be is warned of.
    surprise = wish.executor == "compiled" and program.rule.elementwise
    loop = group.get("foreach") is False or group.get("differentiable")
    return Choice("for-loop" if loop else "foreach", reason, fallback=surprise)


def no_passes(program: Traced, group: Mapping[str, Any], param: torch.Tensor) -> str | None:
    """Why a rule that is not elementwise does not run in passes, or None where it may."""
    variant = program.variant(param)
    if not isinstance(variant, Variant):
        return variant if program.rule.elementwise else f"{program.reason}: {variant}"
    if choose.backend(param.device) != "cpp":
        return f"{program.rule.name} reduces, and such rules are compiled for the CPU alone"
    if group.get("capturable"):
        return f"{program.rule.name} reduces, and such rules are not compiled with capturable=True"
    return f"{program.rule.name} reduces, and a parameter is distributed" if is_distributed(param) else None


def compile_reason(program: Traced, group: Mapping[str, Any], param: torch.Tensor, state: Mapping[str, Any]) -> str | None:
    """Compile what a parameter needs, unless it is compiled already; why it cannot be had, or None."""
    runs = program.runs(param)
    dtypes = operand_dtypes(program, param, state)
    if (count := len(dtypes) + len(runs.scalar_names)) > MOST_TENSORS:
        return f"{program.rule.name} has {count} tensors for each parameter, and at most {MOST_TENSORS} are possible"
    try:
        if runs.is_clipped and choose.backend(param.device) == "cpp":
            cpp.squares_kernel(dtypes[1].to_real())
        if isinstance(runs, Variant):
            passes_kernel(runs, dtypes)
        else:
            kernel = choose.kernels(param.device).kernel(runs.program, kernel_dtypes(dtypes))
            if choose.backend(param.device) == "triton":
                ready(kernel, kernel_dtypes(dtypes), param.device)
                if is_on_device(program, group, param, state):
                    check_scalars(program, group, param, state, kernel)
        cpp.launcher()
    except CompileError as error:
        return str(error)
    return None


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
