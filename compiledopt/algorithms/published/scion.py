"""Scion."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.algorithms.ball_directions import NORMS
from compiledopt.algorithms.ball_points import check_norm, pairs, start
from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.muon import averaged
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule


@rule(static=("norm_kwargs",), elementwise=False)
@with_maximize
def scion(param, grad, momentum_buffer, *, lr, momentum, norm, norm_kwargs, scale, unconstrained):
    _, momentum_buffer = averaged(grad, momentum_buffer, momentum=1 - momentum, nesterov=False)
    update, size = NORMS[norm][0](momentum_buffer, **dict(norm_kwargs))
    return moved(param, update, kept=1.0 if unconstrained else 1 - lr, size=lr * scale * size)[0], momentum_buffer


class Scion(Optimizer):
    """Scion: steps to the point of a ball that lies furthest along the momentum, in a norm that fits the layer.

        b ← (1 − μ)·b + μ·g;  U = lmo(b);  θ ← (1 − γ)·θ − γ·ρ·U, or with unconstrained  θ ← θ − γ·ρ·U

    momentum (μ): float, the weight of the new gradient: one minus what others call momentum. scale (ρ): float, the radius.
    norm: "Spectral" U = √(rows / columns)·NewtonSchulz(b); "SpectralConv" likewise of kernels, seen as matrices, divided by
        what a kernel has of places; "Sign" sign(b) / columns; "ColNorm" and "RowNorm" columns of root mean square 1, or rows of
        length 1/√columns; "BiasRMS" b / rms b; "Auto" Spectral for matrices, SpectralConv for kernels, BiasRMS for the rest.
    norm_kwargs: dict or None, of the norm's own: `normalized` (Spectral, Sign, ColNorm, RowNorm: divide by the columns; True
        but for ColNorm), `transpose` (ColNorm, RowNorm: as for embeddings), `max` (Spectral: the factor is 1 at least),
        `steps` (Spectral, SpectralConv: iterations, 5), `zero_init` (Sign: for init()). Groups keep it as a tuple of pairs.
    unconstrained: bool, do not shrink the parameters. init() makes parameters anew, within the ball.
    State: `momentum_buffer` (b), like the parameter; where momentum is 1 too.
    Good for: models of any width at one learning rate: all layers, embeddings and biases by one optimizer, each in its norm.
    Start: lr 2⁻¹², momentum 0.1; scale 50 for "Spectral", 3000 with "Sign" for the last layer; or unconstrained.
    Names: those of the authors' package (LIONS-EPFL/scion).
    Raises: ValueError for a norm that is none, for what it does not take, and for parameters of other dimensions than its.
    Source: Pethick et al. 2025, arXiv:2502.07529.
    Deviations from scion: products are in bfloat16 where the hardware multiplies that, else in float32; kernels need not be
    square.
    """

    rule = scion
    bounds = (LR, Bound("momentum", "Invalid momentum value", most=1.0), Bound("scale", "Invalid scale value"))

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        momentum: float = 1.0,
        norm: str = "Auto",
        norm_kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
        unconstrained: bool = False,
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            group["norm_kwargs"] = pairs(group["norm_kwargs"])  # those of the authors' package have dicts
        super().__setstate__(state)

    def _check_group(self, group: dict[str, Any]) -> None:
        group["norm_kwargs"] = pairs(group["norm_kwargs"])
        check_norm(group["norm"], group["norm_kwargs"], group["params"])
        super()._check_group(group)

    @torch.no_grad()
    def init(self) -> None:
        """Make all parameters anew at random, of the size of their norms' balls: before the first step. Mutates: them."""
        for group in self.param_groups:
            for param in group["params"]:
                start(param, group["norm"], dict(group["norm_kwargs"]))
                param.mul_(group["scale"])
