"""NAdam."""

from __future__ import annotations

from compiledopt.algorithms.parts import moments, with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "mu_product"), initial={"mu_product": 1.0}, branches=("weight_decay",))
@with_maximize
def nadam(
    param, grad, step, mu_product, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay
):
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_weight_decay)
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    mu_product = mu_product * mu
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt() + eps
    param = param - lr * (1 - mu) / (1 - mu_product) * grad / denominator
    param = param - lr * mu_next / (1 - mu_product * mu_next) * exp_avg / denominator
    return param, step, mu_product, exp_avg, exp_avg_sq


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum.

        μₜ = β₁·(1 − ½·0.96^(t·ψ));  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  Π ← Π·μₜ
        θ ← θ − γ·[(1 − μₜ)·g / (1 − Π) + μₜ₊₁·m / (1 − Π·μₜ₊₁)] / (√(v / (1 − β₂ᵗ)) + ε)

    momentum_decay (ψ): float, how fast μₜ grows towards β₁.
    State: `mu_product` (Π), 0-dim, `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """

    rule = nadam
    bounds = (*BOUNDS, Bound("momentum_decay", "Invalid momentum_decay value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
