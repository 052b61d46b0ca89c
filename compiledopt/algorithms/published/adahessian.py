"""AdaHessian."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from compiledopt.algorithms.curvature import random_signs, take_hessian
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def adahessian(param, grad, step, exp_avg, exp_hessian_diag_sq, *, lr, betas, eps, weight_decay, hessian_power):
    beta1, beta2 = betas
    step = step + 1
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    denominator = (exp_hessian_diag_sq / (1 - beta2**step)) ** (hessian_power / 2) + eps
    param = param * (1 - lr * weight_decay) - lr / (1 - beta1**step) * exp_avg / denominator
    return param, step, exp_avg, exp_hessian_diag_sq


class AdaHessian(Optimizer):
    """AdaHessian: Adam with the diagonal of the Hessian in place of the gradient below the root.

        m ← β₁·m + (1 − β₁)·g;  θ ← (1 − γ·λ)·θ − γ·m̂ / ((D / (1 − β₂ᵗ))^(k/2) + ε),  m̂ = m / (1 − β₁ᵗ)
        and in update_hessian, with random signs z:  D ← β₂·D + (1 − β₂)·(z·(H·z))²

    hessian_power (k): float from 0 to 1.
    State: `exp_avg` (m) and `exp_hessian_diag_sq` (D), like the parameter.
    Good for: ill-conditioned problems and transformers, where a second backward at every step is not too dear.
    Start: lr 0.1 to 0.15 with a schedule, all else as AdamW's; call update_hessian before every step.
    Names: timm's, whose step differentiates by itself, with `update_each` and without `n_samples` here; no mean over kernels
        (`avg_conv_kernel`).
    Source: Yao et al. 2020, arXiv:2006.00719.
    """

    rule = adahessian
    bounds = (*BOUNDS, Bound("hessian_power", "Invalid Hessian power value", most=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
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

    def update_hessian(self, hessian: Iterable[Tensor] | None = None, n_samples: int = 1) -> None:
        """Take estimates of the Hessian's diagonal into their average: before each `step`, after
        `loss.backward(create_graph=True)`.

        hessian: one tensor for each parameter with a gradient, shaped like it, in the order of the groups; or None, for
        Hutchinson's estimate from n_samples random directions, which costs as many backward passes.
        Mutates: state["exp_hessian_diag_sq"].
        Raises: RuntimeError where the gradients have no graph, ValueError for other shapes.
        """
        take_hessian(self, "exp_hessian_diag_sq", hessian, random_signs, n_samples, squared=True)
