"""Schedule-Free RAdam."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.schedule_free import BY_BETAS, INITIAL, SHARED, moved, weighted
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(shared=SHARED, initial=INITIAL, branches=("weight_decay",), evaluated=BY_BETAS)
@with_maximize
def radam_schedule_free(
    param, grad, z, exp_avg_sq, k, lr_max, weight_sum, *, lr, betas, eps, weight_decay, r, weight_lr_power, silent_sgd_phase
):
    step, correction = k + 1, 1 - betas[1] ** (k + 1)
    longest = 2 / (1 - betas[1]) - 1
    rho = longest - 2 * step * betas[1] ** step / correction
    rect = torch.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    lr = lr * torch.where(rho > 4, rect, 0.0 if silent_sgd_phase else 1.0)
    share, *counts = weighted(lr, k, lr_max, weight_sum, r, weight_lr_power)
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    update = torch.where(rho > 4, grad / (torch.sqrt(exp_avg_sq / correction) + eps), grad)
    y, z = moved(param, z, with_decay(param, update, weight_decay), lr, share, betas[0])
    return y, z, exp_avg_sq, *counts


class RAdamScheduleFree(Optimizer):
    """Schedule-Free RAdam: as Schedule-Free AdamW, and no warm-up either.

        ρ∞ = 2/(1 − β₂) − 1;  ρ = ρ∞ − 2·k·β₂ᵏ/(1 − β₂ᵏ);  η = γ·√((ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ)),  0 while ρ ≤ 4
        v ← β₂·v + (1 − β₂)·g²;  w = kʳ·η_max^p;  c = w / Σw;  z ← z − η·(g(y)/(√(v/(1 − β₂ᵏ)) + ε) + λ·y)
        x ← (1 − c)·x + c·z;  y = β₁·x + (1 − β₁)·z

    The parameter is y. silent_sgd_phase: False takes steps of SGD while ρ ≤ 4. r, weight_lr_power: (p) floats.
    State: `exp_avg_sq` (v), `z`, like the parameter; in each group: `k`, how many steps were taken, `lr_max`, `weight_sum`,
        `train_mode`.
    Good for: a whole run without a schedule of the rate, and any length of it; evaluate in `with optimizer.evaluating():`.
    Start: lr as for AdamW, or up to ten times that.
    Names: those of the authors' package (schedulefree).
    Source: Defazio et al. 2024, arXiv:2405.15682; Liu et al. 2019, arXiv:1908.03265.
    Deviations from schedulefree: a group begins in train mode; `state_dict` may be taken in either; no `cautious` of its own.
    """

    rule = radam_schedule_free

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
