"""Schedule-Free AdamW."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.schedule_free import BY_BETAS, INITIAL, SHARED, moved, warmed_up, weighted
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(shared=SHARED, initial=INITIAL, branches=("weight_decay",), evaluated=BY_BETAS)
@with_maximize
def adamw_schedule_free(
    param, grad, z, exp_avg_sq, k, lr_max, weight_sum, *, lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power
):
    lr = warmed_up(lr, k, warmup_steps) * (1 - betas[1] ** (k + 1)) ** 0.5
    share, *counts = weighted(lr, k, lr_max, weight_sum, r, weight_lr_power)
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    update = with_decay(param, grad / (torch.sqrt(exp_avg_sq) + eps), weight_decay)
    y, z = moved(param, z, update, lr, share, betas[0])
    return y, z, exp_avg_sq, *counts


class AdamWScheduleFree(Optimizer):
    """Schedule-Free AdamW: AdamW whose average needs no schedule of the rate.

        η = γ·min(1, k/warmup)·√(1 − β₂ᵏ);  v ← β₂·v + (1 − β₂)·g²;  w = kʳ·η_max^p;  c = w / Σw
        z ← z − η·(g(y)/(√v + ε) + λ·y);  x ← (1 − c)·x + c·z;  y = β₁·x + (1 − β₁)·z

    The parameter is y. warmup_steps: int. r, weight_lr_power: (p) floats.
    State: `exp_avg_sq` (v), `z`, like the parameter; in each group: `k`, how many steps were taken, `lr_max`, `weight_sum`,
        `train_mode`.
    Good for: a whole run without a schedule of the rate, and any length of it; evaluate in `with optimizer.evaluating():`.
    Start: lr as for AdamW, or up to ten times that; some hundred warmup_steps; betas (0.95, 0.999) for long runs.
    Names: those of the authors' package (schedulefree).
    Source: Defazio et al. 2024, arXiv:2405.15682.
    Deviations from schedulefree: a group begins in train mode; `state_dict` may be taken in either.
    """

    rule = adamw_schedule_free

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
