"""FAdam."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import mean_square, root_mean_square
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), elementwise=False)
@with_maximize
def fadam(param, grad, step, momentum, fim, *, lr, betas, weight_decay, clip, p, eps, eps_2):
    beta1, beta2 = betas
    step = step + 1
    beta2 = beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)
    fim = beta2 * fim + (1 - beta2) * grad * grad
    length = mean_square(grad) ** 0.5
    least = torch.where(length > 0, (eps_2 * length).clamp_max(eps), eps)
    base = fim**p + least ** (2 * p)
    natural, decay = grad / base, param / base
    momentum = momentum.lerp(natural / (root_mean_square(natural) / clip).clamp_min(1.0), 1 - beta1)
    decay = decay / (root_mean_square(decay) / clip).clamp_min(1.0)
    return param - lr * (momentum + weight_decay * decay), step, momentum, fim


class FAdam(Optimizer):
    """FAdam: Adam as a natural gradient, with a decay that goes through the Fisher information too.

        F ← β·F + (1 − β)·g², β = β₂·(1 − β₂ᵗ⁻¹) / (1 − β₂ᵗ);  e = min(ε, ε₂·rms g);  G = Fᵖ + e²ᵖ
        ḡ = clip(g / G);  m ← β₁·m + (1 − β₁)·ḡ;  θ ← θ − γ·(m + λ·clip(θ / G)),  clip(x) = x / max(1, rms x / c)

    clip (c): float. p: the power of F, 1/2 for Adam's root. eps (ε), eps_2 (ε₂): floats.
    State: `momentum` (m) and `fim` (F), like the parameter.
    Good for: language and speech models, diffusion models and their LoRAs, without clipping the gradients first.
    Start: lr as AdamW's, weight_decay 0.1.
    Names: pytorch_optimizer's, whose states have dtypes of their own (here `state_dtype`).
    Source: Hwang 2024, arXiv:2405.12807.
    """

    rule = fadam
    bounds = (
        *BOUNDS,
        Bound("clip", "Invalid clip value", above=0.0, least=None),
        Bound("p", "Invalid p value", above=0.0, least=None),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.1,
        clip: float = 1.0,
        p: float = 0.5,
        eps: float = 1e-8,
        eps_2: float = 1e-2,
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
