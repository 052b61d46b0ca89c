"""Stable-SPAM."""

from __future__ import annotations

import math
from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step", "m_norm_t", "v_norm_t", "m_max_t"), elementwise=False)
@with_maximize
def stable_spam(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq,
    m_norm_t,
    v_norm_t,
    m_max_t,
    *,
    lr,
    betas,
    gamma1,
    gamma2,
    theta,
    t_max,
    eta_min,
    weight_decay,
    update_proj_gap,
    eps,
):
    step = step + 1
    scale: Any = 1.0
    if t_max is not None:
        turn = math.pi / (t_max + 1)
        annealed = (1 + torch.cos(turn * (step + 1))) / (1 + torch.cos(turn))
        scale = torch.where(step < t_max, eta_min + (1 - eta_min) * annealed, eta_min)
    size = grad.abs()
    largest = size.amax()
    m_max_t = theta * m_max_t + (1 - theta) * largest
    bound = m_max_t / (1 - theta**step)
    grad = torch.where(size > bound, grad / largest * bound, grad)
    norm = grad.norm()
    m_norm_t = gamma1 * scale * m_norm_t + (1 - gamma1 * scale) * norm
    v_norm_t = gamma2 * v_norm_t + (1 - gamma2) * norm * norm
    length = m_norm_t / (1 - (gamma1 * scale) ** step) / ((v_norm_t / (1 - gamma2**step)).sqrt() + eps)
    grad = grad * torch.where(norm > 0, length / norm, 0.0)
    kept = torch.where(step % update_proj_gap == 0, 0.0, 1.0)
    since = torch.where(step < update_proj_gap, step, step % update_proj_gap + 1)
    exp_avg = (kept * exp_avg).lerp(grad, 1 - betas[0] * scale)
    exp_avg_sq = betas[1] * kept * exp_avg_sq + (1 - betas[1]) * grad * grad
    update = exp_avg / (1 - (betas[0] * scale) ** since) / ((exp_avg_sq / (1 - betas[1] ** since)).sqrt() + eps)
    return param * (1 - lr * weight_decay) - lr * update, step, exp_avg, exp_avg_sq, m_norm_t, v_norm_t, m_max_t


class StableSPAM(Optimizer):
    """Stable-SPAM: Adam whose gradients lose their spikes and get a steady length, and whose momenta begin anew now and then.

        a ← θ·a + (1 − θ)·max|g|;  â = a / (1 − θᵗ);  g ← g·â / max|g| where |g| > â
        n ← γ₁·n + (1 − γ₁)·‖g‖;  q ← γ₂·q + (1 − γ₂)·‖g‖²;  g ← g / ‖g‖·n̂ / (√q̂ + ε),  n̂ and q̂ without bias as â
        every T steps  m ← 0, v ← 0;  then Adam's update of g, with t counted from there, and  w ← (1 − γ·λ)·w  before it

    gamma1 (γ₁), gamma2 (γ₂), theta (θ): floats. update_proj_gap (T): int, steps.
    t_max: int, steps over which β₁ and γ₁ shrink to eta_min times themselves, along a cosine; None: they do not.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; `m_norm_t` (n), `v_norm_t` (q) and `m_max_t` (a), 0-dim.
    Good for: training in 4 bits or at rates where spikes of the loss end runs of Adam.
    Start: lr as AdamW's.
    Names: pytorch_optimizer's, which leaves out an update whose gradient is zero; here the averages see it.
    Source: Huang et al. 2025, arXiv:2502.17055.
    """

    rule = stable_spam
    bounds = (
        *BOUNDS,
        Bound("gamma1", "Invalid gamma1 value", below=1.0),
        Bound("gamma2", "Invalid gamma2 value", below=1.0),
        Bound("theta", "Invalid theta value", below=1.0),
        Bound("t_max", "Invalid t_max value", least=1.0, optional=True),
        Bound("eta_min", "Invalid eta_min value", most=1.0),
        Bound("update_proj_gap", "Invalid update_proj_gap value", least=1.0),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        theta: float = 0.999,
        t_max: int | None = None,
        eta_min: float = 0.5,
        weight_decay: float = 0.0,
        update_proj_gap: int = 1000,
        eps: float = 1e-8,
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
