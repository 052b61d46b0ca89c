"""SophiaH."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compiledopt.algorithms.curvature import take_hessian
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def sophiah(param, grad, momentum, hessian_moment, *, lr, betas, weight_decay, p, eps):
    momentum = momentum.lerp(grad, 1 - betas[0])
    update = torch.minimum(torch.maximum(momentum / hessian_moment.clamp_min(eps), -p), p)
    return param * (1 - lr * weight_decay) - lr * update, momentum, hessian_moment


class SophiaH(Optimizer):
    """SophiaH: momentum divided by the diagonal of the Hessian, each element's step clipped.

        m ← β₁·m + (1 − β₁)·g;  θ ← (1 − γ·λ)·θ − γ·clip(m / max(h, ε), ±p)
        and in update_hessian, with z ~ N(0, 1):  h ← β₂·h + (1 − β₂)·z·(H·z)

    p: float, the largest step over lr.
    State: `momentum` (m) and `hessian_moment` (h), like the parameter.
    Good for: what SophiaG is good for, where there are no labels to draw; every tenth step costs a second backward.
    Start: lr 0.06 with p 0.01, betas (0.96, 0.99); call update_hessian every ten steps.
    Names: pytorch_optimizer's without `update_period` and the like, whose step differentiates by itself.
    Source: Liu et al. 2023, arXiv:2305.14342.
    """

    rule = sophiah
    bounds = (*BOUNDS, Bound("p", "Invalid p value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 6e-2,
        betas: tuple[float, float] = (0.96, 0.99),
        weight_decay: float = 0.0,
        p: float = 1e-2,
        eps: float = 1e-12,
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

    def update_hessian(self, hessian: Iterable[Tensor] | None = None, n_samples: int = 1) -> None:
        """Take estimates of the Hessian's diagonal into their average: every ten steps or so, after
        `loss.backward(create_graph=True)`.

        hessian: one tensor for each parameter with a gradient, shaped like it, in the order of the groups; or None, for
        Hutchinson's estimate from n_samples random directions, which costs as many backward passes.
        Mutates: state["hessian_moment"].
        Raises: RuntimeError where the gradients have no graph, ValueError for other shapes.
        """
        take_hessian(self, "hessian_moment", hessian, torch.randn_like, n_samples, squared=False)
