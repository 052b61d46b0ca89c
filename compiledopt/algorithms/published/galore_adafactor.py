"""GaLore Adafactor."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.factored import columns, of_vectors, rows, scaled
from compiledopt.algorithms.low_rank import OF_RANK, check_side, left, moment, right
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.projections import moved_by, projected, singular_vectors
from compiledopt.algorithms.reduced import root_mean_square
from compiledopt.arguments import BOUNDS, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    optional={"exp_avg": "beta1"},
    initial={
        "ortho_left": left,
        "ortho_right": right,
        "exp_avg_sq_row": rows,
        "exp_avg_sq_col": columns,
        "exp_avg_sq": of_vectors,
        "exp_avg": moment,
    },
    static=("rank", "proj_type", "update_proj_gap"),
    branches=("first",),
    every={"due": ("update_proj_gap", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"),
)
@with_maximize
def galore_adafactor(
    param, grad, step, ortho_left, ortho_right, exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq, exp_avg,
    *, lr, eps, clip_threshold, decay_rate, beta1, weight_decay, scale_parameter, rank, update_proj_gap, scale, proj_type,
    due, first,
):  # fmt: skip
    step = step + 1
    plain = ortho_left is None and ortho_right is None
    if not plain and (first or due):
        ortho_left, ortho_right = singular_vectors(grad, ortho_left, ortho_right)
    low = grad if plain else projected(grad, ortho_left, ortho_right)
    update, *squares = scaled(
        low, exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq, new=step**decay_rate, tiny=eps[0], most=clip_threshold
    )
    size = lr * root_mean_square(param).clamp_min(eps[1]) if scale_parameter else lr
    if exp_avg is not None:
        exp_avg = update = exp_avg.lerp(size * update, 1 - beta1)
    kept, size = 1 - size * weight_decay, size if exp_avg is None else 1.0
    if plain:
        (param,) = moved(param, size * update, kept=kept, size=1.0)
    else:
        param = moved_by(param, size * update, ortho_left, ortho_right, kept, scale)
    return param, step, ortho_left, ortho_right, *squares, exp_avg


class GaLoreAdafactor(Optimizer):
    """GaLore with Adafactor: the second moment of a projected gradient from those of its rows and columns.

        every T steps  P = the first r singular vectors of G, of its shorter side;  g = G·Pᵀ, or Pᵀ·G where rows are fewer
        r ← r + t^τ·(mean of g² + ε₁ over columns − r);  c likewise over rows
        u = g / √(r·c / mean r);  u ← u / max(1, rms u / d)
        η = γ·max(ε₂, rms θ), or γ;  m ← β₁·m + (1 − β₁)·η·u, or η·u;  θ ← (1 − η·λ)·θ − α·m·P

    What is no matrix is not projected; matrices of a group with rank=None as well.
    eps (ε₁, ε₂): two floats. clip_threshold (d): float. decay_rate (τ): float. beta1 (β₁): float, or None for no momentum.
    scale_parameter: bool, η by the size of the parameter. rank (r): int, or None. update_proj_gap (T): int, steps.
    scale (α): float. proj_type: "std", the shorter side; "reverse_std", the longer; "left", "right", or "full", both.
    State: `exp_avg_sq_row` (r) and `exp_avg_sq_col` (c), of what has rows and columns, or `exp_avg_sq`; with beta1 `exp_avg`
        (m), like the projected gradient; `ortho_left`, rows × r, or `ortho_right`, r × columns (P), of matrices.
    Good for: language models in the least memory that GaLore leaves.
    Start: lr 1e-2, scale_parameter=False as Transformers has it, rank 128 to 512, scale 0.25, update_proj_gap 200.
    Names: those of the authors' package (jiaweizzhao/GaLore), where groups without `rank` are Adafactor's.
    Source: Zhao et al. 2024, arXiv:2403.03507; Shazeer and Stern 2018, arXiv:1804.04235.
    Deviations from galore_torch: lr is a number, as Transformers gives it: relative_step and warmup_init are schedules
    (compiledopt.schedules).
    """

    rule = galore_adafactor
    bounds = (
        LR,
        *(Bound("eps", "Invalid epsilon value").element(index) for index in (0, 1)),
        *OF_RANK[len(BOUNDS) :],
        WEIGHT_DECAY,
        Bound("clip_threshold", "Invalid clip_threshold value", above=0.0, least=None),
        Bound("beta1", "Invalid beta1 value", below=1.0, optional=True),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: str = "std",
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
