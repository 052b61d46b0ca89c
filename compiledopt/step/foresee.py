"""What a step would do, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from compiledopt import around
from compiledopt.backends.batch import Choice, Entry
from compiledopt.backends.layout import is_sparse
from compiledopt.rules.rule import Rule
from compiledopt.step import choose
from compiledopt.step.decide import decide
from compiledopt.step.plan import Plan


def foresee(
    rules: Sequence[Rule], groups: Sequence[dict[str, Any]], state: Mapping[Any, Any], plan: Plan | None = None
) -> list[Entry]:
    """What a step would do if every parameter had a gradient of its own dtype; kernels are compiled here.

    rules: of each group; plan: the one at work, if there is; what it decided stands. Mutates: groups into which something was
    put by hand, that lack what goes with it. Raises: as `decide`.
    """
    around.take_over(rules, groups)
    entries: list[Entry] = []
    batches = plan.batches if plan is not None else []
    settled: dict[Any, Choice] = {e.param if e.whole is None else e.whole: e.choice for b in batches for e in b.entries}
    for index, (rule, group) in enumerate(zip(rules, groups, strict=True)):
        choose.check_options(group)
        programs = around.Programs(rule, group)
        for param in group["params"]:
            if is_lazy(param):  # nothing is known of a parameter without storage before its module has run
                continue
            known, program = state.get(param, {}), programs.of(param)
            choice = settled.get(param) or decide(program, group, param, known)
            entries.append(Entry(param, known, index, program, choice))
    return entries


def programs_of(optimizer: Any, group: Mapping[str, Any]) -> around.Programs:
    """What a group's parameters are updated by."""
    return around.Programs(optimizer.rule_of(group), group)


def supports_loss_scale(optimizer: Any) -> bool:
    """Whether the step divides by the scale and leaves out what is not finite, without waiting for the device."""
    for group in optimizer.param_groups:
        on_device = group.get("capturable") or group.get("fused")
        program = programs_of(optimizer, group).bare
        if not (group.get("fused") or group.get("compiled")):
            return False
        for param in group["params"]:
            if not program.elementwise and isinstance(program.variant(param), str):
                return False
            if is_sparse(param.grad) or (param.device.type != "cpu" and not on_device):
                return False
    return True
