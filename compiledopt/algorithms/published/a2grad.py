"""A2Grad."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), optional={"v_kk": "rho"}, initial={"x_k": lambda param: param.clone()})
@with_maximize
def a2grad(param, grad, step, avg_grad, v_k, v_kk, x_k, *, first, lr, beta, lips, rho, variant):
    avg_grad = avg_grad + (grad - avg_grad) / (step + 1)
    square = (grad - avg_grad) * (grad - avg_grad)
    if variant == "uni":
        v_k = v_k + square
    elif variant == "inc":
        v_k = (step / (step + 1)) ** 2 * v_k + square
    else:
        v_kk = torch.where(first > 0, square, rho * v_kk + (1 - rho) * square)
        v_k = torch.maximum(v_kk, v_k)
    deviation = ((step + 1) * v_k).sqrt() if variant == "exp" else v_k.sqrt()
    change = lr / (2 * lips / (step + 1) + beta * deviation) * grad
    x_k = x_k - change
    ahead = (param - 2 / (step + 2) * change).lerp(x_k, 2 / (step + 3))
    return ahead, step + 1, avg_grad, v_k, v_kk, x_k


class A2Grad(Optimizer):
    """A2Grad: Nesterov's acceleration whose steps fall with the scatter of each element's gradients so far.

        ḡ ← mean of the gradients so far;  δ = g − ḡ;  "uni": v ← v + δ²;  "inc": v ← (k / (k + 1))²·v + δ²;  h = √v
        "exp": ṽ ← ρ·ṽ + (1 − ρ)·δ² (δ² at first);  v ← max(v, ṽ);  h = √((k + 1)·v),  k the updates so far
        c = γ / (2·L / (k + 1) + β·h);  x ← x − c·g;  a = 2 / (k + 3);  θ ← (1 − a)·(θ − 2 / (k + 2)·c·g) + a·x

    lr (γ): scales each step; the paper has 1. beta (β): float ≥ 0. lips (L): float > 0, a guess at the gradient's Lipschitz
    constant. variant: "uni", "inc" or "exp". rho (ρ): a float of (0, 1) with "exp", None with the others.
    State: `avg_grad` (ḡ), `v_k` (v), `x_k` (x) and with "exp" `v_kk` (ṽ), like the parameter; x starts from it.
    Good for: convex and nearly convex losses, such as linear models and last layers.
    Start: lips 10, beta 10; 1 for "exp", with rho 0.9.
    Names: pytorch_optimizer's.
    Source: Deng et al. 2018, arXiv:1810.00553.
    Deviations from pytorch_optimizer: h is each element's own, as the paper's Diag(h), not one number of a parameter; "inc" has
        no √(k + 1); and k starts from 0.
    """

    rule = a2grad
    bounds = (
        LR,
        Bound("beta", "Invalid beta value"),
        Bound("lips", "Invalid lips value", least=None, above=0.0),
        Bound("rho", "Invalid rho value", least=None, above=0.0, below=1.0, optional=True),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        beta: float = 10.0,
        lips: float = 10.0,
        rho: float | None = None,
        variant: str = "uni",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        variant, rho = options["variant"], options["rho"]
        if variant not in ("uni", "inc", "exp"):
            raise ValueError(f'Invalid variant value: {variant!r}; it is "uni", "inc" or "exp"')
        if (variant == "exp") != (rho is not None):
            raise ValueError(f'rho is a float with variant="exp" and None with the others, got {variant!r} and {rho!r}')
