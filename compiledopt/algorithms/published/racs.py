"""RACS."""

from __future__ import annotations

import torch

from compiledopt.algorithms.growth import limiter
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import factor, one_number, over_all
from compiledopt.algorithms.two_sided import scales
from compiledopt.arguments import EPS, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(initial={"s": factor(-2), "q": factor(-1), "phi": one_number}, elementwise=False, never_negative=("s", "q", "phi"))
@with_maximize
def racs(param, grad, s, q, phi, *, lr, beta, alpha, gamma, eps, weight_decay, first):
    columns, rows = scales(grad)
    s, q = s.lerp(columns, 1 - beta), q.lerp(rows, 1 - beta)
    update = grad / ((s * q).sqrt() + eps)
    size = over_all(update * update, "sum").sqrt()
    bound = torch.where(first > 0, 1.0, limiter(size, phi, gamma))
    return param * (1 - lr * weight_decay) - lr * alpha / bound * update, s, q, size / bound


class RACS(Optimizer):
    """RACS: SGD whose rows and columns are scaled, by the factors that are nearest to the squares of the gradient.

        s, q = the vectors with s·q nearest to G², by five power iterations;  s̄ ← β·s̄ + (1 − β)·s;  q̄ likewise
        U = G / (√(s̄·q̄) + ε);  η = γ / max(‖U‖ / φ, γ), 1 at first;  φ ← η·‖U‖;  θ ← (1 − lr·λ)·θ − lr·α·η·U

    params: 2-dimensional ones. beta (β): float. alpha (α): float, a factor of the update. gamma (γ): float, how many times as
    long as the last an update may be.
    State: `s` (s̄), one number per column, `q` (q̄), one per row, and `phi` (φ), one.
    Good for: language models in the memory of SGD.
    Start: lr 0.02, alpha 0.05, or 0.02 for models of a billion parameters; AdamW for all that is not a matrix.
    Names: pytorch_optimizer's, with the paper's lr.
    Source: Gong et al. 2025, arXiv:2502.07752.
    Deviations from pytorch_optimizer: its s and q are means of G² over rows and columns, and begin at 0 and 1, where the paper
    has fixed points and begins at 0; ε stands beside the root, since products of small gradients are smaller than it.
    """

    rule = racs
    for_matrices = True
    bounds = (
        LR,
        Bound("beta", "Invalid beta value", below=1.0),
        Bound("alpha", "Invalid alpha value"),
        Bound("gamma", "Invalid gamma value", above=0.0, least=None),
        EPS,
        WEIGHT_DECAY,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.02,
        beta: float = 0.9,
        alpha: float = 0.05,
        gamma: float = 1.01,
        eps: float = 1e-8,
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
