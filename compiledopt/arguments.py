"""What constructors take beside torch's arguments, and the checks that they share, in torch's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from compiledopt.compiler.derive import CLIP, EMA, asked
from compiledopt.compiler.rule import Rule
from compiledopt.compiler.schedule import Schedule

LearningRate = float | Tensor | Schedule


class Extras(TypedDict, total=False):
    """What every optimizer takes beside torch's arguments, as keywords or in a group.

    max_grad_norm: clip the gradients, as they are read, to this norm over all of them; `optimizer.grad_norm` is the norm.
    ema_decay: keep an average of each parameter, updated in the same pass, in `state[param]["ema"]`; see `use_ema`.
    """

    max_grad_norm: float | None
    ema_decay: float | None


def at_start(lr: Any) -> Any:
    """A learning rate as a number that can be checked: a schedule's first."""
    return lr(0) if isinstance(lr, Schedule) else lr


def check_extras(options: Mapping[str, Any], rule: Rule | None) -> None:
    """Refuse what cannot stand around a rule. Raises: ValueError in torch's words where torch has them."""
    wanted = [name for name in (CLIP, EMA) if asked(rule, options, name)]
    around = [*wanted, "a schedule as lr"] if isinstance(options.get("lr"), Schedule) else wanted
    if rule is None and around:
        raise ValueError(f"{around[0]} is for optimizers that are one rule for each parameter, which this one is not")
    if CLIP in wanted:
        check_number(options[CLIP], f"Invalid {CLIP} value")
    decay = options[EMA] if EMA in wanted else None
    if decay is not None and not 0.0 <= decay <= 1.0:
        raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")
    if decay is not None and rule is not None and not rule.elementwise:
        raise ValueError(
            f"{EMA} is for rules that are elementwise, {rule.name} is not; use compiledopt.swa_utils.AveragedModel"
        )


def check_number(value: Any, message: str, below: float | None = None, most: float | None = None) -> None:
    """Refuse a negative or NaN number, one not below `below`, or one above `most`. Raises: ValueError, torch's `message`."""
    value = at_start(value)
    if not value >= 0.0 or (below is not None and not value < below) or (most is not None and not value <= most):
        raise ValueError(f"{message}: {value}")


def check_tensor_number(value: Any, name: str) -> None:
    """Refuse a tensor of several elements as a number. Raises: ValueError in torch's words."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element")


def check_adam_numbers(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    """The checks that Adam and its relatives share, in torch's order. Raises: ValueError."""
    check_tensor_number(lr, "lr")
    check_number(lr, "Invalid learning rate")
    check_number(eps, "Invalid epsilon value")
    for index in (0, 1):
        check_number(betas[index], f"Invalid beta parameter at index {index}", below=1.0)
    check_number(weight_decay, "Invalid weight_decay value")
