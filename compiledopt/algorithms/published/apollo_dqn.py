"""ApolloDQN."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule

LEAST = 0.01  # of the curvature, with rebound "constant"


@rule(scalars=("step",), branches=("weight_decay",), elementwise=False)
@with_maximize
def apollo_dqn(
    param, grad, step, exp_avg_grad, approx_hessian, update,
    *, lr, beta, eps, rebound, warmup, init_lr, weight_decay, weight_decay_type,
):  # fmt: skip
    belief = rebound == "belief"
    kind = weight_decay_type or ("decoupled" if belief else "L2")
    start = lr / 1000 if init_lr is None else torch.minimum(init_lr, lr)
    size = torch.where(step < warmup, start + (lr - start) * step / warmup.clamp_min(1.0), lr)
    step = step + 1
    alpha = (1 - beta) / (1 - beta**step)
    grad = with_decay(param, grad, weight_decay) if kind == "L2" else grad
    change = grad - exp_avg_grad
    exp_avg_grad = exp_avg_grad + alpha * change
    length = (update**4).sum() ** 0.25 + (eps if belief else eps / LEAST)
    square = (update / length) ** 2
    error = -alpha * (change * update).sum() / length**2 - (approx_hessian * square).sum()
    approx_hessian = approx_hessian + error * square
    bent = abs(approx_hessian)
    curvature = torch.maximum(bent, abs(change).amax()) + eps / alpha if belief else bent.clamp_min(LEAST)
    update = exp_avg_grad / curvature
    if weight_decay != 0 and kind != "L2":
        update = update + (weight_decay / curvature.mean() if kind == "stable" else weight_decay) * param
    return param - size * update, step, exp_avg_grad, approx_hessian, update


class ApolloDQN(Optimizer):
    """ApolloDQN: a diagonal quasi-Newton method for noisy, nonconvex losses ("Apollo" of Ma).

        a = (1 − β) / (1 − βᵗ);  δ = g − m;  m ← m + a·δ;  d̂ = d / (‖d‖₄ + ε')
        B ← B − (a·Σ δ·d̂ / (‖d‖₄ + ε') + Σ B·d̂²)·d̂²;  d ← m / max(|B|, 0.01),  ε' = ε / 0.01
        or with rebound "belief"  d ← m / (max(|B|, max |δ|) + ε / a),  ε' = ε;  θ ← θ − γₜ·d

    beta (β): float. rebound: "constant" or "belief". warmup: float, the steps in which γₜ grows to lr from init_lr; None
    is lr / 1000. weight_decay_type: "L2", in g; "decoupled", λ·θ in d; "stable", that over the mean of d's denominator; None is
    "L2" with "constant" and else "decoupled".
    State: `exp_avg_grad` (m), `approx_hessian` (B) and `update` (d), like the parameter.
    Good for: convolutional nets and language models with SGD's generalization and without its search for the rate.
    Start: lr 0.01, eps 1e-4, init_lr 1e-5, warmup 500; at least 100 steps of it.
    Names: those of the authors' package (XuezheMax/apollo), where it is `Apollo`, without a default of lr.
    Source: Ma 2020, arXiv:2009.13586.
    Deviations from apollo: the warm-up goes to the group's lr as it is, not as it was at first.
    """

    rule = apollo_dqn
    bounds = (
        *BOUNDS,
        Bound("beta", "Invalid beta value", below=1.0),
        Bound("warmup", "Invalid warmup updates"),
        Bound("init_lr", "Invalid initial learning rate", optional=True),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        beta: float = 0.9,
        eps: float = 1e-4,
        rebound: str = "constant",
        warmup: float = 500,
        init_lr: float | None = None,
        weight_decay: float = 0.0,
        weight_decay_type: str | None = None,
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
        for name, known in (("rebound", ("constant", "belief")), ("weight_decay_type", ("L2", "decoupled", "stable", None))):
            if options[name] not in known:
                raise ValueError(f"Invalid {name} value: {options[name]!r}; it is one of {known}")
