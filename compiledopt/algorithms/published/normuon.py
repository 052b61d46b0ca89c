"""NorMuon."""

from __future__ import annotations

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.muon import COEFFICIENTS, lr_ratio, orthogonal_direction
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import factor
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(static=("ns_steps",), initial={"second_momentum_buffer": factor(-1)}, elementwise=False)
@with_maximize
def normuon(param, grad, momentum_buffer, second_momentum_buffer, *, lr, weight_decay, momentum, beta2, nesterov, ns_steps):
    momentum_buffer, update = orthogonal_direction(grad, momentum_buffer, momentum, nesterov, COEFFICIENTS, ns_steps, 1e-7)
    update = update.to(param.dtype)
    second_momentum_buffer = second_momentum_buffer.lerp((update * update).mean(-1, keepdim=True), 1 - beta2)
    scaled = update / (second_momentum_buffer.sqrt() + 1e-10)
    size = lr * lr_ratio(None, *param.shape) * update.norm() / (scaled.norm() + 1e-10)
    return moved(param, scaled, kept=1 - lr * weight_decay, size=size)[0], momentum_buffer, second_momentum_buffer


class NorMuon(Optimizer):
    """NorMuon: Muon whose rows, the neurons, are divided by the root of their second moments.

        b ← μ·b + (1 − μ)·g;  O = NewtonSchulz((1 − μ)·g + μ·b), or of b without nesterov
        v ← β₂·v + (1 − β₂)·(mean of O² over columns);  u = O / √v;  θ ← (1 − γ·λ)·θ − γ·√max(1, rows / columns)·u·‖O‖ / ‖u‖

    params: 2-dimensional ones. beta2 (β₂): float. ns_steps: int, iterations.
    State: `momentum_buffer` (b), like the parameter, and `second_momentum_buffer` (v), one number per row.
    Good for: matrices of language models, where Muon's neurons move unevenly; Muon's state and little more.
    Start: lr as Muon's (0.02), weight_decay 0.1; AdamW for all that is not a matrix.
    Names: those of the authors' package (zichongli5/NorMuon).
    Source: Li et al. 2025, arXiv:2510.05491.
    """

    rule = normuon
    for_matrices = True
    bounds = (*BOUNDS, Bound("beta2", "Invalid beta2 value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.02,
        weight_decay: float = 0,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
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
