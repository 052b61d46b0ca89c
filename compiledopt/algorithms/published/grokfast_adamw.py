"""GrokFastAdamW."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def grokfast_adamw(
    param, grad, step, exp_avg, exp_avg_sq, grok_exp_avg, *, first, lr, betas, grokfast_alpha, grokfast_lamb, weight_decay, eps
):
    step = step + 1
    grok_exp_avg = torch.where(first > 0, grad, grok_exp_avg.lerp(grad, 1 - grokfast_alpha))
    exp_avg, exp_avg_sq = moments(grad + grokfast_lamb * grok_exp_avg, exp_avg, exp_avg_sq, betas)
    denominator = (exp_avg_sq.sqrt() / (1 - betas[1] ** step) ** 0.5).clamp_min(eps)
    param = param * (1 - lr * weight_decay) - lr / (1 - betas[0] ** step) * exp_avg / denominator
    return param, step, exp_avg, exp_avg_sq, grok_exp_avg


class GrokFastAdamW(Optimizer):
    """Grokfast-AdamW: AdamW on gradients whose slow part is amplified.

        e ← α·e + (1 − α)·g (g at first);  ĝ = g + λ_e·e;  m ← β₁·m + (1 − β₁)·ĝ;  v ← β₂·v + (1 − β₂)·ĝ²
        θ ← (1 − γ·λ)·θ − γ·m̂ / max(√v̂, ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    grokfast_alpha (α), grokfast_lamb (λ_e): floats.
    State: `exp_avg` (m), `exp_avg_sq` (v) and `grok_exp_avg` (e), like the parameter.
    Good for: small data and algorithmic tasks, where generalization comes long after the training loss has fallen.
    Start: lr a third of AdamW's: ĝ is up to 1 + λ_e times as long; alpha 0.98, lamb 2.0; weight_decay larger than usual.
    Names: pytorch_optimizer's without `grokfast`, `grokfast_after_step` and `weight_decouple`; its `normalize_lr` divides lr by
        1 + λ_e.
    The same filter around any other rule is the option `grokfast=(grokfast_alpha, grokfast_lamb)`.
    Source: Lee et al. 2024, arXiv:2405.20233.
    """

    rule = grokfast_adamw
    bounds = (
        *BOUNDS,
        Bound("grokfast_alpha", "Invalid grokfast_alpha value", below=1.0),
        Bound("grokfast_lamb", "Invalid grokfast_lamb value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        grokfast_alpha: float = 0.98,
        grokfast_lamb: float = 2.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
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
