"""AdaNorm."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "exp_grad_norm"), optional={"max_exp_avg_var": "ams_bound"}, elementwise=False)
@with_maximize
def adanorm(
    param, grad, step, exp_avg, exp_avg_var, exp_grad_norm, max_exp_avg_var, *, lr, betas, r, weight_decay, ams_bound, eps
):
    beta1, beta2 = betas
    step = step + 1
    norm = grad.norm()
    exp_grad_norm = r * exp_grad_norm + (1 - r) * norm
    longer = torch.where((norm > 0) & (exp_grad_norm > norm), exp_grad_norm / norm, 1.0)
    exp_avg = exp_avg.lerp(longer * grad, 1 - beta1)
    exp_avg_var = largest = beta2 * exp_avg_var + (1 - beta2) * grad * grad
    if ams_bound:
        largest = max_exp_avg_var = torch.maximum(max_exp_avg_var, exp_avg_var)
    denominator = (largest.sqrt() + eps) / (1 - beta2**step) ** 0.5
    param = param * (1 - lr * weight_decay) - lr / (1 - beta1**step) * exp_avg / denominator
    return param, step, exp_avg, exp_avg_var, exp_grad_norm, max_exp_avg_var


class AdaNorm(Optimizer):
    """AdaNorm: Adam whose momentum takes gradients that are at least as long as the last ones were.

        e ← r·e + (1 − r)·‖g‖;  s = g·max(1, e / ‖g‖);  m ← β₁·m + (1 − β₁)·s;  v ← β₂·v + (1 − β₂)·g²
        θ ← (1 − γ·λ)·θ − γ / (1 − β₁ᵗ)·√(1 − β₂ᵗ)·m / (√v + ε)

    r: float. ams_bound: the largest v so far.
    State: `exp_avg` (m), `exp_avg_var` (v), and `max_exp_avg_var` with ams_bound, like the parameter; `exp_grad_norm` (e),
        0-dim.
    Good for: convolutional nets, where gradients become short long before the end.
    Start: all as AdamW's.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Dubey et al. 2022, arXiv:2210.06364.
    """

    rule = adanorm
    bounds = (*BOUNDS, Bound("r", "Invalid r value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        r: float = 0.95,
        weight_decay: float = 0.0,
        ams_bound: bool = False,
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
