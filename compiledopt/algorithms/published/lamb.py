"""LAMB."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.reduced import trust_ratio
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), branches=("weight_decay",), elementwise=False)
@with_maximize
def lamb(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq,
    *,
    lr,
    bias_correction,
    betas,
    eps,
    weight_decay,
    grad_averaging,
    trust_clip,
    always_adapt,
    decoupled_decay,
):
    beta1, beta2 = betas
    step = step + 1
    exp_avg = exp_avg.lerp(grad, 1 - beta1) if grad_averaging else beta1 * exp_avg + grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    update = exp_avg / (exp_avg_sq.sqrt() + eps)
    if bias_correction:
        update = exp_avg / (1 - beta1**step) / (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    if decoupled_decay:
        param = param * (1 - lr * weight_decay)
    else:
        update = with_decay(param, update, weight_decay)
    if weight_decay != 0 or always_adapt:
        ratio = trust_ratio(param.norm(), update.norm())
        update = (ratio.clamp_max(1.0) if trust_clip else ratio) * update
    return param - lr * update, step, exp_avg, exp_avg_sq


class LAMB(Optimizer):
    """LAMB: Adam's direction, as long as the parameter is.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λ·θ;  r = ‖θ‖ / ‖u‖ (1 where either is 0);  θ ← θ − γ·r·u

    bias_correction: False has m and v in place of m̂ and v̂. grad_averaging: False adds g to β₁·m whole.
    trust_clip: r at most 1. always_adapt: r also where λ is 0, where it is else 1. decoupled_decay: θ ← (1 − γ·λ)·θ, not in u.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: very large batches (BERT at 32,000), with lr scaled by the root of the batch.
    Start: lr 2e-3 for batches of 1024, weight_decay 0.01, max_grad_norm 1.0.
    Names: timm's; `max_grad_norm` is that of every optimizer here, None unless given (timm's 1.0).
    Source: You et al. 2020, arXiv:1904.00962.
    """

    rule = lamb

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        trust_clip: bool = False,
        always_adapt: bool = False,
        decoupled_decay: bool = False,
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
