"""Fromage."""

from __future__ import annotations

from torch import Tensor

from compiledopt.algorithms.parts import with_maximize
from compiledopt.algorithms.reduced import trust_ratio
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _largest_norm(param: Tensor, options: dict[str, float]) -> Tensor:
    norm: Tensor = param.norm()
    return norm.reshape((1,) * param.dim()) * options["p_bound"]


@rule(optional={"max": "p_bound"}, initial={"max": _largest_norm}, elementwise=False)
@with_maximize
def fromage(param, grad, max, *, lr, p_bound):
    param = (param - lr * trust_ratio(param.norm(), grad.norm()) * grad) / (1 + lr**2) ** 0.5
    if max is not None:
        param = param * (max / param.norm()).clamp_max(1.0)
    return param, max


class Fromage(Optimizer):
    """Fromage: each layer turns by the same angle at every step, whatever its gradient.

        θ ← (θ − γ·‖θ‖ / ‖g‖·g) / √(1 + γ²), with 1 for the ratio where either norm is 0;  then  ‖θ‖ ≤ p_bound·‖θ₀‖, if given

    p_bound: float, or None for no bound on a layer's norm.
    State: `max` (p_bound·‖θ₀‖), one number with the parameter's dimensions, where p_bound is given.
    Good for: GANs and deep nets without a search for the rate: lr is how much a layer may change.
    Start: lr 0.01, divided by ten when the loss stands.
    Names: those of the authors' package (jxbz/fromage).
    Source: Bernstein et al. 2020, arXiv:2002.03432.
    """

    rule = fromage
    bounds = (LR, Bound("p_bound", "Invalid p_bound value", optional=True))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        p_bound: float | None = None,
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
