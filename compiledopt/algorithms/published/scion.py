"""Scion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compiledopt.algorithms.directions import moved
from compiledopt.algorithms.muon import COEFFICIENTS, averaged, orthogonalize
from compiledopt.algorithms.parts import with_maximize
from compiledopt.arguments import LR, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.optimizer import Optimizer
from compiledopt.rules.rule import rule
from compiledopt.rules.spellings import op

EPS = 1e-8  # of the authors' quotients
Direction = tuple[Any, Any]  # a tensor, and a number that it is to be multiplied by


def _of_lines(grad: Any, dim: int) -> Any:
    """√Σ g² of each line along a dimension."""
    return (grad * grad).sum(dim=dim, keepdim=True).sqrt()


def _columns(grad: Any, normalized: bool = False, transpose: bool = False) -> Direction:
    dim, rows, columns = (-1, *reversed(grad.shape)) if transpose else (-2, *grad.shape)
    size = _of_lines(grad, dim) / op("sqrt", rows)
    return grad / ((size * columns if normalized else size) + EPS), 1.0


def _rows(grad: Any, normalized: bool = True, transpose: bool = False) -> Direction:
    dim, columns = (-2, grad.shape[0]) if transpose else (-1, grad.shape[1])
    size = _of_lines(grad, dim)
    return grad / ((size * op("sqrt", columns) if normalized else size) + EPS), 1.0


def _bias(grad: Any) -> Direction:
    if grad.ndim == 0:
        return grad / (abs(grad) + EPS), 1.0
    return grad / ((grad * grad).mean(dim=0, keepdim=True).sqrt() + EPS), 1.0


def _sign(grad: Any, zero_init: bool = False, normalized: bool = True) -> Direction:
    return grad.sign(), 1 / grad.shape[1] if normalized else 1.0


def _spectral(grad: Any, max: bool = False, normalized: bool = True, steps: int = 5) -> Direction:
    rows, columns = grad.shape
    size = op("sqrt", rows / columns if normalized else rows)
    return orthogonalize(grad, COEFFICIENTS, steps, 1e-7), op("maximum", 1.0, size) if max else size


def _spectral_of_kernels(grad: Any, steps: int = 5) -> Direction:
    rows, columns, *kernel = grad.shape
    update = orthogonalize(grad.reshape(rows, -1), COEFFICIENTS, steps, 1e-7).reshape(grad.shape)
    return update, op("sqrt", rows / columns) / math.prod(kernel)


def _auto(grad: Any) -> Direction:
    return _bias(grad) if grad.ndim < 2 else _spectral(grad) if grad.ndim == 2 else _spectral_of_kernels(grad)


# {norm: its direction, and of how many dimensions a parameter must be}
NORMS: dict[str, tuple[Callable[..., Direction], tuple[int, float]]] = {
    "Auto": (_auto, (0, math.inf)),
    "SpectralConv": (_spectral_of_kernels, (3, math.inf)),
    "ColNorm": (_columns, (2, 2)),
    "RowNorm": (_rows, (2, 2)),
    "BiasRMS": (_bias, (0, math.inf)),
    "Spectral": (_spectral, (2, 2)),
    "Sign": (_sign, (2, 2)),
}
KWARGS = {
    "ColNorm": ("normalized", "transpose"),
    "RowNorm": ("normalized", "transpose"),
    "Sign": ("normalized", "zero_init"),
    "Spectral": ("max", "normalized", "steps"),
    "SpectralConv": ("steps",),
}


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
            group["norm_kwargs"] = _pairs(group["norm_kwargs"])  # those of the authors' package have dicts
        super().__setstate__(state)

    def _check_group(self, group: dict[str, Any]) -> None:
        norm, given = group["norm"], _pairs(group["norm_kwargs"])
        if norm not in NORMS:
            raise ValueError(f"Invalid norm value: {norm!r}; it is one of {', '.join(NORMS)}")
        if unknown := {name for name, _ in given} - {*KWARGS.get(norm, ())}:
            known = ", ".join(KWARGS.get(norm, ())) or "nothing"
            raise ValueError(f"norm {norm!r} takes {known} in norm_kwargs, and not {min(unknown)!r}")
        least, most = NORMS[norm][1]
        for param in group["params"]:
            if not least <= param.ndim <= most:
                dims = f"{least}" if least == most else f"at least {least}"
                raise ValueError(f"norm {norm!r} is for parameters of {dims} dimensions, got one of shape {tuple(param.shape)}")
        group["norm_kwargs"] = given
        super()._check_group(group)

    @torch.no_grad()
    def init(self) -> None:
        """Make all parameters anew at random, of the size of their norms' balls: before the first step. Mutates: them."""
        for group in self.param_groups:
            for param in group["params"]:
                _start(param, group["norm"], dict(group["norm_kwargs"]))
                param.mul_(group["scale"])


def _pairs(kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """Keywords as what a program can be known by."""
    return tuple(sorted(dict(kwargs or ()).items()))


def _start(param: Tensor, norm: str, kwargs: dict[str, Any]) -> None:
    """Orthogonal matrices, signs, or normal numbers, each as long as a step; zeros for biases. Mutates: param."""
    if norm == "Auto":
        norm = "BiasRMS" if param.ndim < 2 else "Spectral" if param.ndim == 2 else "SpectralConv"
    if norm == "BiasRMS" or kwargs.pop("zero_init", False):
        param.zero_()
    elif norm == "SpectralConv":
        rows, columns, *kernel = param.shape
        places = math.prod(kernel)
        made = [torch.nn.init.orthogonal_(param.new_empty(rows, columns, dtype=torch.float64)) for _ in range(places)]
        size = math.sqrt(rows / columns) / places
        param.copy_(size * torch.stack(made, -1).reshape(param.shape))
    elif norm == "Spectral":
        rows, columns = param.shape
        size = math.sqrt(rows / columns) if kwargs.get("normalized", True) else math.sqrt(rows)
        made = torch.nn.init.orthogonal_(param.new_empty(rows, columns, dtype=torch.float64))
        param.copy_((max(1.0, size) if kwargs.get("max", False) else size) * made)
    else:
        update, size = NORMS[norm][0](torch.randn_like(param), **kwargs)
        param.copy_(size * update)
