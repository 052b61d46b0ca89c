"""Shampoo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.directions import add_gram, moved, moved_along
from compiledopt.algorithms.matrices import along, dimensions, square
from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.spectra import inverse_root
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule

LIMIT = "max_preconditioner_dim"
_matrix = square(LIMIT)


def _first(param: Tensor, index: int, options: dict[str, Any]) -> Tensor | None:
    """ε on the diagonal."""
    return square(LIMIT, options["matrix_eps"])(param, index, options)


@rule(
    lists={"pre_cond": dimensions, "inv_pre_cond": dimensions},
    initial={"pre_cond": _first, "inv_pre_cond": _matrix},
    optional={"momentum_buffer": "momentum"},
    static=(LIMIT, "preconditioning_compute_steps", "matrix_eps"),
    scalars=("step",),
    branches=("weight_decay", "momentum", "first"),
    every={"due": ("preconditioning_compute_steps", 1)},
    elementwise=False,
)
@with_maximize
def shampoo(
    param,
    grad,
    step,
    momentum_buffer,
    pre_cond,
    inv_pre_cond,
    *,
    lr,
    momentum,
    weight_decay,
    weight_decouple,
    beta2,
    preconditioning_compute_steps,
    matrix_eps,
    max_preconditioner_dim,
    grafting,
    due,
    first,
):
    kept = 1 - lr * weight_decay if weight_decouple else 1.0
    grad = grad if weight_decouple else with_decay(param, grad, weight_decay)
    share, order = torch.where(beta2 < 1, 1 - beta2, 1.0), 2 * sum(each is not None for each in pre_cond)
    pre_cond = [None if old is None else add_gram(old, grad, i, beta2, share) for i, old in enumerate(pre_cond)]
    if order and (first or due):
        inv_pre_cond = [None if new is None else inverse_root(new, order, matrix_eps) for new in pre_cond]
    if order and not grafting and momentum_buffer is None:
        return moved_along(param, grad, inv_pre_cond, kept, lr), step + 1, None, pre_cond, inv_pre_cond
    update = along(grad, inv_pre_cond) if order else grad
    if grafting:
        update = update * (grad.norm() / (update.norm() + 1e-16))
    if momentum_buffer is not None:
        momentum_buffer = update = momentum * momentum_buffer + update
    return moved(param, update, kept=kept, size=lr)[0], step + 1, momentum_buffer, pre_cond, inv_pre_cond


class Shampoo(Optimizer):
    """Shampoo: a gradient divided by the roots of its own products, one matrix for each dimension.

        g ← g + λ·θ;  L ← β₂·L + w·G·Gᵀ;  R ← β₂·R + w·Gᵀ·G,  w = 1 for β₂ = 1 and 1 − β₂ else;  both begin at ε·1
        U = L^(−1/4)·G·R^(−1/4);  b ← μ·b + U;  θ ← θ − γ·b

    Of k dimensions with a matrix the exponent is −1/(2·k). The roots are renewed every preconditioning_compute_steps.
    beta2 (β₂): float of 0 to 1; 1 sums, as the paper. matrix_eps (ε): float > 0, also the least eigenvalue.
    max_preconditioner_dim: int; longer dimensions have no matrix. weight_decouple: bool, θ ← (1 − γ·λ)·θ instead.
    grafting: bool, give U the length of g, so that lr is as SGD's.
    State: `pre_cond_i` (L, R) and `inv_pre_cond_i` (their roots), n × n for each dimension of n; `momentum_buffer` (b) with
        momentum, like the parameter.
    Good for: ill-conditioned matrices, where steps are dear; SOAP is easier to tune.
    Start: lr as SGD's with grafting=True, momentum 0.9, beta2 0.99, preconditioning_compute_steps 10 to 100.
    Names: those of pytorch_optimizer, whose momentum mixes the last update into the gradient, and whose matrices see that.
    Source: Gupta et al. 2018, arXiv:1802.09568; grafting: Agarwal et al. 2020, arXiv:2002.11803.
    """

    rule = shampoo
    bounds = (
        *BOUNDS,
        Bound("beta2", "Invalid beta2 value", most=1.0),
        Bound("matrix_eps", "Invalid matrix_eps value", above=0.0),
        Bound("preconditioning_compute_steps", "Invalid preconditioning_compute_steps value", least=1.0),
        Bound("max_preconditioner_dim", "Invalid max_preconditioner_dim value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        beta2: float = 1.0,
        preconditioning_compute_steps: int = 1,
        matrix_eps: float = 1e-6,
        max_preconditioner_dim: int = 8192,
        grafting: bool = False,
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
