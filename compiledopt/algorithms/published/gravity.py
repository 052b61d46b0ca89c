"""Gravity."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), initial={"v": torch.randn_like}, elementwise=False)
@with_maximize
def gravity(param, grad, step, v, *, first, lr, alpha, beta):
    step = step + 1
    thrown = torch.where(lr > 0, alpha / lr, 0.0)
    kept = (beta * step + 1) / (step + 2)
    steep = grad * abs(grad).amax()
    v = kept * torch.where(first > 0, thrown * v, v) + (1 - kept) * grad / (1 + steep * steep)
    return param - lr * v, step, v


class Gravity(Optimizer):
    """Gravity: a momentum of gradients that are bounded like those of a body on a slope.

        ζ = g / (1 + (g·max |g|)²);  b = (β·t + 1) / (t + 2);  v ← b·v + (1 − b)·ζ;  θ ← θ − γ·v

    alpha (α): float ≥ 0; v starts from normal numbers with the standard deviation α / γ, of torch's generator. beta (β): float.
    State: `v`, like the parameter.
    Good for: convolutional nets, where Adam and RMSprop are used.
    Start: lr 0.1, alpha 0.01, beta 0.9.
    Names: those of the authors' package (dariush-bahrami/gravity.optimizer).
    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192.
    """

    rule = gravity
    bounds = (LR, Bound("alpha", "Invalid alpha value"), Bound("beta", "Invalid beta value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.1,
        alpha: float = 0.01,
        beta: float = 0.9,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
