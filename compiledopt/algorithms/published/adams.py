"""AdamS."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(scalars=("step",), optional={"max_exp_avg_sq": "amsgrad"}, branches=("weight_decay",))
@with_maximize
def adams(param, grad, step, exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr, betas, eps, weight_decay, amsgrad):
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    square = exp_avg_sq
    if amsgrad:
        square = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    square = square / (1 - betas[1] ** step)
    if weight_decay != 0:
        mean = (total(square) / total(torch.ones_like(grad))) ** 0.5
        param = param * (1 - lr * torch.where(mean > 0, weight_decay / mean, 0.0))
    update = exp_avg / (1 - betas[0] ** step) / (square.sqrt() + eps)
    return param - lr * update, step, exp_avg, exp_avg_sq, max_exp_avg_sq


class AdamS(Optimizer):
    """AdamS: Adam with stable weight decay, as strong as a step is long.

        m, v, m̂, v̂ as Adam's;  θ ← (1 − γ·λ / √mean(v̂))·θ − γ·m̂ / (√v̂ + ε),  the mean over all parameters

    amsgrad: the largest v so far.
    State: `exp_avg` (m), `exp_avg_sq` (v), and with amsgrad `max_exp_avg_sq`, like the parameter.
    Good for: convolutional nets: one weight_decay for the whole run, whatever the gradients become.
    Start: all as Adam's; weight_decay as SGD's without momentum, 1e-4 or 5e-4.
    Names: those of the authors' package (zeke-xie/stable-weight-decay-regularization).
    Source: Xie et al. 2020, arXiv:2011.11152; another AdamS, of 2025, is by others.
    Deviations from stable-weight-decay-regularization: where all gradients were zero so far nothing decays.
    """

    rule = adams

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
