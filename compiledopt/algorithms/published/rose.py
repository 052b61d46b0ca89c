"""Rose."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import over_rest
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def spread(grad: Any) -> Any:
    """|max g| − min g of each row, or of a vector."""
    return abs(over_rest(grad, "amax")) - over_rest(grad, "amin")


@rule(elementwise=False)
@with_maximize
def rose(param, grad, *, lr, weight_decay, centralize, stabilize):
    scale: Any = 1.0
    if param.ndim == 0:
        grad = torch.sign(grad)
    elif param.ndim == 1:
        scale = spread(grad)
    else:
        grad = grad - over_rest(grad, "mean") if centralize else grad
        scale = spread(grad)
        if stabilize:
            mean = scale.mean()
            whole = ((scale - mean) * (scale - mean)).mean() ** 0.5 + mean
            scale = mean + mean / torch.where(whole > 0, whole, 1.0) * (scale - mean)
    if param.ndim > 0:
        scale = torch.where(scale == 0, 1.0, scale)
    return param * (1 - lr * weight_decay) - lr * grad / scale


class Rose(Optimizer):
    """Rose: gradients over the range that each row of them has; nothing is kept between steps.

        g ← g − mean of each row;  r = |max g| − min g of each row;  a = mean r;  r ← a + a / (a + σ(r))·(r − a)
        θ ← (1 − γ·λ)·θ − γ·g / r

    A row is all dimensions but the first; a vector is divided by its range, and a 0-dim parameter goes by the sign. σ: standard
    deviation; r is 1 where it is 0. centralize: False leaves the mean in. stabilize: False takes r as it is.
    State: none.
    Good for: fine-tuning of large models in the memory of plain gradient descent.
    Start: lr 1e-3 with a schedule, in bfloat16 with rounding="stochastic".
    Names: those of the author's package (rose-opt), in which lr has no default. `corrected_decay` is near to its `wd_schedule`,
        `rounding="stochastic"` its `bf16_sr`.
    Source: Kieren 2026, https://github.com/MatthewK78/Rose
    Deviations from rose-opt: it computes in float32, and in float64 where parameters are.
    """

    rule = rose
    bounds = BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        weight_decay: float = 1e-4,
        centralize: bool = True,
        stabilize: bool = True,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
