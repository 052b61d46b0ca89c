"""FTRL."""

from __future__ import annotations

import torch

from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule()
@with_maximize
def ftrl(param, grad, z, n, *, lr, lr_power, beta, lambda_1, lambda_2):
    square = n + grad * grad
    z = z + grad - (square**-lr_power - n**-lr_power) / lr * param
    updated = (lambda_1 * torch.sign(z) - z) / ((beta + square.sqrt()) / lr + lambda_2)
    return torch.where(abs(z) <= lambda_1, 0.0, updated), z, square


class FTRL(Optimizer):
    """FTRL: follow the regularized leader; weights that are not needed become 0.

        n' = n + g²;  z ← z + g − (n'^(−p) − n^(−p)) / γ·θ;  n ← n'
        θ ← 0 where |z| ≤ λ₁, else (λ₁·sign(z) − z) / ((β + √n) / γ + λ₂)

    lr_power (p): float ≤ 0. beta (β), lambda_1 (λ₁), lambda_2 (λ₂): floats.
    State: `z` and `n`, like the parameter.
    Good for: sparse linear models of clicks, and their embeddings.
    Start: lr 0.1, beta 1, lambda_1 as many weights shall be 0.
    Names: pytorch_optimizer's. The formula gives what a parameter was at first up at the first step, here as there.
    Source: McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches".
    """

    rule = ftrl
    bounds = (
        Bound("lr", "Invalid learning rate", above=0.0, least=None),
        Bound("lr_power", "Invalid lr_power value", least=None, most=0.0),
        *(Bound(name, f"Invalid {name} value") for name in ("beta", "lambda_1", "lambda_2")),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        lr_power: float = -0.5,
        beta: float = 0.0,
        lambda_1: float = 0.0,
        lambda_2: float = 0.0,
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
