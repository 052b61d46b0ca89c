"""StableAdamW."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), elementwise=False, never_negative=("exp_avg_sq",))
@with_maximize
def stable_adamw(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, weight_decay, eps):
    beta1, beta2 = betas
    step = step + 1
    square = grad * grad
    exp_avg = exp_avg.lerp(grad, (1 - beta1) / (1 - beta1**step))
    exp_avg_sq = exp_avg_sq.lerp(square, (1 - beta2) / (1 - beta2**step))
    size = lr / (square / exp_avg_sq.clamp_min(eps * eps)).mean().sqrt().clamp_min(1.0)
    param = param * (1 - size * weight_decay) - size * exp_avg / (exp_avg_sq.sqrt() + eps)
    return param, step, exp_avg, exp_avg_sq


class StableAdamW(Optimizer):
    """StableAdamW: AdamW whose step shrinks where gradients outgrow their second moment, as Adafactor clips.

        m ← β̂₁·m + (1 − β̂₁)·g;  v ← β̂₂·v + (1 − β̂₂)·g²   with  β̂ = β·(1 − βᵗ⁻¹) / (1 − βᵗ)
        η = γ / max(1, rms(g / √max(v, ε²)));  θ ← (1 − η·λ)·θ − η·m / (√v + ε)

    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; both stand corrected for their start.
    Good for: large models whose loss spikes, without clipping gradients.
    Start: all as AdamW's, with β₂ 0.95 to 0.99.
    Names: optimi's; `decouple_lr`, `kahan_sum` and `gradient_release` are not here.
    Source: Wortsman et al. 2023, arXiv:2304.13013.
    """

    rule = stable_adamw

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        eps: float = 1e-6,
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
