"""NAdam."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from compiledopt.algorithms.parts import moments, with_either_decay
from compiledopt.arguments import Extras, LearningRate, check_adam_numbers, check_number
from compiledopt.compiler.rule import rule
from compiledopt.optimizer import Optimizer


@rule(scalars=("step", "mu_product"), initial={"mu_product": 1.0}, branches=("weight_decay",))
def nadam(
    param: Any,
    grad: Any,
    step: Any,
    mu_product: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    lr: Any,
    betas: Any,
    eps: Any,
    weight_decay: Any,
    momentum_decay: Any,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> Any:
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_weight_decay, maximize)
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

    params: parameters, named parameters, or dicts of groups. lr (γ): float, 1-element tensor or schedule, default 2e-3.
    betas (β₁, β₂): floats in [0, 1), default (0.9, 0.999). eps (ε): float, default 1e-8. weight_decay (λ): float, default 0,
    added to g as λ·θ, or apart from it with decoupled_weight_decay. momentum_decay (ψ): float, default 4e-3. maximize: flag.
    foreach, compiled, capturable, differentiable, extras: see docs/executors.md.
    State: `step`, `mu_product` (Π), 0-dim, `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Mutates: the parameters and the state. Raises: ValueError for a number out of its range.
    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """

    rule = nadam
    missing = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False}
    missing |= {"decoupled_weight_decay": False}

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
        check_adam_numbers(lr, betas, eps, weight_decay)
        check_number(momentum_decay, "Invalid momentum_decay value")
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        defaults |= {"maximize": maximize, "foreach": foreach, "capturable": capturable, "compiled": compiled}
        super().__init__(params, defaults | {"differentiable": differentiable}, extras)
