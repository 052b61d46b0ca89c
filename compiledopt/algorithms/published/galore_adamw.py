"""GaLore AdamW."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.directions import adam_direction
from compiledopt.algorithms.low_rank import OF_RANK, check_side, left, moment, right
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.projections import bias_corrected, moved_by, projected, singular_vectors
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    initial={"ortho_left": left, "ortho_right": right, "exp_avg": moment, "exp_avg_sq": moment},
    static=("rank", "proj_type", "update_proj_gap"),
    branches=("first",),
    every={"due": ("update_proj_gap", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq",),
)
@with_maximize
def galore_adamw(
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
    rank,
    update_proj_gap,
    scale,
    proj_type,
    correct_bias,
    due,
    first,
):
    step = step + 1
    plain = ortho_left is None and ortho_right is None
    if not plain and (first or due):
        ortho_left, ortho_right = singular_vectors(grad, ortho_left, ortho_right)
    low = grad if plain else projected(grad, ortho_left, ortho_right)
    update, exp_avg, exp_avg_sq = adam_direction(low, exp_avg, exp_avg_sq, betas=betas, eps=eps)
    size, kept = bias_corrected(lr, step, betas, correct_bias), 1 - lr * weight_decay
    if plain:
        param = (param - size * update) * kept
    else:
        param = moved_by(param, update, ortho_left, ortho_right, kept, kept * scale * size)
    return param, step, ortho_left, ortho_right, exp_avg, exp_avg_sq


class GaLoreAdamW(Optimizer):
    """GaLore: AdamW whose moments are those of the gradient in its first singular directions.

        every T steps  P = the first r singular vectors of G, of its shorter side;  g = G·Pᵀ, or Pᵀ·G where rows are fewer
        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  u = α·m / (√v + ε)·P
        θ ← (1 − γ·λ)·(θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·u)

    What is no matrix is AdamW's, with α = 1, and compiled; matrices of a group with rank=None as well.
    rank (r): int, or None. update_proj_gap (T): int, steps. scale (α): float. correct_bias: bool. proj_type: "std", the shorter
        side; "reverse_std", the longer; "left", "right", or "full", both.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the projected gradient; `ortho_left`, rows × r, or `ortho_right`, r ×
        columns (P), of matrices.
    Good for: language models whose AdamW states do not fit: a rank of a quarter of the width holds a third of them.
    Start: lr 1e-2, rank 128 to 512, scale 0.25, update_proj_gap 200.
    Names: those of the authors' package (jiaweizzhao/GaLore), where groups without `rank` are AdamW's.
    Source: Zhao et al. 2024, arXiv:2403.03507.
    """

    rule = galore_adamw
    bounds = OF_RANK

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: str = "std",
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
        check_side(group["proj_type"])
        super()._check_group(group)
