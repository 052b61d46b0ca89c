"""SimplifiedAdEMAMix."""

from __future__ import annotations

from compiledopt.algorithms.averages import warmed
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "den_sum"))
@with_maximize
def simplified_ademamix(
    param, grad, step, exp_avg, exp_avg_sq, den_sum, *, lr, betas, weight_decay, alpha, beta1_warmup, min_beta1, eps
):
    beta1, beta2 = betas
    step = step + 1
    if beta1_warmup is not None:
        beta1 = warmed(step, beta1_warmup, min_beta1, beta1)
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    den_sum = beta2 * den_sum + (1 - beta2)
    update = (exp_avg + alpha * grad) / ((exp_avg_sq.sqrt() + den_sum**0.5 * eps) * den_sum**0.5)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg, exp_avg_sq, den_sum


class SimplifiedAdEMAMix(Optimizer):
    """Simplified AdEMAMix: one long momentum, with the gradient in place of AdEMAMix's short one.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  s ← β₂·s + 1 − β₂;  θ ← (1 − γ·λ)·θ − γ·(m + α·g) / (√s·(√v + √s·ε))

    alpha (α): float, the weight of the gradient. beta1_warmup: steps in which β₁ grows from min_beta1, linearly in its
        half-life, or None.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; `den_sum` (s), 0-dim.
    Good for: language models and LoRAs in small batches, at a third less state than AdEMAMix's.
    Start: lr a tenth of AdamW's, betas (0.99, 0.95), alpha as large as the batch is small.
    Names: pytorch_optimizer's without `weight_decouple`, whose m is an average as here; the authors' (DepenM) is a sum.
    Source: Morwani et al. 2025, arXiv:2502.02431.
    """

    rule = simplified_ademamix
    bounds = (*BOUNDS, Bound("alpha", "Invalid alpha value"), Bound("min_beta1", "Invalid min_beta1 value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.99, 0.95),
        weight_decay: float = 0.0,
        alpha: float = 0.0,
        beta1_warmup: int | None = None,
        min_beta1: float = 0.9,
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
