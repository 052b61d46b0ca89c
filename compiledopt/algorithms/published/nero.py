"""Nero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import balanced, one_number, over_all, over_rest
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _per_neuron(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.dim() < 2 else param.new_zeros((param.size(0), *(1,) * (param.dim() - 1)))


def formed(param: Tensor) -> Tensor:
    """The same, but that a row of that form stays as it is to the bit, as in a run that goes on."""
    near = 8 * torch.finfo(param.dtype).eps
    done = (abs(over_rest(param, "mean")) <= near) & (abs(over_rest(param * param, "sum").sqrt() - 1) <= near)
    return torch.where(done, param, balanced(param))


@rule(scalars=("step",), initial={"exp_avg_sq": _per_neuron, "scale": one_number}, elementwise=False)
@with_maximize
def nero(param, grad, step, exp_avg_sq, scale, *, first, lr, beta, constraints):
    step = step + 1
    rows, square = param.ndim > 1, grad * grad
    if rows and constraints:
        size = torch.ones_like(scale)
    else:
        size = over_all(over_rest(param * param, "sum").sqrt() if rows else abs(param), "mean")
    scale = torch.where(first > 0, torch.where(size > 0, size, 0.01), scale)
    exp_avg_sq = beta * exp_avg_sq + (1 - beta) * (over_rest(square, "sum") if rows else square)
    root = (exp_avg_sq / (1 - beta**step)).sqrt()
    param = param - lr * scale * torch.where(root > 0, grad / torch.where(root > 0, root, 1.0), 0.0)
    return balanced(param) if rows and constraints else param, step, exp_avg_sq, scale


class Nero(Optimizer):
    """Nero: each neuron turns by the same angle at every step; its weights have a mean of 0 and a length of 1.

        v ← β·v + (1 − β)·‖g‖²;  θ ← θ − γ·s·g / √v̂   with  v̂ = v / (1 − βᵗ),  for each row of θ
        θ ← θ − mean θ;  θ ← θ / ‖θ‖,  for each row;  s = mean ‖θ‖ over the rows at first, 1 here; 0.01 where it is 0

    beta (β): float. constraints: False leaves out the second line. The elements of a vector are neurons of their own, and free.
    The constraints hold from when the optimizer is made: that writes the parameters.
    State: `exp_avg_sq` (v), one number per row, like the parameter for a vector; `scale` (s), one number with the
        parameter's dimensions.
    Good for: GANs, deep nets and reinforcement learning without a search for the rate, in the memory of gradient descent.
    Start: lr 0.01.
    Names: those of the authors' package (jxbz/nero).
    Source: Liu et al. 2021, arXiv:2102.07227.
    Deviations from nero: a row whose elements are all alike, one of one element say, stays as it is, and is not divided by 0.
    """

    rule = nero
    bounds = (LR, Bound("beta", "Invalid beta value", below=1.0))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        beta: float = 0.999,
        constraints: bool = True,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose matrices are given the form that they keep, where it has constraints. Mutates: its parameters."""
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if self.param_groups[-1]["constraints"] and param.dim() > 1 and param.numel() > 0 and not param.is_complex():
                param.copy_(formed(param))
