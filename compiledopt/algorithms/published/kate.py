"""Kate."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def kate(param, grad, m, b, *, lr, delta, weight_decay, eps):
    square = grad * grad
    sums = b * b + square + eps
    m = (m * m + delta * square + square / sums).sqrt()
    return param * (1 - lr * weight_decay) - lr * m * grad / sums, m, sums.sqrt()


class Kate(Optimizer):
    """Kate: AdaGrad without its root, which does not mind the scale of the data.

        b² ← b² + g² + ε;  m² ← m² + δ·g² + g² / b²;  θ ← (1 − γ·λ)·θ − γ·m·g / b²

    delta (δ): float ≥ 0.
    State: `m` and `b`, like the parameter: roots, as in the authors' code.
    Good for: generalized linear models of data in any units; also images and language models.
    Start: lr as AdaGrad's or Adam's, delta 0.
    Names: pytorch_optimizer's without `weight_decouple`.
    Source: Choudhury et al. 2024, arXiv:2403.02648.
    """

    rule = kate
    bounds = (*BOUNDS, Bound("delta", "Invalid delta value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        delta: float = 0.0,
        weight_decay: float = 0.0,
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
