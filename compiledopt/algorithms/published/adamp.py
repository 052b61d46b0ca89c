"""AdamP and SGDP."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule

OWN_BOUNDS = (Bound("delta", "Invalid delta value"), Bound("wd_ratio", "Invalid wd_ratio value"))


def projected(param: Any, grad: Any, update: Any, delta: Any, wd_ratio: Any, eps: Any) -> tuple[Any, Any]:
    """The update without its part along θ where g is nearly at right angles to θ, and the ratio of its decay."""
    if param.ndim < 2:
        return update, 1.0
    ratio: Any = 1.0
    found = update
    for dims, count in ((range(param.ndim), param.numel()), (range(1, param.ndim), param.numel() / param.shape[0])):
        along = {"dim": tuple(dims), "keepdim": True}
        size, length = (param * param).sum(**along).sqrt(), (grad * grad).sum(**along).sqrt()
        cosine = abs((param * grad).sum(**along)) / (size.clamp_min(eps) * length.clamp_min(eps))
        normal = cosine.amax() < delta / count**0.5
        unit = param / (size + eps)
        found = torch.where(normal, update - unit * (unit * update).sum(**along), found)
        ratio = torch.where(normal, wd_ratio, ratio)
    return found, ratio


@rule(scalars=("step",), elementwise=False)
@with_maximize
def adamp(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay, delta, wd_ratio, nesterov):
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    update = exp_avg.lerp(grad, 1 - betas[0]) if nesterov else exp_avg
    update = update / (exp_avg_sq.sqrt() / (1 - betas[1] ** step) ** 0.5 + eps)
    update, ratio = projected(param, grad, update, delta, wd_ratio, eps)
    param = param * (1 - lr * weight_decay * ratio) - lr / (1 - betas[0] ** step) * update
    return param, step, exp_avg, exp_avg_sq


@rule(branches=("momentum",), elementwise=False)
@with_maximize
def sgdp(param, grad, momentum_buffer, *, lr, momentum, dampening, weight_decay, nesterov, eps, delta, wd_ratio):
    momentum_buffer = momentum * momentum_buffer + (1 - dampening) * grad
    update = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    update, ratio = projected(param, grad, update, delta, wd_ratio, eps)
    return param * (1 - lr * weight_decay * ratio / (1 - momentum)) - lr * update, momentum_buffer


class AdamP(Optimizer):
    """AdamP: Adam whose step leaves the length of a weight alone, where only its direction matters.

        m, v, m̂, v̂ as Adam's;  u = m̂ / (√v̂ + ε), or of β₁·m + (1 − β₁)·g with nesterov
        where g is nearly at right angles to θ (|cos| < δ / √n, for each row of n, else for all of θ):  u ← u − θ̂·(θ̂·u)
        θ ← (1 − γ·λ·r)·θ − γ·u,  r = wd_ratio where projected, else 1

    delta (δ): float. wd_ratio: float, how much decay what is projected has. nesterov: look ahead by the momentum.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter.
    Good for: nets whose weights are normalized (BatchNorm, LayerNorm), and whose effective rate momentum lets decay too fast.
    Start: lr and weight_decay as AdamW's.
    Names: those of the authors' package (clovaai/AdamP).
    Source: Heo et al. 2021, arXiv:2006.08217.
    """

    rule = adamp
    bounds = (*BOUNDS, *OWN_BOUNDS)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
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


class SGDP(Optimizer):
    """SGDP: SGD with momentum whose step leaves the length of a weight alone, where only its direction matters.

        b ← μ·b + (1 − τ)·g;  u = b, or with nesterov  g + μ·b;  u projected as AdamP's
        θ ← (1 − γ·λ·r / (1 − μ))·θ − γ·u,  r = wd_ratio where projected, else 1

    dampening (τ), delta, wd_ratio: floats. nesterov: look ahead by the momentum.
    State: `momentum_buffer` (b; the authors' `momentum`, which is an option's name), like the parameter.
    Good for: what AdamP is good for, where SGD is preferred.
    Start: lr 0.1, momentum 0.9, nesterov=True, weight_decay 1e-5.
    Names: those of the authors' package (clovaai/AdamP).
    Source: Heo et al. 2021, arXiv:2006.08217.
    """

    rule = sgdp
    bounds = (*BOUNDS, Bound("momentum", "Invalid momentum value", below=1.0), *OWN_BOUNDS)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
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
