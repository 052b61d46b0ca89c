"""AdaGC."""

from __future__ import annotations

import torch
from torch import Tensor

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.algorithms.reduced import over_all
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total

INFINITE = float("inf")


def _no_length(param: Tensor) -> Tensor:
    wide = torch.promote_types(param.dtype, torch.float32)  # half types would round what it changes by away
    return torch.full((1,) * param.dim(), INFINITE, dtype=wide, device=param.device)


@rule(scalars=("step",), initial={"gamma": _no_length}, elementwise=False)
@with_maximize
def adagc(
    param, grad, step, exp_avg, exp_avg_sq, gamma,
    *, lr, betas, beta, lambda_abs, lambda_rel, warmup_steps, weight_decay, eps,
):  # fmt: skip
    step = step + 1
    of_all = total(grad * grad).sqrt()
    length = over_all(grad * grad, "sum").sqrt()
    absolute = (lambda_abs / (of_all + eps)).clamp_max(1.0)
    relative = (lambda_rel * gamma.clamp_min(eps) / length.clamp_min(eps)).clamp_max(1.0)
    warm = (step < warmup_steps) | (gamma == INFINITE)
    share = torch.where(warm, absolute, relative)
    clipped = share * length
    gamma = torch.where(warm, torch.minimum(gamma, clipped), beta * gamma + (1 - beta) * clipped)
    exp_avg, exp_avg_sq = moments(share * grad, exp_avg, exp_avg_sq, betas)
    denominator = exp_avg_sq.sqrt() / (1 - betas[1] ** step) ** 0.5 + eps
    param = param * (1 - lr * weight_decay) - lr / (1 - betas[0] ** step) * exp_avg / denominator
    return param, step, exp_avg, exp_avg_sq, gamma


class AdaGC(Optimizer):
    """AdaGC: AdamW on gradients of which each is clipped to its own usual length, so that no spike reaches the states.

        t < T, or at a parameter's first update:  h = min(1, λ_abs / ‖all g‖);  ℓ ← min(ℓ, h·‖g‖)
        then:  h = min(1, λ_rel·ℓ / ‖g‖);  ℓ ← β·ℓ + (1 − β)·h·‖g‖
        ĝ = h·g;  m ← β₁·m + (1 − β₁)·ĝ;  v ← β₂·v + (1 − β₂)·ĝ²;  θ ← (1 − γ·λ)·θ − γ·m̂ / (√v̂ + ε)

    beta (β), lambda_abs (λ_abs), lambda_rel (λ_rel): floats. warmup_steps (T): until when all gradients are clipped together.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; `gamma` (ℓ), one number with the parameter's dimensions.
    Good for: language models whose loss has spikes; in place of clipping by the norm of all gradients.
    Start: lr and betas as AdamW's, weight_decay 0.1.
    Names: pytorch_optimizer's without `weight_decouple` and `fixed_decay`.
    Source: Wang et al. 2025, arXiv:2502.11034.
    """

    rule = adagc
    bounds = (
        *BOUNDS,
        Bound("beta", "Invalid beta value", below=1.0),
        Bound("lambda_abs", "Invalid lambda_abs value", least=None, above=0.0),
        Bound("lambda_rel", "Invalid lambda_rel value", least=None, above=0.0),
        Bound("warmup_steps", "Invalid warmup_steps value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta: float = 0.98,
        lambda_abs: float = 1.0,
        lambda_rel: float = 1.05,
        warmup_steps: int = 100,
        weight_decay: float = 0.1,
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
