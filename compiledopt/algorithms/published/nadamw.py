"""NAdamW."""

from __future__ import annotations

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def nadamw(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    ahead = exp_avg.lerp(grad, 1 - beta1)
    denominator = exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
    param = param * (1 - lr * weight_decay) - lr / (1 - beta1**step) * ahead / denominator
    return param, step, exp_avg, exp_avg_sq


class NAdamW(Optimizer):
    """NAdamW: AdamW that looks ahead by its momentum.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²
        θ ← (1 − γ·λ)·θ − γ / (1 − β₁ᵗ)·(β₁·m + (1 − β₁)·g) / (√(v / (1 − β₂ᵗ)) + ε)

    Unlike NAdam, whose μₜ grows towards β₁, it has one β₁ for all steps.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what AdamW trains; the baseline of MLCommons' AlgoPerf.
    Start: all as AdamW's.
    Names: timm's, without its `clipping_threshold`; `update_clipping` bounds the update itself.
    Source: Choi et al. 2019, arXiv:1910.05446, table 1; the update is that of MLCommons (algorithmic-efficiency).
    """

    rule = nadamw

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
