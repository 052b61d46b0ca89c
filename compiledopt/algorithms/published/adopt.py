"""ADOPT."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",))
@with_maximize
def adopt(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, clip_exp, weight_decay, decoupled):
    beta1, beta2 = betas
    started = step > 0
    decayed, grad = with_either_decay(param, grad, lr, weight_decay, decoupled)
    scaled = grad / exp_avg_sq.sqrt().clamp_min(eps)
    if clip_exp is not None:
        most = step**clip_exp
        scaled = torch.minimum(torch.maximum(scaled, -most), most)
    average = exp_avg.lerp(scaled, 1 - beta1)
    exp_avg_sq = torch.where(started, beta2 * exp_avg_sq + (1 - beta2) * grad * grad, grad * grad)
    param = torch.where(started, decayed - lr * average, param)
    return param, step + 1, torch.where(started, average, exp_avg), exp_avg_sq


class ADOPT(Optimizer):
    """ADOPT: Adam that scales a gradient by the second moment before it, and so converges with any β₂.

        first v ← g², and nothing moves;  then  u = clip(g / max(√v, ε), −(t − 1)ᵖ, (t − 1)ᵖ)
        m ← β₁·m + (1 − β₁)·u;  θ ← θ − γ·m;  v ← β₂·v + (1 − β₂)·g²

    clip_exp (p): float, or None to clip nothing; the paper has 0.25. decoupled: θ ← (1 − γ·λ)·θ before the step instead of
        adding λ·θ to the gradient.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what Adam trains, without a choice of β₂; small batches and language models.
    Start: all as AdamW's, with decoupled=True.
    Names: timm's; the authors' (iShohei220/adopt) `clip_lambda` is `clip_exp`, `decouple` is `decoupled`.
    Source: Taniguchi et al. 2024, arXiv:2411.02853.
    """

    rule = adopt

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
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
