"""APOLLO."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.directions import adam_direction, moved
from compiledopt.algorithms.growth import GROWTH, limiter
from compiledopt.algorithms.low_rank import OF_RANK, left, moment, norm, right
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.projections import bias_corrected, is_tall, length, projected, random
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.random import key
from compiledopt.rules.rule import PLACE, rule


@rule(
    scalars=("step", "number"),
    initial={
        "number": PLACE,
        "random_left": left,
        "random_right": right,
        "exp_avg": moment,
        "exp_avg_sq": moment,
        "scaled_grad": norm,
    },
    static=("rank", "update_proj_gap"),
    branches=("first",),
    every={"due": ("update_proj_gap", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq",),
)
@with_maximize
def apollo_adamw(
    param,
    grad,
    step,
    number,
    random_left,
    random_right,
    exp_avg,
    exp_avg_sq,
    scaled_grad,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    rank,
    update_proj_gap,
    scale,
    scale_type,
    correct_bias,
    seed,
    due,
    first,
):
    plain = scaled_grad is None
    if not plain and (first or due):
        words = key(seed.long(), step.long(), number.long())
        random_left, random_right = random(words, random_left), random(words, random_right)
    low = grad if plain else projected(grad, random_left, random_right)
    update, exp_avg, exp_avg_sq = adam_direction(low, exp_avg, exp_avg_sq, betas=betas, eps=eps)
    corrected, kept = bias_corrected(lr, step + 1, betas, correct_bias), 1 - lr * weight_decay
    if plain:
        param = (param - corrected * update) * kept
    else:
        dims = (0, 1) if scale_type == "tensor" else (1,) if is_tall(param) else (0,)
        update = grad * (length(update, dims) / (length(low, dims) + 1e-8))
        size = length(update, (0, 1))
        bound = size.new_ones(1, 1) if first else limiter(size, scaled_grad, GROWTH)
        param = moved(param, update, kept=kept, size=kept * corrected * scale.sqrt() / bound)[0]
        scaled_grad = size / bound
    return param, step + 1, number, random_left, random_right, exp_avg, exp_avg_sq, scaled_grad


class APOLLOAdamW(Optimizer):
    """APOLLO: gradients as long as AdamW would make them, which a random projection to a low rank tells.

        every T steps  P ~ N(0, 1/r), r × the shorter side;  g = G·Pᵀ, or Pᵀ·G where rows are fewer
        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  u = m / (√v + ε);  U = G·‖u‖ / ‖g‖, of each row or column
        U ← U / max(1, ‖U‖ / (1.01·the last ‖U‖));  θ ← (1 − γ·λ)·(θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·√α·U)

    What is no matrix is AdamW's, and compiled; matrices of a group with rank=None as well. APOLLO-Mini is rank=1, scale=128,
    scale_type="tensor".
    rank (r): int, or None. update_proj_gap (T): int, steps. scale (α): float. scale_type: "channel", a factor for each line of
        the longer side, or "tensor", one. correct_bias: bool. seed: int, of the projections, which follow from it, from the
        step, and from the parameter's place in its group.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the projected gradient; `random_left` or `random_right` (P), and
        `scaled_grad`, the last ‖U‖, of matrices; `number`, a 0-dim float, the place.
    Good for: language models in the memory of SGD, with AdamW's curve; there is no singular value decomposition.
    Start: lr 1e-2, rank a quarter of the width, scale 1; or APOLLO-Mini.
    Names: those of the authors' package (zhuhanqing/APOLLO) for proj="random", proj_type="std", scale_front=False.
    Source: Zhu et al. 2024, arXiv:2412.05270.
    """

    rule = apollo_adamw
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
        scale: float = 1.0,
        scale_type: str = "channel",
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
        super().__init__(params, {**locals(), "seed": 0})

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["scale_type"] not in ("channel", "tensor"):
            raise ValueError(f"Invalid scale_type value: {group['scale_type']!r}; it is 'channel' or 'tensor'")
        super()._check_group(group)
