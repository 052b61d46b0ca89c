"""Amos."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import mean_square
from compiledopt.arguments import EPS, LR, MOMENTUM, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def expected_scale(param: Any) -> Any:
    """How large a parameter of these dimensions is thought to become: the η̃ of the paper."""
    if param.ndim < 2:
        return 0.5
    return ((2 if param.ndim == 2 else 1) / param.shape[1]) ** 0.5


@rule(scalars=("step", "exp_avg_sq", "decay"), optional={"exp_avg": "momentum"}, elementwise=False)
@with_maximize
def amos(param, grad, step, exp_avg, exp_avg_sq, decay, *, lr, beta, momentum, extra_l2, c_coef, d_coef, eps):
    step, square, initial = step + 1, mean_square(grad), lr * expected_scale(param)
    exp_avg_sq = beta * exp_avg_sq + (1 - beta) * square
    inverse = (1 - beta**step) / (exp_avg_sq + eps)
    gamma = lr**2 * inverse * square / (1 + c_coef * lr**0.5 * decay) ** 0.5
    update = (gamma - extra_l2) / 2 * param + initial * inverse**0.5 * grad
    update = update / (1 + d_coef * initial**0.5 * decay)
    if exp_avg is not None:
        exp_avg = update = momentum * exp_avg + (1 - momentum) * update
    return param - update, step, exp_avg, exp_avg_sq, decay * (1 + gamma) + gamma


class Amos(Optimizer):
    """Amos: steps and decay of the weights that fall as the scale of a model says, without a schedule.

        v ← β·v + (1 − β)·mean(g²);  r = (1 − βᵗ) / (v + ε);  κ = (1 + c·√γ·b)^(−1/2)·γ²·r·mean(g²)
        u = ((κ − λ) / 2·θ + γ·η·√r·g) / (1 + d·√(γ·η)·b);  θ ← θ − u, or an average of u;  b ← b·(1 + κ) + κ

    lr (γ): the global rate. η is the scale that a parameter is expected to have: 1/2 for vectors, √(2 / columns) for matrices,
        √(1 / size(1)) for others. momentum: float, of an average of updates; none for 0. extra_l2 (λ), c_coef (c), d_coef (d).
    State: `exp_avg_sq` (v) and `decay` (b), 0-dim; `exp_avg`, like the parameter, where momentum is not 0.
    Good for: pre-training transformers with next to no state, and without a schedule or a decay to tune.
    Start: lr about 1 / √(steps of an epoch), momentum 0.9 where there is room.
    Names: pytorch_optimizer's.
    Source: Tian and Parikh 2022, arXiv:2210.11693.
    """

    rule = amos
    bounds = (LR, MOMENTUM, EPS, Bound("beta", "Invalid beta value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        beta: float = 0.999,
        momentum: float = 0.0,
        extra_l2: float = 0.0,
        c_coef: float = 0.25,
        d_coef: float = 0.25,
        eps: float = 1e-18,
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
