"""Conda."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.full_rank import of_full_rank, scaled
from compiledopt.algorithms.low_rank import check_side, left, moment, right
from compiledopt.algorithms.muon import averaged
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.projections import bias_corrected, moved_by, projected, singular_vectors
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    initial={"ortho_left": of_full_rank(left), "ortho_right": of_full_rank(right), "exp_avg_sq": of_full_rank(moment)},
    static=("proj_type", "update_proj_gap"),
    branches=("first",),
    every={"due": ("update_proj_gap", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq",),
)
@with_maximize
def conda(
    param,
    grad,
    step,
    ortho_left,
    ortho_right,
    exp_avg,
    exp_avg_sq,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    update_proj_gap,
    scale,
    proj_type,
    correct_bias,
    due,
    first,
):
    step = step + 1
    plain = ortho_left is None and ortho_right is None
    _, exp_avg = averaged(grad, exp_avg, momentum=betas[0], nesterov=False)
    if not plain and (first or due):
        ortho_left, ortho_right = singular_vectors(exp_avg, ortho_left, ortho_right)
    low, mean = (grad, exp_avg) if plain else (projected(each, ortho_left, ortho_right) for each in (grad, exp_avg))
    update, exp_avg_sq = scaled(mean, low, exp_avg_sq, beta=betas[1], eps=eps)
    size, kept = bias_corrected(lr, step, betas, correct_bias), 1 - lr * weight_decay
    if plain:
        (param,) = moved(param, update, kept=kept, size=kept * size)
    else:
        param = moved_by(param, update, ortho_left, ortho_right, kept, kept * scale * size)
    return param, step, ortho_left, ortho_right, exp_avg, exp_avg_sq


class Conda(Optimizer):
    """Conda: Adam whose second moment is of columns in the singular directions of the momentum.

        m ← β₁·m + (1 − β₁)·G;  every T steps  P = the singular vectors of m, of its shorter side
        v ← β₂·v + (1 − β₂)·(G·Pᵀ)²;  u = α·(m·Pᵀ / (√v + ε))·P, or from the left where rows are fewer
        θ ← (1 − γ·λ)·(θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·u)

    What is no matrix is AdamW's; matrices of a group with proj_type=None as well.
    update_proj_gap (T): int, steps. scale (α): float. correct_bias: bool. proj_type: "std", the shorter side; "reverse_std",
        the longer; "left", "right", "full", both; None, neither.
    State: `exp_avg` (m), like the parameter; `exp_avg_sq` (v), like the projected gradient; `ortho_left` or `ortho_right` (P),
        n × n for a shorter side of n, of matrices.
    Good for: matrices of language models: fewer steps than AdamW's, without Muon's products at each.
    Start: lr as AdamW's, update_proj_gap 2000, scale 0.25; embeddings and the last layer with proj_type=None.
    Names: those of the authors' code (jie040109/Conda), where groups without `update_proj_gap` are AdamW's.
    Source: Wang et al. 2025, arXiv:2509.24218.
    """

    rule = conda
    bounds = (
        *BOUNDS,
        Bound("update_proj_gap", "Invalid update_proj_gap value", least=1.0),
        Bound("scale", "Invalid scale value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        update_proj_gap: int = 2000,
        scale: float = 1.0,
        proj_type: str | None = "std",
        correct_bias: bool = True,
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

    def _check_group(self, group: dict[str, Any]) -> None:
        check_side(group["proj_type"], optional=True)
        super()._check_group(group)
