"""Adafactor."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import factor, root_mean_square, unfactored
from compiledopt.arguments import Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _at_least(value: Any, least: Any) -> Any:
    """The larger one, and `least` for NaN: one among the elements stays theirs, as in torch."""
    return torch.where(value > least, value, least)


@rule(
    scalars=("step",),
    initial={"row_var": factor(-1), "col_var": factor(-2), "variance": unfactored},
    branches=("weight_decay",),
    elementwise=False,
)
@with_maximize
def adafactor(param, grad, step, row_var, col_var, variance, *, lr, beta2_decay, eps, d, weight_decay, dtype):
    step = step + 1
    new = step**beta2_decay
    tiny = torch.finfo(dtype).eps if eps[0] is None else eps[0]
    size = _at_least(root_mean_square(param), eps[1]) * torch.minimum(lr, step.rsqrt())
    square = grad * grad
    if variance is None:
        row_var = row_var + new * (square.mean(-1, keepdim=True) - row_var)
        col_var = col_var + new * (square.mean(-2, keepdim=True) - col_var)
        # 1/√max(r·c, ε²) as min(1/√r · 1/√c, 1/ε): two square roots a row and a column instead of one an element.
        update = (row_var / row_var.mean(-2, keepdim=True).clamp_min(tiny)).rsqrt() * col_var.rsqrt()
    else:
        variance = variance + new * (square - variance)
        update = variance.rsqrt()
    update = update.clamp_max(1 / tiny) * grad
    if weight_decay != 0:
        param = param * (1 - lr * weight_decay)
    update = update * (size / _at_least(root_mean_square(update) / d, 1.0))
    return param - update, step, row_var, col_var, variance


class Adafactor(Optimizer):
    """Adafactor: the second moment of a matrix from those of its rows and columns.

        r ← r + t^τ·(mean over columns of g² − r);  c likewise over rows;  v = r·c / max(mean r, ε₁)
        u = g / max(√v, ε₁);  θ ← (1 − γ·λ)·θ − max(ε₂, rms θ)·min(γ, 1/√t)·u / max(1, rms u / d)

    beta2_decay (τ): float. eps (ε₁, ε₂): two floats, or None for ε₁: the dtype's epsilon. d: float, the clipping threshold.
    foreach: True runs parameters of one shape as one; False one by one. compiled: the default on the CPU.
    State: `row_var` (r) and `col_var` (c) of parameters with two dimensions and more, `variance` of others.
    Raises: RuntimeError at the step for complex parameters and sparse gradients.
    Source: Shazeer and Stern 2018, arXiv:1804.04235.
    Deviations from torch: nothing is read on the host in a step; 1/√max(r·c, ε₁²) is min(1/√r · 1/√c, 1/ε₁).
    """

    rule = adafactor
    bounds = (
        Bound("lr", "Learning rate should be >= 0 but is"),
        Bound("beta2_decay", "beta2_decay should be <= 0 but is", least=None, most=0.0),
        Bound("eps", "epsilon1 should be >= 0 but is", index=0, optional=True),
        Bound("eps", "epsilon2 should be >= 0 but is", index=1),
        Bound("d", "Clipping threshold d should be >= 1 but is", least=1.0),
        Bound("weight_decay", "weight_decay should be >= 0 but is"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
