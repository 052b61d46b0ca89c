"""Fira AdamW."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.directions import adam_direction, moved
from compiledopt.algorithms.growth import GROWTH, limiter
from compiledopt.algorithms.low_rank import OF_RANK, check_side, left, moment, norm, right
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.projections import bias_corrected, length, projected, singular_vectors, spread
from compiledopt.arguments import Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    initial={"ortho_left": left, "ortho_right": right, "exp_avg": moment, "exp_avg_sq": moment, "scaling_grad": norm},
    static=("rank", "proj_type", "update_proj_gap"),
    branches=("first",),
    every={"due": ("update_proj_gap", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq",),
)
@with_maximize
def fira_adamw(
    param,
    grad,
    step,
    ortho_left,
    ortho_right,
    exp_avg,
    exp_avg_sq,
    scaling_grad,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    rank,
    update_proj_gap,
    alpha,
    proj_type,
    correct_bias,
    due,
    first,
):
    step = step + 1
    plain = scaling_grad is None
    if not plain and (first or due):
        ortho_left, ortho_right = singular_vectors(grad, ortho_left, ortho_right)
    low = grad if plain else projected(grad, ortho_left, ortho_right)
    update, exp_avg, exp_avg_sq = adam_direction(low, exp_avg, exp_avg_sq, betas=betas, eps=eps)
    size, kept = bias_corrected(lr, step, betas, correct_bias), 1 - lr * weight_decay
    if plain:
        param = (param - size * update) * kept
    else:
        dims = (0, 1) if ortho_left is not None and ortho_right is not None else (1,) if ortho_left is None else (0,)
        rest = grad - alpha * spread(low, ortho_left, ortho_right)
        rest = rest * (length(update, dims) / (length(low, dims) + 1e-8))
        found = length(rest, (0, 1))
        bound = found.new_ones(1, 1) if first else limiter(found, scaling_grad, GROWTH)
        scaling_grad = found / bound
        update = alpha * spread(update, ortho_left, ortho_right) + rest / bound
        param = moved(param, update, kept=kept, size=kept * size)[0]
    return param, step, ortho_left, ortho_right, exp_avg, exp_avg_sq, scaling_grad


class FiraAdamW(Optimizer):
    """Fira: GaLore, and what its projection leaves of the gradient as long as Adam would make it.

        every T steps  P = the first r singular vectors of G, of its shorter side;  g = G·Pᵀ, or Pᵀ·G where rows are fewer
        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  u = m / (√v + ε);  S = (G − α·g·P)·‖u‖ / ‖g‖, of each row or column
        S ← S / max(1, ‖S‖ / (1.01·the last ‖S‖));  θ ← (1 − γ·λ)·(θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·(α·u·P + S))

    What is no matrix is AdamW's, and compiled; matrices of a group with rank=None as well.
    rank (r): int, or None. update_proj_gap (T): int, steps. alpha (α): float. correct_bias: bool. proj_type: "std", the shorter
        side; "reverse_std", the longer; "left", "right", or "full", both, where ‖u‖ / ‖g‖ is one number.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the projected gradient; `ortho_left`, rows × r, or `ortho_right`, r ×
        columns (P), and `scaling_grad`, the last ‖S‖, of matrices.
    Good for: language models in GaLore's memory, with all of the gradient.
    Start: lr 1e-2, rank a quarter of the width, alpha 0.25, update_proj_gap 200.
    Names: those of the authors' code (xichen-fy/Fira), where groups without `rank` are AdamW's, and α stands before what is
        taken from G too.
    Source: Chen et al. 2024, arXiv:2410.01623.
    """

    rule = fira_adamw
    bounds = (*OF_RANK, Bound("alpha", "Invalid alpha value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        alpha: float = 1.0,
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
