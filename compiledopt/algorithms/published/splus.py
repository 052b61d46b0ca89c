"""SPlus."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compiledopt.algorithms.bases import eigenbasis
from compiledopt.algorithms.directions import add_gram, moved, moved_along
from compiledopt.algorithms.matrices import along, square
from compiledopt.algorithms.muon import averaged
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.pieces import piece
from compiledopt.rules.rule import rule


def _size(param: Tensor, max_dim: int, constant: Any) -> Any:
    """2 / (rows + columns) of a matrix, and a constant of what has long dimensions or is none."""
    return 2 / sum(param.shape) if param.ndim == 2 and max(param.shape) <= max_dim else constant


@piece("direction")
def _sign(average: Any) -> Any:
    return average.sign()


@piece("param", "ema")
def _kept(param: Any, ema: Any, *, share: Any, kept: Any) -> tuple[Any, Any]:
    """(θ after its decay, the average with θ before)."""
    return kept * param, ema.lerp(param.to(ema.dtype), share)


@rule(
    scalars=("step",),
    lists=dict.fromkeys(("sides", "q_sides"), lambda param: 2 * (param.ndim == 2)),
    initial={"sides": square("max_dim"), "q_sides": square("max_dim", 1.0)},
    static=("max_dim", "inverse_every"),
    branches=("first",),
    every={"due": "inverse_every"},
    evaluated="ema",
    elementwise=False,
)
@with_maximize
def splus(
    param, grad, step, momentum, ema, sides, q_sides,
    *, lr, b1, b2, ema_rate, inverse_every, weight_decay, max_dim, nonstandard_constant, due, first,
):  # fmt: skip
    step = step + 1
    size = lr * _size(param, max_dim, nonstandard_constant)
    average, momentum = averaged(grad, momentum, momentum=b1, nesterov=False)
    (update,) = _sign(along(average, q_sides) if sides else average)
    (param,) = (
        (moved_along(param, update, q_sides, 1.0, size, back=True),) if sides else moved(param, update, kept=1.0, size=size)
    )
    share = (1 - ema_rate) / (1 - ema_rate**step)
    param, ema = _kept(param, ema, share=share, kept=1 - size * weight_decay)
    sides = [None if old is None else add_gram(old, grad, index, b2, 1 - b2) for index, old in enumerate(sides)]
    if sides and (first or due):
        q_sides = [None if new is None else eigenbasis(new) for new in sides]
    return param, step, momentum, ema, sides, q_sides


class SPlus(Optimizer):
    """SPlus: the sign of the momentum in the eigenbases of Shampoo's matrices, and an average to evaluate.

        m ← β₁·m + (1 − β₁)·G;  θ ← θ − η·Q_L·sign(Q_Lᵀ·m·Q_R)·Q_Rᵀ,  η = γ·2 / (rows + columns)
        a ← ρ·a + (1 − ρ)·θ, and â = a / (1 − ρᵗ);  θ ← (1 − η·λ)·θ
        L ← β₂·L + (1 − β₂)·G·Gᵀ;  R ← β₂·R + (1 − β₂)·Gᵀ·G;  after the first and every k steps  Q = the eigenvectors

    What is no matrix has no bases, and η = γ·c, as matrices with a longer side than max_dim. It is evaluated at â: within
    `with optimizer.evaluating():`, or after eval() and before train().
    b1 (β₁), b2 (β₂), ema_rate (ρ): floats. inverse_every (k): int. max_dim: int; longer dimensions have no matrix.
        nonstandard_constant (c): float.
    State: `momentum` (m) and `ema` (â), like the parameter; `sides_i` (L, R) and `q_sides_i` (Q), n × n for each dimension of
        n, of matrices.
    Good for: language, vision and diffusion models where steps are dear; one learning rate for every width.
    Start: lr 0.1 to 0.3, weight_decay 0.01, inverse_every 100.
    Names: those of the authors' code (kvfrans/splus).
    Source: Frans et al. 2025, arXiv:2506.07254.
    Deviations from splus: `ema` is kept as it is evaluated; no eps, which moves all eigenvalues and no eigenvector; bases are
    due at the steps of a group, not of each parameter.
    """

    rule = splus
    bounds = (
        LR,
        WEIGHT_DECAY,
        Bound("b1", "Invalid b1 value", below=1.0),
        Bound("b2", "Invalid b2 value", below=1.0),
        Bound("ema_rate", "Invalid ema_rate value", below=1.0),
        Bound("inverse_every", "Invalid inverse_every value", least=1.0),
        Bound("max_dim", "Invalid max_dim value"),
        Bound("nonstandard_constant", "Invalid nonstandard_constant value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-1,
        b1: float = 0.9,
        b2: float = 0.999,
        ema_rate: float = 0.999,
        inverse_every: int = 100,
        weight_decay: float = 1e-2,
        max_dim: int = 10000,
        nonstandard_constant: float = 0.001,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
