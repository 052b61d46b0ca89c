"""Tiger."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def tiger(param, grad, exp_avg, *, lr, beta, weight_decay):
    exp_avg = exp_avg.lerp(grad, 1 - beta)
    return param * (1 - lr * weight_decay) - lr * torch.sign(exp_avg), exp_avg


class Tiger(Optimizer):
    """Tiger: the sign of an average of gradients, Lion with one momentum.

        m ← β·m + (1 − β)·g;  θ ← (1 − γ·λ)·θ − γ·sign(m)

    beta (β): float.
    State: `exp_avg` (m), like the parameter.
    Good for: the least state; gradients may be accumulated in it.
    Start: lr a third to a tenth of AdamW's, and weight_decay as much larger.
    Names: pytorch_optimizer's.
    Source: Su 2023, https://github.com/bojone/tiger.
    """

    rule = tiger
    bounds = (*BOUNDS, Bound("beta", "Invalid beta value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
