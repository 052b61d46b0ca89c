"""PID."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(branches=("weight_decay",))
@with_maximize
def pid(param, grad, grad_buffer, i_buffer, d_buffer, *, first, lr, momentum, dampening, derivative, integral, weight_decay):
    grad = with_decay(param, grad, weight_decay)
    i_buffer = momentum * i_buffer + (1 - dampening) * grad
    d_buffer = momentum * d_buffer + torch.where(first > 0, 0.0, (1 - momentum) * (grad - grad_buffer))
    return param - lr * (grad + integral * i_buffer + derivative * d_buffer), grad, i_buffer, d_buffer


class PID(Optimizer):
    """PID: gradient descent as a controller: the gradient, its sum and its change.

        g ← ∇f(θ) + λ·θ;  i ← μ·i + (1 − d)·g;  c ← μ·c + (1 − μ)·(g − g_previous) (0 at first);  θ ← θ − γ·(g + K_i·i + K_d·c)

    momentum (μ), dampening (d), derivative (K_d), integral (K_i): floats.
    State: `grad_buffer` (g_previous), `i_buffer` (i) and `d_buffer` (c), like the parameter.
    Good for: what SGD with momentum trains, where that overshoots.
    Start: lr a sixth of SGD's, momentum 0.9, integral 5, derivative 10.
    Names: pytorch_optimizer's without `weight_decouple`; without momentum theirs is SGD.
    Source: An et al. 2018, "A PID Controller Approach for Stochastic Optimization of Deep Networks".
    """

    rule = pid

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        derivative: float = 10.0,
        integral: float = 5.0,
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
