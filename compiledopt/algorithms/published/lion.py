"""Lion."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def lion(param, grad, exp_avg, *, lr, betas, weight_decay):
    update = torch.sign(exp_avg.lerp(grad, 1 - betas[0]))
    return param * (1 - lr * weight_decay) - lr * update, exp_avg.lerp(grad, 1 - betas[1])


class Lion(Optimizer):
    """Lion: the sign of a momentum, an update that a program search found.

        u = sign(β₁·m + (1 − β₁)·g);  m ← β₂·m + (1 − β₂)·g;  θ ← (1 − γ·λ)·θ − γ·u

    State: `exp_avg` (m), like the parameter.
    Good for: vision and language models in large batches, at half of AdamW's state.
    Start: lr a third to a tenth of AdamW's, and weight_decay as much larger.
    Names: those of the authors' package (google/automl, lion).
    Source: Chen et al. 2023, arXiv:2302.06675.
    """

    rule = lion

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
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
