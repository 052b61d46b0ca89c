"""AdaShift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import one_number, over_all
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule

REDUCED = {"max": "amax", "mean": "mean"}


def _square(param: Tensor, options: Any) -> Tensor:
    return torch.zeros_like(param) if options["reduce_func"] is None else one_number(param)


@rule(
    scalars=("step",),
    lists={"grad_queue": "keep_num"},
    static=("keep_num",),
    initial={"exp_avg_sq": _square},
    elementwise=False,
)
@with_maximize
def adashift(param, grad, step, grad_queue, exp_avg_sq, *, lr, betas, keep_num, reduce_func, eps):
    step = step + 1
    square = grad_queue[0] * grad_queue[0]  # zero as long as there are fewer
    if reduce_func is not None:
        square = over_all(square, REDUCED[reduce_func])
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * square
    grad_queue = [*grad_queue[1:], grad]
    weights = [betas[0] ** (keep_num - 1 - age) for age in range(keep_num)]
    exp_avg = sum(weight * each for weight, each in zip(weights, grad_queue, strict=True)) / sum(weights)
    counted = (step - keep_num).clamp_min(1.0)
    update = lr * exp_avg / ((exp_avg_sq / (1 - betas[1] ** counted)).sqrt() + eps)
    return param - torch.where(step > keep_num, update, 0.0), step, grad_queue, exp_avg_sq


class AdaShift(Optimizer):
    """AdaShift: Adam whose second moment knows gradients only that the first has forgotten, so that the two are independent.

        m = Σ β₁ⁱ·gₜ₋ᵢ / Σ β₁ⁱ,  i < n;  v ← β₂·v + (1 − β₂)·φ(gₜ₋ₙ²);  θ ← θ − γ·m / (√v̂ + ε)   with  v̂ = v / (1 − β₂ᵗ⁻ⁿ)

    keep_num (n): int > 0, gradients that are kept; the first n steps move nothing. reduce_func (φ): "max" or "mean" over the
    parameter, or None.
    State: `grad_queue_i`, n gradients, like the parameter; `exp_avg_sq` (v), one number with the parameter's dimensions, or
        like the parameter without reduce_func.
    Good for: GANs and others whose gradients Adam's second moment follows too closely.
    Start: lr as SGD's with momentum over the largest gradient, or with None as Adam's; n 10.
    Names: pytorch_optimizer's; reduce_func is a name here.
    Source: Zhou et al. 2019, arXiv:1810.00143.
    Deviations from the authors' code (TensorFlow): the order of its assignments brings the newest gradient into m twice, and
        the oldest not at all.
    Deviations from pytorch_optimizer: m is computed of the gradients that are kept, and is no state; all of these move by one
        place at a step.
    """

    rule = adashift
    bounds = (*BOUNDS, Bound("keep_num", "Invalid keep_num value", least=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        keep_num: int = 10,
        reduce_func: str | None = "max",
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if options["reduce_func"] not in (*REDUCED, None):
            raise ValueError(f'Invalid reduce_func value: {options["reduce_func"]!r}; it is "max", "mean" or None')
