"""Schedule-Free SGD."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.algorithms.schedule_free import INITIAL, SHARED, moved, to_average, to_training, warmed_up, weighted
from compiledopt.arguments import Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


def _x(param, z, *, momentum):
    return to_average(param, z, momentum)


def _y(param, z, *, momentum):
    return to_training(param, z, momentum)


@rule(shared=SHARED, initial=INITIAL, branches=("weight_decay",), evaluated=(_x, _y))
@with_maximize
def sgd_schedule_free(param, grad, z, k, lr_max, weight_sum, *, lr, momentum, weight_decay, warmup_steps, r, weight_lr_power):
    lr = warmed_up(lr, k, warmup_steps)
    share, *counts = weighted(lr, k, lr_max, weight_sum, r, weight_lr_power)
    return *moved(param, z, with_decay(param, grad, weight_decay), lr, share, momentum), *counts


class SGDScheduleFree(Optimizer):
    """Schedule-Free SGD: gradient descent whose average needs no schedule of the rate.

        η = γ·min(1, k/warmup);  w = kʳ·η_max^p;  c = w / Σw;  z ← z − η·g(y);  x ← (1 − c)·x + c·z;  y = μ·x + (1 − μ)·z

    The parameter is y. momentum: (μ) float. warmup_steps: int. r, weight_lr_power: (p) floats.
    State: `z`, like the parameter; in each group: `k`, how many steps were taken, `lr_max`, `weight_sum`,
        `train_mode`.
    Good for: a whole run without a schedule of the rate, and any length of it; evaluate in `with optimizer.evaluating():`.
    Start: lr 10 to 50 times that of SGD with a schedule; some hundred warmup_steps.
    Names: those of the authors' package (schedulefree).
    Source: Defazio et al. 2024, arXiv:2405.15682.
    Deviations from schedulefree: a group begins in train mode; `state_dict` may be taken in either.
    """

    rule = sgd_schedule_free

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
