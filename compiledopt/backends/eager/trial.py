"""A rule that is not elementwise is tried on tensors without data before it touches any with."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from compiledopt.backends.eager.in_place import Trial
from compiledopt.rules.author import TraceError, author_line
from compiledopt.rules.pieces import run_by
from compiledopt.rules.rule import Rule
from compiledopt.rules.trace import named

Operands = Mapping[str, torch.Tensor | None]
# What reads no element; views are known by their base.
ABOUT = ("__get__", "size", "dim", "numel", "stride", "is_contiguous", "_is_view", "unsqueeze")


class _Watch(TorchFunctionMode):
    """Names the line that writes into one of the rule's arguments; its own temporaries it may write to. `trial` is told what is
    read."""

    def __init__(self, operands: Operands, trial: Trial) -> None:
        super().__init__()
        self.watched = [(name, t, t._version) for name, t in operands.items() if t is not None]
        self.trial = trial
        # Kept and raised afterwards: torch's operators swallow a TypeError from within.
        self.found = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ABOUT:
            self.trial.see((*args, *(kwargs or {}).values()))
        result = func(*args, **(kwargs or {}))
        for name, tensor, version in self.watched:
            if tensor._version != version and not self.found:
                self.found = f"{author_line()}: {func.__name__} mutates {name}; a rule returns new values"
        return result


def try_rule(rule: Rule, operands: Operands, options: Mapping[str, Any]) -> Trial:
    """Call `rule` on meta tensors: same shapes, no data. operands: {"param", "grad", states}, None for absent states.

    Raises: TraceError, naming the line, where the rule mutates an argument, reads a value, or returns the wrong things.
    """
    with torch.inference_mode(False):  # a tensor made in inference mode has no version to watch
        meta = {name: without_data(value) for name, value in operands.items()}
    trial = Trial(meta)
    watch, results = _Watch(meta, trial), None
    try:
        with torch.inference_mode(False), torch.no_grad(), run_by(trial), watch:
            results = rule(*meta.values(), **{name: without_data(value) for name, value in options.items()})
    except NotImplementedError:  # an operation that does not work without data: nothing can be known beforehand
        trial.see_all()
        return trial
    except RuntimeError as error:
        if not watch.found and "meta tensor" not in str(error):
            raise
        line = _failing_line(error)
        watch.found = (
            watch.found or f"{line}: a rule must not branch on or read the value of a tensor or number; use torch.where"
        )
    if watch.found:
        raise TraceError(watch.found)
    present = [name for name, value in operands.items() if value is not None]
    found = named(rule, results, present, torch.Tensor)
    for name, value in found.items():
        if value.shape != meta[name].shape:
            shapes = f"{tuple(value.shape)} for {name}, which is {tuple(meta[name].shape)}"
            raise TraceError(f"{rule.place}: rule {rule.name} returned a tensor of shape {shapes}")
    trial.see_results(found)
    return trial


def can_stack(call: Callable[..., Any], operands: Sequence[torch.Tensor]) -> str | None:
    """Why a rule cannot run on a stack of parameters through torch.vmap, or None where it can."""
    try:
        with torch.no_grad():
            torch.vmap(call)(*[torch.stack([without_data(operand)] * 2) for operand in operands])
    except (NotImplementedError, RuntimeError) as error:
        return f"torch.vmap cannot run it: {str(error).splitlines()[0]}"
    return None


def without_data(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(without_data, value))
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value


def _failing_line(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "the rule"
