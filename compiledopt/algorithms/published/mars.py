"""MARS."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), elementwise=False)
@with_maximize
def mars(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq,
    last_grad,
    *,
    first,
    lr,
    betas,
    eps,
    weight_decay,
    gamma,
    mars_type,
    optimize_1d,
    lr_1d_factor,
    betas_1d,
):
    step = step + 1
    whole = optimize_1d or param.ndim > 1
    beta1, beta2 = betas if whole or betas_1d is None else betas_1d
    corrected = grad
    if whole:
        corrected = grad + torch.where(first > 0, 0.0, gamma * beta1 / (1 - beta1) * (grad - last_grad))
        corrected = corrected / corrected.norm().clamp_min(1.0)
    exp_avg = exp_avg.lerp(corrected, 1 - beta1)
    if whole and mars_type == "lion":
        update = torch.sign(exp_avg)
    else:
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * corrected * corrected
        update = exp_avg / (1 - beta1**step) / (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    rate = lr if whole else lr * lr_1d_factor
    return param * (1 - rate * weight_decay) - rate * update, step, exp_avg, exp_avg_sq, grad


class MARS(Optimizer):
    """MARS: AdamW or Lion on gradients whose variance is reduced by the last ones.

        c = g + ρ·β₁ / (1 − β₁)·(g − g_last) (g at first);  c ← c / max(1, ‖c‖);  m ← β₁·m + (1 − β₁)·c
        v ← β₂·v + (1 − β₂)·c²;  θ ← (1 − γ·λ)·θ − γ·m̂ / (√v̂ + ε),  or with mars_type "lion"  (1 − γ·λ)·θ − γ·sign(m)

    gamma (ρ): float. mars_type: "adamw" or "lion". optimize_1d: so for vectors too, which AdamW trains otherwise, with lr times
        lr_1d_factor and betas_1d (None: betas).
    State: `exp_avg` (m), `exp_avg_sq` (v) and `last_grad` (g_last), like the parameter.
    Good for: language models and vision in large batches.
    Start: lr 3e-3, betas (0.95, 0.99), gamma 0.025, weight_decay 0.01.
    Names: timm's Mars; the authors' (AGI-Arena/MARS) have an lr and a decay of their own for vectors.
    Source: Yuan et al. 2024, arXiv:2411.10438.
    """

    rule = mars
    bounds = (*BOUNDS, Bound("gamma", "Invalid gamma value"), Bound("lr_1d_factor", "Invalid lr_1d_factor value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
        mars_type: str = "adamw",
        optimize_1d: bool = False,
        lr_1d_factor: float = 1.0,
        betas_1d: tuple[float, float] | None = None,
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

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if options["mars_type"] not in ("adamw", "lion"):
            raise ValueError(f'Invalid mars_type value: {options["mars_type"]!r}; it is "adamw" or "lion"')
