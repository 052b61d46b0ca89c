"""SophiaG."""

from __future__ import annotations

import torch
from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",))
@with_maximize
def sophiag(param, grad, step, exp_avg, hessian, *, lr, betas, rho, weight_decay, bs):
    exp_avg = exp_avg.lerp(grad, 1 - betas[0])
    ratio = (abs(exp_avg) / (rho * bs * hessian + 1e-15)).clamp_max(1.0)
    return param * (1 - lr * weight_decay) - lr * torch.sign(exp_avg) * ratio, step + 1, exp_avg, hessian


class SophiaG(Optimizer):
    """SophiaG: momentum divided by an estimate of the curvature, each element's step clipped.

        m ← β₁·m + (1 − β₁)·g;  θ ← (1 − γ·λ)·θ − γ·sign(m)·min(|m| / (ρ·B·h + 1e-15), 1)
        and in update_hessian, with a gradient ĝ for labels drawn from the model:  h ← β₂·h + (1 − β₂)·ĝ²

    rho (ρ): float. bs (B): int, how many labels, tokens say, the loss is a mean over: the authors' argument of `step`.
    State: `exp_avg` (m) and `hessian` (h), like the parameter.
    Good for: pre-training language models in fewer steps; every tenth step costs one more backward.
    Start: lr 0.8 times AdamW's, rho 0.03 to 0.05, so that 10 to 50% of the elements are not clipped.
    Names: those of the authors' package (Liuhong99/Sophia).
    Source: Liu et al. 2023, arXiv:2305.14342.
    """

    rule = sophiag
    bounds = (*BOUNDS, Bound("rho", "Invalid rho value"), Bound("bs", "Invalid bs value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        bs: int = 5120,
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

    @torch.no_grad()
    def update_hessian(self) -> None:
        """Take the gradients, those of a loss for labels drawn from the model, into the estimate of the curvature: every ten
        steps or so, after `backward` and before `zero_grad`. Mutates: state["hessian"]."""
        self.make_states()
        for group in self.param_groups:
            having = [param for param in group["params"] if param.grad is not None]
            hessians = [self.state[param]["hessian"] for param in having]
            grads: list[Tensor] = [param.grad for param in having]
            if having:
                beta2 = float(group["betas"][1])
                torch._foreach_mul_(hessians, beta2)
                torch._foreach_addcmul_(hessians, grads, grads, 1 - beta2)
