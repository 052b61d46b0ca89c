"""Adagrad."""

from __future__ import annotations

from compiledopt.algorithms.parts import with_decay, with_maximize
from compiledopt.arguments import EPS, LR, WEIGHT_DECAY, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(scalars=("step",), initial={"sum": "initial_accumulator_value"}, branches=("weight_decay",), sparse="rows")
@with_maximize
def adagrad(param, grad, step, sum, *, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    grad = with_decay(param, grad, weight_decay)
    sum = sum + grad * grad
    param = param - lr / (1 + step * lr_decay) * grad / (sum.sqrt() + eps)
    return param, step + 1, sum


class Adagrad(Optimizer):
    """Adagrad: steps scaled by the sum of all squared gradients so far.

        g ← ∇f(θ) + λ·θ;  s ← s + g²;  θ ← θ − γ / (1 + (t − 1)·η) · g / (√s + ε)

    lr_decay (η): float, by which the rate falls with the steps. initial_accumulator_value: float, s at first.
    State, made with the optimizer: `sum` (s), like the parameter.
    Source: Duchi, Hazan and Singer 2011.
    Sparse gradients are taken where weight_decay is 0: the rows they name are updated. Deviations from torch: none.
    """

    rule = adagrad
    bounds = (
        LR,
        Bound("lr_decay", "Invalid lr_decay value"),
        WEIGHT_DECAY,
        Bound("initial_accumulator_value", "Invalid initial_accumulator_value value"),
        EPS,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        super().__init__(params, locals())
        self.make_states()

    def share_memory(self) -> None:
        """Move the states into memory that processes share, as `model.share_memory()` does the parameters. Mutates: `state`."""
        for state in self.state.values():
            for value in state.values():
                value.share_memory_()
