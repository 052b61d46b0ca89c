"""SGDSaI."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import one_number, over_all
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(initial={"gsnr": one_number}, optional={"momentum_buffer": "momentum"}, elementwise=False)
@with_maximize
def sgd_sai(param, grad, gsnr, momentum_buffer, *, first, lr, momentum, weight_decay, eps):
    count = param.numel()
    apart = grad - over_all(grad, "mean")
    deviation = (over_all(apart * apart, "sum") / (count - 1)) ** 0.5  # no number for one element, and so not above 0
    ratio = torch.where(deviation > 0, over_all(grad * grad, "sum").sqrt() / (deviation + eps), count**0.5)
    gsnr, update = torch.where(first > 0, ratio, gsnr), grad
    if momentum_buffer is not None:
        momentum_buffer = update = torch.where(first > 0, grad, momentum * momentum_buffer + (1 - momentum) * grad)
    return param * (1 - lr * weight_decay) - lr * gsnr * update, gsnr, momentum_buffer


class SGDSaI(Optimizer):
    """SGDSaI: SGD with momentum, at a rate for each parameter that its first gradient sets once and for all.

        at first  s = ‖g‖ / (σ(g) + ε),  σ the standard deviation of its elements;  m ← μ·m + (1 − μ)·g (m ← g at first)
        θ ← (1 − γ·λ)·θ − γ·s·m

    State: `momentum_buffer` (m), like the parameter, where momentum is not 0; `gsnr` (s), one number with
        the parameter's dimensions.
    Good for: transformers with half of AdamW's state: vision transformers, language models, LoRAs, diffusion models.
    Start: lr 1e-2, momentum 0.9, weight_decay 1e-2.
    Names: those of the authors' package (AnonymousAlethiometer/SGD_SaI), where it is `SGD_sai`.
    Source: Xu et al. 2024, arXiv:2412.11768.
    Deviations from SGD_SaI: s is the paper's; the package takes √n for it since 1.1.0, of a parameter of n elements, which is
        here that of a first gradient without deviation.
    """

    rule = sgd_sai
    bounds = BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
