"""AdamMini."""

from __future__ import annotations

from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import over_rest
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _per_row(param: Tensor) -> Tensor:
    """One number per row of a matrix or kernel; one for a vector."""
    return param.new_zeros([size if index == 0 < param.dim() - 1 else 1 for index, size in enumerate(param.shape)])


@rule(scalars=("step",), initial={"vmean": _per_row}, elementwise=False)
@with_maximize
def adam_mini(param, grad, step, m, vmean, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    step = step + 1
    square = grad * grad
    m = m.lerp(grad, 1 - beta1)
    vmean = vmean.lerp(over_rest(square, "mean"), 1 - beta2)
    size = lr / (1 - beta1**step) / (vmean.sqrt() / (1 - beta2**step) ** 0.5 + eps)
    return param * (1 - lr * weight_decay) - size * m, step, m, vmean


class AdamMini(Optimizer):
    """AdamMini: AdamW with one second moment for each output neuron, instead of one for each weight.

        m ← β₁·m + (1 − β₁)·g;  v ← β₂·v + (1 − β₂)·mean(g²), over all dimensions but the first, or over a whole vector
        θ ← (1 − γ·λ)·θ − γ·m̂ / (√v̂ + ε)   with  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    State: `m`, like the parameter, and `vmean` (v), one number per row.
    Good for: language models that do not fit with AdamW: half of its state, and about its curve.
    Start: all as AdamW's, betas (0.9, 0.95).
    Names: those of the authors' package (zyushun/Adam-mini). Theirs tells blocks by parameters' names, and takes queries and
        keys head by head; here every row of every matrix is a block, as their paper has it for all others.
    Source: Zhang et al. 2024, arXiv:2406.16793.
    """

    rule = adam_mini

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
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
