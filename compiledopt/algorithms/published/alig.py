"""AliG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(optional={"momentum_buffer": "momentum"})
@with_maximize
def alig(param, grad, momentum_buffer, *, lr, momentum, eps, adjusted_momentum, loss):
    size = lr if loss is None else torch.minimum(loss / (total(grad * grad) + eps), lr)
    ahead = 0.0
    if momentum_buffer is not None:
        momentum_buffer = momentum * momentum_buffer - (grad if adjusted_momentum else size * grad)
        ahead = momentum * (size * momentum_buffer if adjusted_momentum else momentum_buffer)
    return param - size * grad + ahead, momentum_buffer


class AliG(Optimizer):
    """AliG: gradient descent whose rate follows from the loss, for models that can bring it to 0.

        s = min(f / (‖g‖² + ε), γ),  f the loss, ‖g‖ over all parameters;  m ← μ·m − s·g;  θ ← θ − s·g + μ·m
        or with adjusted_momentum  m ← μ·m − g;  θ ← θ − s·g + s·μ·m

    lr (γ): the largest rate. loss (f): float, what a step without a closure takes; step(closure) puts the closure's there.
    State: `momentum_buffer` (m), like the parameter, where momentum is not 0.
    Good for: models that interpolate their data: no schedule; a penalty is to be a constraint, since it keeps the loss above 0.
    Start: lr 0.1, momentum 0.9 for deep nets; step(lambda: loss).
    Names: those of the authors' package (oval-group/ali-g) without `projection_fn`; `lr` is its `max_lr`, which it has none of.
    Source: Berrada et al. 2020, arXiv:1906.05661.
    """

    rule = alig
    bounds = (*BOUNDS, Bound("loss", "Invalid loss value", optional=True))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 0.1,
        momentum: float = 0.0,
        eps: float = 1e-5,
        adjusted_momentum: bool = False,
        loss: float | None = None,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As every optimizer's, with the loss that the closure returns (`lambda: loss` will do); on a GPU it is waited for.

        Raises: RuntimeError where there is neither a closure nor a loss in the groups.
        """
        if closure is None:
            if any(group["loss"] is None for group in self.param_groups):
                raise RuntimeError("AliG.step needs the loss: step(closure), or group['loss'] = loss.item() in each group")
            return super().step()  # type: ignore[call-overload,no-any-return]

        def told() -> Any:
            loss = closure()
            for group in self.param_groups:
                group["loss"] = loss.item() if isinstance(loss, torch.Tensor) else float(loss)
            return loss

        return super().step(told)
