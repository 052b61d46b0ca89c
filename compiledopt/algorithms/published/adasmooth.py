"""AdaSmooth."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    initial={"prev_param": lambda param: param.clone()},
    branches=("weight_decay",),
    never_negative=("exp_avg_sq",),
)
@with_maximize
def adasmooth(param, grad, prev_param, s, n, exp_avg_sq, *, lr, betas, weight_decay, eps):
    grad = with_decay(param, grad, weight_decay)
    change = param - prev_param
    s, n = s + change, n + abs(change)
    share = (betas[1] - betas[0]) * abs(s) / (n + eps) + (1 - betas[1])
    exp_avg_sq = exp_avg_sq.lerp(grad * grad, share * share)
    return param - lr * grad / (exp_avg_sq + eps).sqrt(), param, s, n, exp_avg_sq


class AdaSmooth(Optimizer):
    """AdaSmooth: RMSprop that forgets the faster the straighter a parameter went.

        g ← ∇f(θ) + λ·θ;  s ← s + Δθ;  n ← n + |Δθ|,  Δθ the last change;  c = (ρ₂ − ρ₁)·|s| / (n + ε) + 1 − ρ₂
        v ← c²·g² + (1 − c²)·v;  θ ← θ − γ·g / √(v + ε)

    betas (ρ₁, ρ₂): floats, of the fastest average and the slowest.
    State: `prev_param` (the parameter before), `s`, `n` and `exp_avg_sq` (v), like the parameter.
    Good for: what RMSprop and Adadelta train, without a choice of how long their average is.
    Start: lr 1e-3, betas (0.5, 0.99).
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Lu 2022, arXiv:2204.00825.
    Deviations from the paper: its window is the whole run, as in pytorch_optimizer.
    """

    rule = adasmooth
    bounds = BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.5, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-6,
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
