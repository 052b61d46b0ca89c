"""AdaBelief."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import rectification, with_either_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), optional={"max_exp_avg_var": "amsgrad"}, branches=("weight_decay",))
@with_maximize
def adabelief(
    param, grad, step, exp_avg, exp_avg_var, max_exp_avg_var, *, lr, betas, eps, weight_decay, amsgrad, decoupled_decay, rectify
):
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_decay)
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    surprise = grad - exp_avg
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * surprise * surprise + eps
    largest = exp_avg_var
    if amsgrad:
        largest = max_exp_avg_var = torch.maximum(max_exp_avg_var, exp_avg_var)
    size = lr / (1 - beta1**step)
    if rectify:
        rectifier, known = rectification(step, beta2)
        update = torch.where(known, size * rectifier * exp_avg / (largest.sqrt() + eps), size * exp_avg)
    else:
        update = size * exp_avg / (largest.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    return param - update, step, exp_avg, exp_avg_var, max_exp_avg_var


class AdaBelief(Optimizer):
    """AdaBelief: Adam divided by how far gradients are from what was expected of them.

        m ← β₁·m + (1 − β₁)·g;  s ← β₂·s + (1 − β₂)·(g − m)² + ε
        θ ← (1 − γ·λ)·θ − γ·m̂ / (√ŝ + ε)   with  m̂ = m / (1 − β₁ᵗ),  ŝ = s / (1 − β₂ᵗ)

    amsgrad: divide by the largest s so far. decoupled_decay: False adds λ·θ to the gradient instead. rectify: as RAdam, whose
        r stands in place of ŝ's correction, and m̂ alone while r is not defined.
    State: `exp_avg` (m), `exp_avg_var` (s), and `max_exp_avg_var` with amsgrad, like the parameter.
    Good for: images and GANs; long steps where gradients agree, short ones where they do not.
    Start: lr as Adam's; eps 1e-8 for convolutional nets with SGD's schedule, 1e-16 for transformers and GANs.
    Names: timm's; there is no `fixed_decay`, and `degenerated_to_sgd` is always on; `rectify` minds amsgrad.
    Source: Zhuang et al. 2020, arXiv:2010.07468.
    """

    rule = adabelief

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0,
        amsgrad: bool = False,
        decoupled_decay: bool = True,
        rectify: bool = True,
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
