"""Kron (PSGD)."""

from __future__ import annotations

from typing import Any

from compiledopt.algorithms.annealing import is_due
from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.matrices import along
from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.whitening import factor, learned
from compiledopt.arguments import LR, MOMENTUM, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.random import key, normal
from compiledopt.rules.rule import PLACE, rule

PROBABILITY, SAVING = "preconditioner_update_probability", "memory_save_mode"
MODES = (None, "one_diag", "smart_one_diag", "all_diag")


@rule(
    scalars=("step", "number"),
    lists={"Q": lambda param: max(int(param.ndim), 1)},
    initial={"number": PLACE, "Q": factor},
    static=(PROBABILITY, SAVING, "max_size_triangular", "min_ndim_triangular", "precond_init_scale"),
    every={"due": is_due},
    elementwise=False,
)
@with_maximize
def kron(
    param,
    grad,
    step,
    number,
    momentum_buffer,
    Q,
    *,
    lr,
    momentum,
    weight_decay,
    preconditioner_update_probability,
    max_size_triangular,
    min_ndim_triangular,
    memory_save_mode,
    momentum_into_precond_update,
    precond_lr,
    precond_init_scale,
    seed,
    due,
):
    momentum_buffer = momentum_buffer.lerp(grad, 1 - momentum)
    debiased = momentum_buffer / (1 - momentum ** (step + 1))
    if due and grad.numel() > 0:
        noise = normal(key(seed.long(), step.long(), number.long()), grad.shape).to(grad)
        Q = learned(Q, debiased if momentum_into_precond_update else grad, noise, precond_lr)
    update = along(along(debiased, Q, back=True), Q)
    size = lr * (1.1 / ((update * update).mean().sqrt() + 1e-8)).clamp_max(1.0)
    return moved(param, update, kept=1 - lr * weight_decay, size=size)[0], step + 1, number, momentum_buffer, Q


class Kron(Optimizer):
    """Kron: PSGD, whose preconditioner is a triangular factor for each dimension, learned so that gradients become white.

        b ← μ·b + (1 − μ)·g;  b̂ = b / (1 − μᵗ);  now and then, with noise N ~ N(0, 1):
            A = Q₁·b̂·Q₂ᵀ,  B = Q₁⁻ᵀ·N·Q₂⁻¹;  Q₁ ← Q₁ − η·triu(A·Aᵀ − B·Bᵀ) / ‖A·Aᵀ + B·Bᵀ‖·Q₁,  Q₂ likewise
        U = Q₁ᵀ·Q₁·b̂·Q₂ᵀ·Q₂;  θ ← (1 − γ·λ)·θ − γ·U·min(1, 1.1 / rms U)

    preconditioner_update_probability: float, how often the factors are due, in every ⌈1/p⌉-th step; None: at each of the first
        500 steps, then ever less, to one of 34 at step 4000. max_size_triangular: int; longer dimensions have a diagonal.
    min_ndim_triangular: int; parameters of fewer dimensions have diagonals. memory_save_mode: None; "one_diag" for the longest
        dimension, "smart_one_diag" where it is longer than all others, "all_diag". momentum_into_precond_update: bool, b̂
        teaches the factors, or else g. precond_lr (η), precond_init_scale: floats. seed: int, of N, which follows from it, from
        the step, and from the parameter's place in its group.
    State: `momentum_buffer` (b), like the parameter; `Q_i`, n × n or n for each dimension of n; `number`, a 0-dim float, the
        place.
    Good for: noisy and ill-conditioned problems; there is no eigenvalue problem, and no accumulated product.
    Start: lr a third to a tenth of AdamW's, weight_decay as much larger, momentum 0.9.
    Names: timm's and kron_torch's, which balance the factors at random, update by update (here always; no update depends on
        it), and estimate ‖·‖ from below as here.
    Source: Li 2018, arXiv:1512.04202 and arXiv:2402.11858; https://github.com/evanatyourservice/kron_torch.
    """

    rule = kron
    bounds = (
        LR,
        MOMENTUM,
        WEIGHT_DECAY,
        Bound(PROBABILITY, f"Invalid {PROBABILITY} value", least=None, above=0.0, most=1.0, optional=True),
        Bound("precond_lr", "Invalid precond_lr value"),
        Bound("precond_init_scale", "Invalid precond_init_scale value", above=0.0, least=None),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        preconditioner_update_probability: float | None = None,
        max_size_triangular: int = 2048,
        min_ndim_triangular: int = 2,
        memory_save_mode: str | None = None,
        momentum_into_precond_update: bool = True,
        precond_lr: float = 0.1,
        precond_init_scale: float = 1.0,
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
        if group[SAVING] not in MODES:
            raise ValueError(f"Invalid {SAVING} value: {group[SAVING]!r}; it is one of {', '.join(map(repr, MODES))}")
        super()._check_group(group)
