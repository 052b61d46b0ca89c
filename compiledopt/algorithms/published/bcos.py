"""BCOS."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_either_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(branches=("weight_decay",))
@with_maximize
def bcos(param, grad, m, *, first, lr, beta, beta2, eps, weight_decay, decouple_wd):
    before = torch.where(first > 0, grad, m)
    param, grad = with_either_decay(param, grad, lr, weight_decay, decouple_wd)
    share = 1 - (1 - beta) ** 2 if beta2 is None else beta2
    square = share * before * before + (1 - share) * grad * grad
    m = before.lerp(grad, 1 - beta)
    return param - lr * m / (square.sqrt() + eps), m


class BCOS(Optimizer):
    """BCOS: a momentum over the root of its expected square, which follows from the momentum before and needs no state.

        v = b·m² + (1 − b)·g²  with  b = 1 − (1 − β)²;  m ← β·m + (1 − β)·g;  θ ← (1 − γ·λ)·θ − γ·m / (√v + ε)

    beta (β): float. beta2 (b): float; None is as above. m is the first gradient at first. decouple_wd: False adds λ·θ to the
    gradient.
    State: `m`, like the parameter.
    Good for: AdamW's curve with half of its state.
    Start: lr and weight_decay as AdamW's, beta 0.9.
    Names: those of the authors' package (facebookresearch/bcos) for its mode "c", in which lr has no default; "g" is RMSprop,
        "m" Adam with one beta.
    Source: Jiang and Xiao 2025, arXiv:2507.08963.
    """

    rule = bcos
    bounds = (
        *BOUNDS,
        Bound("beta", "Invalid beta value", below=1.0),
        Bound("beta2", "Invalid beta2 value", below=1.0, optional=True),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        beta: float = 0.9,
        beta2: float | None = None,
        eps: float = 1e-6,
        weight_decay: float = 0.1,
        decouple_wd: bool = True,
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
