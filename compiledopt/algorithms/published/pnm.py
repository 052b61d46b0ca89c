"""PNM."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BETA, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def pnm(param, grad, pos_momentum, neg_momentum, *, lr, betas, weight_decay):
    beta1, beta0 = betas
    momentum = pos_momentum.lerp(grad, 1 - beta1**2)
    update = ((1 + beta0) * momentum - beta0 * neg_momentum) / ((1 + beta0) ** 2 + beta0**2) ** 0.5
    return param * (1 - lr * weight_decay) - lr * update, neg_momentum, momentum


class PNM(Optimizer):
    """PNM: the difference of two momentums, each of every other gradient, whose noise leads to flat minima.

        m₊ ← β₁²·m₊ + (1 − β₁²)·g;  θ ← (1 − γ·λ)·θ − γ·((1 + β₀)·m₊ − β₀·m₋) / √((1 + β₀)² + β₀²);  m₊, m₋ ← m₋, m₊

    betas (β₁, β₀): two floats, the second ≥ 0.
    State: `pos_momentum` (m₊, the one that the next gradient goes to) and `neg_momentum` (m₋), like the parameter.
    Good for: what SGD with momentum trains, where labels are noisy or generalization is short.
    Start: lr and weight_decay as SGD's with momentum.
    Names: pytorch_optimizer's without `weight_decouple`, which do not exchange the momentums but take turns.
    Source: Xie et al. 2021, arXiv:2103.17182.
    """

    rule = pnm
    bounds = (LR, BETA.element(0), Bound("betas", "Invalid beta parameter at index 1", index=1), WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 1.0),
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
