"""Adam for sparse gradients."""

from __future__ import annotations

from dataclasses import replace

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.arguments import BETA, EPS, LR, LearningRate, ParamsT
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), sparse="rows", dense=False)
@with_maximize
def sparse_adam(param, grad, step, exp_avg, exp_avg_sq, *, lr, betas, eps):
    step = step + 1
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, betas)
    size = lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step)
    return param - size * exp_avg / (exp_avg_sq.sqrt() + eps), step, exp_avg, exp_avg_sq


class SparseAdam(Optimizer):
    """Adam on the rows that a sparse gradient names; nothing else is read or written.

        in those rows:  m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·g²;  θ ← θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·m / (√v + ε)

    params: dense ones. State: `exp_avg` (m), `exp_avg_sq` (v), like the parameter.
    Raises: ValueError for sparse or complex parameters, RuntimeError at the step for dense gradients.
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    Deviations from torch: `step` is a tensor, as in every other algorithm; torch's number is taken when it is loaded.
    """

    rule = sparse_adam
    bounds = (*(replace(bound, least=None, above=0.0) for bound in (LR, EPS)), BETA.element(0), BETA.element(1))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, locals())
        params_of = [(i, j, p) for i, group in enumerate(self.param_groups) for j, p in enumerate(group["params"])]
        sparse = [[i, j] for i, j, p in params_of if p.is_sparse]
        if sparse:
            raise ValueError(f"Sparse params at indices {sparse}: SparseAdam requires dense parameter tensors")
        if complex_ := [[i, j] for i, j, p in params_of if p.is_complex()]:
            raise ValueError(f"Complex params at indices {complex_}: SparseAdam does not support complex parameters")
