"""CAME."""

from __future__ import annotations

from compiledopt.algorithms.factored import inverse_root, scaled
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import factor, unfactored
from compiledopt.arguments import BETA, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    initial={
        "exp_avg_sq_row": factor(-1),
        "exp_avg_sq_col": factor(-2),
        "exp_avg_res_row": factor(-1),
        "exp_avg_res_col": factor(-2),
        "exp_avg_sq": unfactored,
    },
    elementwise=False,
)
@with_maximize
def came(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq_row,
    exp_avg_sq_col,
    exp_avg_res_row,
    exp_avg_res_col,
    exp_avg_sq,
    *,
    lr,
    eps,
    clip_threshold,
    betas,
    weight_decay,
):
    beta1, beta2, beta3 = betas
    update, exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq = scaled(
        grad, exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq, new=1 - beta2, tiny=eps[0], most=clip_threshold
    )
    exp_avg = exp_avg.lerp(update, 1 - beta1)
    step_along = exp_avg
    if exp_avg_sq is None:
        instability = (update - exp_avg) * (update - exp_avg) + eps[1]
        exp_avg_res_row = exp_avg_res_row.lerp(instability.mean(-1, keepdim=True), 1 - beta3)
        exp_avg_res_col = exp_avg_res_col.lerp(instability.mean(-2, keepdim=True), 1 - beta3)
        step_along = inverse_root(exp_avg_res_row, exp_avg_res_col) * exp_avg
    states = (exp_avg, exp_avg_sq_row, exp_avg_sq_col, exp_avg_res_row, exp_avg_res_col, exp_avg_sq)
    return param * (1 - lr * weight_decay) - lr * step_along, step + 1, *states


class CAME(Optimizer):
    """CAME: Adafactor with momentum, trusted where it agrees with the gradients.

        r ← β₂·r + (1 − β₂)·(mean of g² + ε₁ over columns);  c likewise over rows;  u = g / √(r·c / mean r)
        u ← u / max(1, rms u / d);  m ← β₁·m + (1 − β₁)·u;  R, C from (u − m)² + ε₂ with β₃ as r, c from g² + ε₁ with β₂
        θ ← (1 − γ·λ)·θ − γ·m / √(R·C / mean R);  vectors have g's own second moment, and θ ← (1 − γ·λ)·θ − γ·m

    eps (ε₁, ε₂): two floats. clip_threshold (d): float. betas (β₁, β₂, β₃): three floats.
    State: `exp_avg` (m), like the parameter, `exp_avg_sq_row` (r), `exp_avg_sq_col` (c), `exp_avg_res_row` (R) and
        `exp_avg_res_col` (C) of parameters with two dimensions and more, `exp_avg_sq` of others.
    Good for: language models at half of AdamW's state, with AdamW's stability.
    Start: lr half to nine tenths of AdamW's (2e-4), weight_decay 0.01.
    Names: those of the authors' package (yangluo7/CAME), whose rows and columns lack the dimension of size 1.
    Source: Luo et al. 2023, arXiv:2307.02047.
    """

    rule = came
    bounds = (
        LR,
        *(Bound("eps", "Invalid epsilon value").element(index) for index in (0, 1)),
        *(BETA.element(index) for index in (0, 1, 2)),
        Bound("clip_threshold", "Invalid clip_threshold value"),
        WEIGHT_DECAY,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-4,
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
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
