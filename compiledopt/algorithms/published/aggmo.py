"""AggMo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BETA, LR, WEIGHT_DECAY, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _how_many(_: Any, options: Any) -> int:
    return len(options["betas"])


@rule(lists={"momentum_buffer": _how_many}, branches=("weight_decay",))
@with_maximize
def aggmo(param, grad, momentum_buffer, *, lr, betas, weight_decay):
    grad = with_decay(param, grad, weight_decay)
    momentum_buffer = [beta * momentum + grad for beta, momentum in zip(betas, momentum_buffer, strict=True)]
    return param - lr / len(betas) * sum(momentum_buffer[1:], momentum_buffer[0]), momentum_buffer


class AggMo(Optimizer):
    """AggMo: the mean of several momentums, which oscillate out of step and so may be long.

        g ← ∇f(θ) + λ·θ;  mᵢ ← βᵢ·mᵢ + g for each of K;  θ ← θ − γ / K·Σ mᵢ

    betas (β₁, …): as many floats as there are momentums.
    State: `momentum_buffer_i` (mᵢ), like the parameter, one for each beta.
    Good for: what SGD with momentum trains, at a larger rate and with a momentum of 0.99 or 0.999.
    Start: lr as SGD's with momentum 0.9, betas (0, 0.9, 0.99).
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Lucas et al. 2018, arXiv:1804.00325.
    """

    rule = aggmo
    bounds = (LR, replace(BETA, each=True), WEIGHT_DECAY)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, ...] = (0.0, 0.9, 0.99),
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
