"""AdaMuon."""

from __future__ import annotations

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.muon import COEFFICIENTS, orthogonal_direction
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.spellings import op


@rule(scalars=("step",), static=("ns_steps",), elementwise=False, never_negative=("v_buffer",))
@with_maximize
def adamuon(param, grad, step, momentum_buffer, v_buffer, *, lr, weight_decay, momentum, nesterov, ns_steps, beta2, eps):
    step = step + 1
    momentum_buffer, update = orthogonal_direction(grad, momentum_buffer, momentum, nesterov, COEFFICIENTS, ns_steps, 1e-7)
    update = update.to(param.dtype)
    v_buffer = beta2 * v_buffer + (1 - beta2) * update * update
    update = update / ((v_buffer / (1 - beta2**step)).sqrt() + eps)
    size = 0.2 * lr * op("sqrt", param.numel()) / (update.norm() + eps)
    return moved(param, update, kept=1 - lr * weight_decay, size=size)[0], step, momentum_buffer, v_buffer


class AdaMuon(Optimizer):
    """AdaMuon: Muon's direction, scaled by its own second moment and as long as Adam's steps.

        b ← μ·b + (1 − μ)·g;  O = NewtonSchulz((1 − μ)·g + μ·b), or of b without nesterov
        v ← β₂·v + (1 − β₂)·O²;  u = O / (√(v / (1 − β₂ᵗ)) + ε);  θ ← (1 − γ·λ)·θ − 0.2·γ·√(rows·columns)·u / (‖u‖ + ε)

    params: 2-dimensional ones. ns_steps: int, iterations. beta2 (β₂): float.
    State: `momentum_buffer` (b) and `v_buffer` (v), like the parameter.
    Good for: matrices of language models, with AdamW's learning rates.
    Start: lr as AdamW's, weight_decay 0.1; AdamW for all that is not a matrix.
    Names: those of the authors' package (Chongjie-Si/AdaMuon).
    Source: Si et al. 2025, arXiv:2507.11005.
    """

    rule = adamuon
    for_matrices = True
    bounds = (*BOUNDS, Bound("beta2", "Invalid beta2 value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.02,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        beta2: float = 0.999,
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
