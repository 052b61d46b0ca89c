"""Yogi."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    initial={"exp_avg": "initial_accumulator", "exp_avg_sq": "initial_accumulator"},
    branches=("weight_decay",),
)
@with_maximize
def yogi(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, initial_accumulator, weight_decay, weight_decouple, eps):
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, weight_decouple)
    square = grad * grad
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    exp_avg_sq = exp_avg_sq - (1 - beta2) * torch.sign(exp_avg_sq - square) * square
    denominator = exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
    return param - lr / (1 - beta1**step) * exp_avg / denominator, step, exp_avg, exp_avg_sq


class Yogi(Optimizer):
    """Yogi: Adam whose second moment moves by steps of the square's size, whatever its own.

        m ← β₁·m + (1 − β₁)·g;  v ← v − (1 − β₂)·sign(v − g²)·g²
        θ ← (1 − γ·λ)·θ − γ·m̂ / (√v̂ + ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    initial_accumulator: float, what m and v start from.
    weight_decouple: False adds λ·θ to the gradient instead.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: sparse and uneven gradients, where Adam's v forgets too fast.
    Start: lr 1e-2, ten times Adam's; eps 1e-3.
    Names: pytorch_optimizer's.
    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization".
    """

    rule = yogi
    bounds = (*BOUNDS, Bound("initial_accumulator", "Invalid initial_accumulator value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        initial_accumulator: float = 1e-6,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        eps: float = 1e-3,
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
