"""NovoGrad."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.algorithms.reduced import one_number, over_all
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    optional={"max_exp_avg_sq": "amsgrad"},
    initial={"exp_avg_sq": one_number, "max_exp_avg_sq": one_number},
    branches=("weight_decay",),
    elementwise=False,
)
@with_maximize
def novograd(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    *,
    first,
    lr,
    betas,
    eps,
    weight_decay,
    grad_averaging,
    amsgrad,
    decoupled_decay,
):
    beta1, beta2 = betas
    square = over_all(grad * grad, "sum")
    exp_avg_sq = largest = torch.where(first > 0, square, beta2 * exp_avg_sq + (1 - beta2) * square)
    if amsgrad:
        largest = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    update = grad / (largest.sqrt() + eps)
    param, update = with_either_decay(param, update, lr, weight_decay, decoupled_decay)
    exp_avg = beta1 * exp_avg + ((1 - beta1) * update if grad_averaging else update)
    return param - lr * exp_avg, step + 1, exp_avg, exp_avg_sq, max_exp_avg_sq


class NovoGrad(Optimizer):
    """NovoGrad: momentum of gradients, each divided by an average of its own norm.

        v ← β₂·v + (1 − β₂)·‖g‖² (‖g‖² at first);  m ← β₁·m + (g / (√v + ε) + λ·θ);  θ ← θ − γ·m

    grad_averaging: (1 − β₁) times the bracket. amsgrad: the largest v so far. decoupled_decay: θ ← (1 − γ·λ)·θ instead of λ·θ.
    State: `exp_avg` (m), like the parameter, `exp_avg_sq` (v) and with amsgrad `max_exp_avg_sq`, one number each, with the
        parameter's dimensions (timm's have none).
    Good for: speech and convolutional nets without a warm-up, at half of Adam's state.
    Start: lr 1e-2, betas (0.95, 0.98), weight_decay 1e-3.
    Names: timm's NvNovoGrad, which are NVIDIA's.
    Source: Ginsburg et al. 2019, arXiv:1905.11286.
    """

    rule = novograd

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        decoupled_decay: bool = False,
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
