"""AdaGO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.matrices import wide
from compiledopt.algorithms.muon import COEFFICIENTS, orthogonal_direction
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import over_all
from compiledopt.arguments import LR, MOMENTUM, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _sum(param: Tensor, options: Any) -> Tensor:
    """One number, which a half type cannot add to for long."""
    return param.new_full((1,) * param.dim(), float(options["v"]) ** 2, dtype=wide(param))


@rule(static=("ns_steps",), initial={"v_sq": _sum}, elementwise=False, never_negative=("v_sq",))
@with_maximize
def adago(param, grad, momentum_buffer, v_sq, *, lr, weight_decay, momentum, gamma, eps, v, nesterov, ns_steps):
    momentum_buffer, update = orthogonal_direction(grad, momentum_buffer, momentum, nesterov, COEFFICIENTS, ns_steps, 1e-7)
    length = over_all(grad.to(v_sq.dtype) * grad, "sum").sqrt().clamp_max(gamma)
    v_sq = v_sq + length * length
    size = (lr * length / v_sq.sqrt()).clamp_min(eps)
    return moved(param, update, kept=1 - lr * weight_decay, size=size)[0], momentum_buffer, v_sq


class AdaGO(Optimizer):
    """AdaGO: Muon whose steps are as long as AdaGrad would have them, by the norms of all gradients so far.

        b ← μ·b + (1 − μ)·g;  O = NewtonSchulz(b), or with nesterov of (1 − μ)·g + μ·b
        n = min(‖g‖, δ);  v² ← v² + n²;  θ ← (1 − γ·λ)·θ − max(ε, γ·n / v)·O

    params: 2-dimensional ones. gamma (δ): float, at most so much of a gradient's norm counts. eps (ε): float, the least step.
    v: float, v at first. ns_steps: int, iterations.
    State: `momentum_buffer` (b), like the parameter; `v_sq` (v²), one number.
    Good for: matrices where nobody knows Muon's rate: the steps shrink by themselves.
    Start: lr 0.05, gamma about a gradient's usual norm; AdamW for all that is not a matrix.
    Names: pytorch_optimizer's.
    Source: Zhang et al. 2025, arXiv:2509.02981.
    Deviations from pytorch_optimizer: it divides by v², where the paper divides by v, and has AdamW's groups beside it.
    """

    rule = adago
    for_matrices = True
    bounds = (
        LR,
        WEIGHT_DECAY,
        MOMENTUM,
        Bound("gamma", "Invalid gamma value", above=0.0, least=None),
        Bound("eps", "Invalid epsilon value"),
        Bound("v", "Invalid v value", above=0.0, least=None),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 5e-2,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        gamma: float = 10.0,
        eps: float = 5e-4,
        v: float = 1e-6,
        nesterov: bool = False,
        ns_steps: int = 5,
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
