"""QHAdam."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("beta1_weight", "beta2_weight"), branches=("weight_decay",))
@with_maximize
def qhadam(
    param, grad, beta1_weight, beta2_weight, exp_avg, exp_avg_sq, *, lr, betas, nus, weight_decay, decouple_weight_decay, eps
):
    param, grad = with_either_decay(param, grad, lr, weight_decay, decouple_weight_decay)
    beta1_weight, beta2_weight = 1 + betas[0] * beta1_weight, 1 + betas[1] * beta2_weight
    exp_avg = exp_avg.lerp(grad, 1 / beta1_weight)
    exp_avg_sq = exp_avg_sq.lerp(grad * grad, 1 / beta2_weight)
    square = grad * grad * (1 - nus[1]) + nus[1] * exp_avg_sq
    param = param - lr * (grad * (1 - nus[0]) + nus[0] * exp_avg) / (square.sqrt() + eps)
    return param, beta1_weight, beta2_weight, exp_avg, exp_avg_sq


class QHAdam(Optimizer):
    """QHAdam: Adam between its averages and what they average (quasi-hyperbolic).

        w₁ ← 1 + β₁·w₁;  w₂ ← 1 + β₂·w₂;  m ← m + (g − m) / w₁;  v ← v + (g² − v) / w₂
        θ ← θ − γ·((1 − ν₁)·g + ν₁·m) / (√((1 − ν₂)·g² + ν₂·v) + ε)

    nus (ν₁, ν₂): two floats; (1, 1) is Adam. decouple_weight_decay: θ ← (1 − γ·λ)·θ instead of adding λ·θ to the gradient.
    State: `beta1_weight` (w₁) and `beta2_weight` (w₂), 0-dim, `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: what Adam trains, with a longer average; with ν₁ = β₁ and ν₂ = 1 it is nearly NAdam.
    Start: lr as Adam's, betas (0.995, 0.999), nus (0.7, 1.0).
    Names: those of the authors' package (facebookresearch/qhoptim).
    Source: Ma and Yarats 2019, arXiv:1810.06801.
    """

    rule = qhadam
    bounds = (
        *BOUNDS,
        Bound("nus", "Invalid nu parameter", most=1.0).element(0),
        Bound("nus", "Invalid nu parameter", most=1.0).element(1),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        nus: tuple[float, float] = (1.0, 1.0),
        weight_decay: float = 0.0,
        decouple_weight_decay: bool = False,
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
