"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.parts import moments, with_either_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack, check_one_element
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), optional={"max_exp_avg_sq": "amsgrad"}, branches=("weight_decay",))
@with_maximize
def adam(
    param, grad, step, exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay
):
    beta1, beta2 = betas
    step = step + 1
    param, grad = with_either_decay(param, grad, lr, weight_decay, decoupled_weight_decay)
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    largest = exp_avg_sq
    if amsgrad:
        largest = max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    denominator = largest.sqrt() / (1 - beta2**step) ** 0.5 + eps
    param = param - lr / (1 - beta1**step) * exp_avg / denominator
    return param, step, exp_avg, exp_avg_sq, max_exp_avg_sq


class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

        g ← ∇f(θ) + λ·θ;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²
        θ ← θ − γ·m̂ / (√v̂ + ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    betas (β₁, β₂): two floats or two 1-element tensors. amsgrad: divide by the largest v so far.
    State: `exp_avg` (m), `exp_avg_sq` (v), and `max_exp_avg_sq` with amsgrad, like the parameter.
    Source: Kingma and Ba 2015, arXiv:1412.6980; amsgrad: Reddi et al. 2018.
    Deviations from torch: tensors for lr and betas work with foreach=True; complex parameters with fused=True;
    capturable=True on the CPU.
    """

    rule = adam

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        betas = options["betas"]
        if not (all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
            raise ValueError("betas must be either both floats or both Tensors")
        for index in (0, 1):
            check_one_element(betas[index], f"betas[{index}]")
        options["betas"] = tuple(b.squeeze() if isinstance(b, Tensor) else b for b in betas)


class AdamW(Adam):
    """AdamW: Adam with weight decay apart from the gradient.

        θ ← (1 − γ·λ)·θ, then Adam's update without λ

    All as in Adam with decoupled_weight_decay=True, loaded or not. Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    fixed = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        Optimizer.__init__(self, params, locals())  # Adam's would be told Adam's own arguments
