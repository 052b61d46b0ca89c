"""DoG."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.totals import total


@rule(
    shared={"rbar": "group", "G": "group", "k": "group"},
    initial={"init_buffer": lambda param: param.clone(), "G": "eps"},
    branches=("weight_decay",),
)
@with_maximize
def dog(param, grad, init_buffer, rbar, G, k, *, reps_rel, lr, weight_decay, eps, init_eta):
    start = param
    grad = with_decay(param, grad, weight_decay)
    moved = torch.sqrt(total((start - init_buffer) * (start - init_buffer), over="group"))
    least = reps_rel * (1 + torch.sqrt(total(init_buffer * init_buffer, over="group"))) if init_eta is None else 0.0
    rbar = torch.where(k == 0, least, torch.maximum(rbar, moved))
    G = G + total(grad * grad, over="group")
    eta = lr * rbar / torch.sqrt(G)
    if init_eta is not None:
        eta = torch.where(k == 0, init_eta, eta)
    return param - eta * grad, init_buffer, rbar, G, k + 1


class DoG(Optimizer):
    """DoG: gradient descent whose rate is the distance from the start over the gradients so far.

        r ← max(r, ‖θ − θ₀‖),  at first reps_rel·(1 + ‖θ₀‖);  G ← G + ‖g‖²,  from ε on,  norms over the group
        θ ← θ − γ·r/√G·g

    reps_rel: float, the first step over 1 + ‖θ₀‖; 1e-4 with batch normalization. init_eta: float, the first rate, in its place.
    State: `init_buffer` (θ₀), like the parameter; in each group: `rbar` (r), `G`, and `k`, how many steps were taken.
    Good for: gradient descent without a search for the rate; with ema_decay, since the paper averages.
    Start: lr 1.
    Names: those of the authors' package (formll/dog).
    Source: Ivgi et al. 2023, arXiv:2302.12022.
    Deviations from dog: parameters without a gradient do not count in the norms; the start is a state of each parameter.
    """

    rule = dog
    bounds = (*BOUNDS, Bound("reps_rel", "Invalid reps_rel value", above=0.0, least=None))

    def __init__(
        self,
        params: ParamsT,
        reps_rel: float = 1e-6,
        lr: LearningRate = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        init_eta: float | None = None,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
