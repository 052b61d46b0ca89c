"""SOAP."""

from __future__ import annotations

import torch

from compiledopt.algorithms.across import gram
from compiledopt.algorithms.bases import eigenbasis, turned
from compiledopt.algorithms.directions import adam_direction, add_gram, moved_along, of_size_one
from compiledopt.algorithms.matrices import along
from compiledopt.algorithms.merging import dimensions_seen, matrix_seen, with_merge_dims
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(
    scalars=("step",),
    lists={"GG": dimensions_seen, "Q": dimensions_seen},
    initial={"GG": matrix_seen, "Q": matrix_seen},
    static=("max_precond_dim", "precondition_1d", "precondition_frequency", "merge_dims"),
    branches=("first",),
    every={"due": ("precondition_frequency", 1)},
    elementwise=False,
    never_negative=("exp_avg_sq",),
)
@with_maximize
@with_merge_dims
def soap(
    param,
    grad,
    step,
    exp_avg,
    exp_avg_sq,
    GG,
    Q,
    *,
    lr,
    betas,
    shampoo_beta,
    eps,
    weight_decay,
    max_precond_dim,
    precondition_1d,
    precondition_frequency,
    normalize_grads,
    correct_bias,
    due,
    first,
):
    beta = torch.where(shampoo_beta >= 0, shampoo_beta, betas[1])
    plain = all(matrix is None for matrix in GG)
    if not plain and first:
        GG = [None if old is None else (1 - beta) * gram(grad, index) for index, old in enumerate(GG)]
        return param, step + 1, exp_avg, exp_avg_sq, GG, [None if old is None else eigenbasis(old) for old in GG]
    update, exp_avg, exp_avg_sq = adam_direction(grad if plain else along(grad, Q), exp_avg, exp_avg_sq, betas=betas, eps=eps)
    since = step.clamp_min(1.0)  # without the first
    size = lr * (1 - betas[1] ** since) ** 0.5 / (1 - betas[0] ** since) if correct_bias else lr
    if normalize_grads:
        update = of_size_one(update if plain else along(update, Q, back=True))
    if plain:  # the first gradient is left out here as well
        param = (param - (1.0 - first) * size * update) * (1 - (1.0 - first) * lr * weight_decay)
        return param, step + 1, (1.0 - first) * exp_avg, (1.0 - first) * exp_avg_sq, GG, Q
    param = moved_along(
        param,
        update,
        [None] * len(Q) if normalize_grads else Q,
        1 - lr * weight_decay,
        (1 - lr * weight_decay) * size,
        back=True,
    )
    GG = [None if old is None else add_gram(old, grad, index, beta, 1 - beta) for index, old in enumerate(GG)]
    if due:
        Q, exp_avg, exp_avg_sq = turned(GG, Q, exp_avg, exp_avg_sq)
    return param, step + 1, exp_avg, exp_avg_sq, GG, Q


class SOAP(Optimizer):
    """SOAP: Adam in the eigenbasis of Shampoo's matrices.

        L ← β·L + (1 − β)·G·Gᵀ;  R ← β·R + (1 − β)·Gᵀ·G;  every k steps  Q_L ← QR(L·Q_L), Q_R ← QR(R·Q_R)
        g = Q_Lᵀ·G·Q_R;  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²
        θ ← (1 − γ·λ)·(θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·Q_L·(m / (√v + ε))·Q_Rᵀ)

    Of more dimensions each has a matrix. The first gradient makes the bases alone (by eigenvectors), and moves nothing; t
    counts from the second. m is kept in the bases, and turned with them.
    shampoo_beta (β): float; below 0 it is β₂. precondition_frequency (k): int. max_precond_dim: int; longer dimensions have no
        matrix. merge_dims: bool, whether neighbouring dimensions are one, for as long as that is not longer than
        max_precond_dim, as for kernels of convolutions. precondition_1d: bool, whether vectors have a matrix; without they are
        Adam's, and compiled. normalize_grads: bool, divide each update by its root mean square. correct_bias: bool.
    State: `exp_avg` (m) and `exp_avg_sq` (v), like the parameter, `GG_i` and `Q_i`, n × n for each dimension of n.
    Good for: language and vision models where steps are dear: fewer of them than AdamW's, by 40% in the paper.
    Start: lr 3e-3, betas (0.95, 0.95), weight_decay 0.01, precondition_frequency 10; one for the smallest models.
    Names: those of the authors' package (nikhilvyas/SOAP), without data_format: what lies in memory with its channels last has
        the shape of any other; bases are due at the steps of a group, not of each parameter.
    Source: Vyas et al. 2024, arXiv:2409.11321.
    """

    rule = soap
    bounds = (
        *BOUNDS,
        Bound("shampoo_beta", "Invalid shampoo_beta value", least=None, below=1.0),
        Bound("precondition_frequency", "Invalid precondition_frequency value", least=1.0),
        Bound("max_precond_dim", "Invalid max_precond_dim value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = -1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
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
