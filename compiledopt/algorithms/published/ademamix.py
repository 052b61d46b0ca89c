"""AdEMAMix."""

from __future__ import annotations

from compiledopt.algorithms.averages import warmed
from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BETA, BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def ademamix(
    param,
    grad,
    step,
    exp_avg_fast,
    exp_avg_slow,
    exp_avg_sq,
    *,
    lr,
    betas,
    alpha,
    beta3_warmup,
    alpha_warmup,
    eps,
    weight_decay,
):
    beta1, beta2, beta3 = betas
    step = step + 1
    if alpha_warmup is not None:
        alpha = alpha * (step / alpha_warmup).clamp_max(1.0)
    if beta3_warmup is not None:
        beta3 = warmed(step, beta3_warmup, beta1, beta3)
    exp_avg_fast, exp_avg_sq = moments(grad, exp_avg_fast, exp_avg_sq, (beta1, beta2))
    exp_avg_slow = exp_avg_slow.lerp(grad, 1 - beta3)
    update = exp_avg_fast / (1 - beta1**step) + alpha * exp_avg_slow
    update = update / (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg_fast, exp_avg_slow, exp_avg_sq


class AdEMAMix(Optimizer):
    """AdEMAMix: AdamW with a second, far longer momentum.

        m₁ ← β₁·m₁ + (1 − β₁)·g;  m₂ ← β₃·m₂ + (1 − β₃)·g;  v ← β₂·v + (1 − β₂)·g²
        θ ← (1 − γ·λ)·θ − γ·(m₁ / (1 − β₁ᵗ) + α·m₂) / (√(v / (1 − β₂ᵗ)) + ε)

    betas (β₁, β₂, β₃): three floats. alpha (α): float, the weight of the slow momentum.
    alpha_warmup: steps in which α grows from 0, or None. beta3_warmup: steps in which β₃ grows from β₁, linearly in its
        half-life, or None.
    State: `exp_avg_fast` (m₁), `exp_avg_slow` (m₂) and `exp_avg_sq` (v), like the parameter.
    Good for: long runs of language models: old gradients still help, and less is forgotten.
    Start: lr and weight_decay as AdamW's, alpha 5 to 8, both warm-ups as long as the run.
    Names: those of the authors' package (apple/ml-ademamix).
    Source: Pagliardini et al. 2024, arXiv:2409.03137.
    """

    rule = ademamix
    bounds = (*BOUNDS, BETA.element(2), Bound("alpha", "Invalid alpha value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
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
