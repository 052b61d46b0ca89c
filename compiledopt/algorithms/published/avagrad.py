"""AvaGrad."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(scalars=("step",), shared={"gamma": "group"}, branches=("weight_decay",))
@with_maximize
def avagrad(param, grad, step, exp_avg, exp_avg_sq, gamma, *, lr, betas, weight_decay, eps, decoupled):
    started, step = step > 0, step + 1
    before = torch.where(started, 1 - betas[1] ** (step - 1), 1.0)
    if decoupled:
        param = param * (1 - torch.where(started, lr * weight_decay, 0.0))
    else:
        grad = with_decay(param, grad, weight_decay)
    exp_avg, root = exp_avg.lerp(grad, 1 - betas[0]), exp_avg_sq.sqrt()
    size = torch.where(started, lr * gamma / (1 - betas[0] ** step), 0.0)
    param = param - size * exp_avg / (root / before**0.5 + eps)
    rate = 1 / (root / (1 - betas[1] ** step) ** 0.5 + eps)
    gamma = (total(torch.ones_like(grad), over="group") / total(rate * rate, over="group")) ** 0.5
    return param, step, exp_avg, betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad, gamma


class AvaGrad(Optimizer):
    """AvaGrad: Adam whose second moment is that of the gradients before, and whose rates have a mean square of one.

        m ← β₁·m + (1 − β₁)·g;  θ ← θ − γ·s·m̂ / (√v̂ + ε),  from the second step on;  v ← β₂·v + (1 − β₂)·g²
        s ← √(n / Σ 1 / (√(v before / (1 − β₂ᵗ)) + ε)²),  over the n elements of the group
        m̂ = m / (1 − β₁ᵗ);  v̂ = v / (1 − β₂ᵗ⁻¹)

    eps (ε): float > 0, how adaptive it is: the larger the nearer to SGD; lr need not follow it. decoupled: False adds λ·θ to
    the gradient; True is AvaGradW,  θ ← (1 − γ·λ)·θ.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter; in each group `gamma` (s).
    Good for: images, where SGD is better than Adam, and language models: eps and lr can be searched one after the other.
    Start: lr 0.1, eps 0.1; betas as Adam's, weight_decay as SGD's.
    Names: those of the authors' package (lolemacs/avagrad), where decoupled is a class.
    Source: Savarese et al. 2019, arXiv:1912.01823.
    Deviations from the paper: s is that of the step before, as in the package.
    """

    rule = avagrad
    bounds = (Bound("eps", "Invalid epsilon value", least=None, above=0.0), *BOUNDS)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 0.1,
        decoupled: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
