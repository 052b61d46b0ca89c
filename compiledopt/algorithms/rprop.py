"""Rprop."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), initial={"step_size": "lr"})
@with_maximize
def rprop(param, grad, step, prev, step_size, *, lr, etas, step_sizes):
    agreement = grad * prev
    slower = torch.where(agreement < 0, etas[0] * step_size, step_size)
    step_size = torch.where(agreement > 0, etas[1] * step_size, slower)
    step_size = step_size.clamp_min(step_sizes[0]).clamp_max(step_sizes[1])
    grad = torch.where(agreement < 0, 0.0, grad)
    return param - grad.sign() * step_size, step + 1, grad, step_size


class Rprop(Optimizer):
    """Resilient backpropagation: a step size for each element, from the signs of its gradients alone.

        s ← clamp(s·η₊ where g·g' > 0, s·η₋ where g·g' < 0, else s);  g ← 0 where g·g' < 0;  θ ← θ − sign(g)·s;  g' ← g

    lr (s at first): float or 1-element tensor.
    etas (η₋, η₊): two floats, 0 < η₋ < 1 < η₊. step_sizes: two floats, the least and the largest s.
    State: `prev` (g') and `step_size` (s), like the parameter.
    Source: Riedmiller and Braun 1993.
    """

    rule = rprop

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        slower, faster = options["etas"][0], options["etas"][1]
        if not 0.0 < slower < 1.0 < faster:
            raise ValueError(f"Invalid eta values: {slower}, {faster}")
