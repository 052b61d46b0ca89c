"""FOCUS."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BETA, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), initial={"pbar": lambda param: param.clone()})
@with_maximize
def focus(param, grad, step, exp_avg, pbar, *, lr, betas, gamma, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    exp_avg = exp_avg.lerp(grad, 1 - beta1)
    # The corrected mean itself, which is the parameter at first, to the bit: a sign is taken of what they differ by.
    pbar = pbar.lerp(param, (1 - beta2) / (1 - beta2**step))
    update = torch.sign(exp_avg) + gamma * torch.sign(param - pbar) + weight_decay * pbar
    return param - lr * update, step, exp_avg, pbar


class FOCUS(Optimizer):
    """FOCUS: the sign of a momentum, and a pull to the mean of the parameters so far, which squeezes a run into its valley.

        m ← β₁·m + (1 − β₁)·g;  p ← p + (1 − β₂) / (1 − β₂ᵗ)·(θ − p)
        θ ← θ − γ·(sign(m) + κ·sign(θ − p) + λ·p)

    gamma (κ): float ≥ 0, how strong the pull is.
    State: `exp_avg` (m) and `pbar` (p), like the parameter; p starts from it.
    Good for: language models whose gradients are noisy: small batches, where Adam's step is too short along the valley.
    Start: lr as Signum's or Lion's, gamma 0.1 to 0.2, betas (0.9, 0.99).
    Names: those of the authors' package (liuyz0/FOCUS).
    Source: Liu et al. 2025, arXiv:2501.12243.
    Deviations from FOCUS: p is kept corrected; divided anew, it differs from θ by rounding at first, whose sign counts.
    """

    rule = focus
    bounds = (LR, BETA.element(0), BETA.element(1), Bound("gamma", "Invalid gamma value"), WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 0.1,
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
