"""Distributed Shampoo."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.annealing import is_due_from_start, is_early
from compiledopt.algorithms.block_matrices import followed, matrices, preconditioned, roots, seen
from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.grafting import GRAFTS, averaged, grafted, kept_for
from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule

FREQUENCY = "precondition_frequency"


@rule(
    scalars=("step",),
    lists=dict.fromkeys(("factor_matrices", "inv_factor_matrices"), lambda param, options: len(seen(param, options))),
    initial={"factor_matrices": matrices(0.0), "inv_factor_matrices": matrices(1.0), "grafting": kept_for},
    static=("max_preconditioner_dim", FREQUENCY, "start_preconditioning_step"),
    branches=("weight_decay",),
    every={"due": is_due_from_start, "early": is_early},
    elementwise=False,
    never_negative=("grafting",),
)
@with_maximize
def distributed_shampoo(
    param, grad, step, filtered_grad, grafting, factor_matrices, inv_factor_matrices,
    *, lr, betas, beta3, epsilon, weight_decay, use_decoupled_weight_decay, max_preconditioner_dim, precondition_frequency,
    start_preconditioning_step, use_bias_correction, use_merge_dims, graft_type, grafting_beta2, grafting_epsilon, due, early,
):  # fmt: skip
    step, most, (beta1, beta2) = step + 1, max_preconditioner_dim, betas
    grad = grad if use_decoupled_weight_decay else with_decay(param, grad, weight_decay)
    shape = seen(param, {"max_preconditioner_dim": most, "use_merge_dims": use_merge_dims})
    factor_matrices = followed(factor_matrices, grad.reshape(shape), most, beta2)
    if due:
        size = torch.where(beta2 < 1, 1 - beta2**step, 1.0) if use_bias_correction else 1.0
        inv_factor_matrices = roots(factor_matrices, size, epsilon)
    now = torch.where(beta3 < 0, beta1, beta3)
    size = 1 - now * beta1 ** (step - 1) if use_bias_correction else 1.0
    mean, filtered_grad = averaged(grad, filtered_grad, beta=beta1, now=now, size=size)
    update, grafting = grafted(mean, grad, grafting, graft_type, grafting_beta2, grafting_epsilon, step)
    if not early or graft_type is None:
        graft = None if graft_type is None else update.reshape(shape)
        update = preconditioned(mean.reshape(shape), inv_factor_matrices, most, graft).reshape(param.shape)
    (param,) = moved(param, update, kept=1 - lr * weight_decay if use_decoupled_weight_decay else 1.0, size=lr)
    return param, step, filtered_grad, grafting, factor_matrices, inv_factor_matrices


class DistributedShampoo(Optimizer):
    """Distributed Shampoo: Shampoo on blocks of the parameters, each as long as another method would step.

        L ← β₂·L + w·G·Gᵀ;  R ← β₂·R + w·Gᵀ·G of each block, w = 1 for β₂ = 1 and 1 − β₂ else; all begin at 0
        every k steps  A = (L / (1 − β₂ᵗ) + ε·1)^(−1/4), B likewise of R;  m ← β₁·m + (1 − β₁)·G;  m̂ = m / (1 − β₁ᵗ)
        V ← that of the other method;  P = m̂ / (√V + ε'),  U = A·m̂·B·‖P‖ / ‖A·m̂·B‖;  θ ← (1 − γ·λ)·θ − γ·U

    Of k dimensions the exponent is −1/(2·k). Until start_preconditioning_step U = P, or without another method A = B = 1.
    betas: (β₁, β₂) two floats, β₂ of 0 to 1; 1 sums. beta3: float, β₁ in m̂ alone (Nesterov-like); −1 is β₁. epsilon (ε): float.
    max_preconditioner_dim: int, the longest side of a block. use_merge_dims: bool, whether neighbouring dimensions are one, for
        as long as a block is not longer. precondition_frequency (k): int. start_preconditioning_step: int; −1 is k.
    graft_type: None, or the other method: "sgd" P = m̂, "adagrad" V = Σ g², "rmsprop" an average of it, "adam" that corrected.
        grafting_beta2, grafting_epsilon (ε'): floats, of it. use_bias_correction: bool. use_decoupled_weight_decay: False adds
        λ·θ to the gradient instead.
    State: `filtered_grad` (m) and, but for "sgd" and None, `grafting` (V), like the parameter; `factor_matrices_i` (L, R) and
        `inv_factor_matrices_i` (A, B), blocks × n × n for blocks of n.
    Good for: models whose matrices are too large for Shampoo's; AlgoPerf's winner of 2024 with external tuning.
    Start: AdamW's lr, betas, weight_decay with graft_type="adam" and grafting_beta2 = β₂; precondition_frequency 50 to 100.
    Names: those of the authors' package (facebookresearch/optimizers), with the fields of its grafting_config as options.
    Source: Shi et al. 2023, arXiv:2309.06497; Anil et al. 2020, arXiv:2002.09018; grafting: Agarwal et al. 2020,
        arXiv:2002.11803.
    Deviations from distributed_shampoo: blocks at an end have matrices as large as the others'; nothing is distributed but by
    DTensors; neither iterate averaging nor eigenvalue correction ('soap' is the latter).
    """

    rule = distributed_shampoo
    bounds = (
        *BOUNDS[:3],
        Bound("betas", "Invalid beta parameter at index 1", above=0.0, least=None, most=1.0, index=1),
        *BOUNDS[5:],
        Bound("beta3", "Invalid beta3 value", least=-1.0, below=1.0),
        Bound("epsilon", "Invalid epsilon value"),
        Bound("max_preconditioner_dim", "Invalid max_preconditioner_dim value", least=1.0),
        Bound(FREQUENCY, f"Invalid {FREQUENCY} value", least=1.0),
        Bound("start_preconditioning_step", "Invalid start_preconditioning_step value", least=-1.0),
        Bound("grafting_beta2", "Invalid grafting_beta2 value", most=1.0),
        Bound("grafting_epsilon", "Invalid grafting_epsilon value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        betas: tuple[float, float] = (0.9, 1.0),
        beta3: float = -1.0,
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        use_decoupled_weight_decay: bool = True,
        max_preconditioner_dim: int = 1024,
        precondition_frequency: int = 1,
        start_preconditioning_step: int = -1,
        use_bias_correction: bool = True,
        use_merge_dims: bool = True,
        graft_type: str | None = None,
        grafting_beta2: float = 0.999,
        grafting_epsilon: float = 1e-8,
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
        if group["graft_type"] is not None and group["graft_type"] not in GRAFTS:
            raise ValueError(f"Invalid graft_type value: {group['graft_type']!r}; it is None or one of {', '.join(GRAFTS)}")
        super()._check_group(group)
