"""Estimates of the diagonal of the Hessian, and the average that a state keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiledopt.optimizer import Optimizer

NO_GRAPH = "update_hessian differentiates the gradients once more: call loss.backward(create_graph=True) before it, or give it "
NO_GRAPH += "estimates"


def random_signs(like: Tensor) -> Tensor:
    """Each −1 or 1, as likely."""
    return torch.randint_like(like, 2) * 2 - 1


def hutchinson(params: Sequence[Tensor], draw: Callable[[Tensor], Tensor], samples: int) -> list[Tensor]:
    """mean(z·(H·z)) over samples of z, for the gradients that the parameters have. Raises: RuntimeError without graphs."""
    if samples < 1:
        raise ValueError(f"Invalid n_samples value: {samples}")
    grads = [param.grad for param in params if param.grad is not None]
    if not all(grad.requires_grad for grad in grads):
        raise RuntimeError(NO_GRAPH)
    estimates = [torch.zeros_like(param) for param in params]
    for index in range(samples):
        with torch.no_grad():
            directions = [draw(param) for param in params]
        products = torch.autograd.grad(
            grads, params, directions, retain_graph=index < samples - 1, allow_unused=True, materialize_grads=True
        )
        for estimate, direction, product in zip(estimates, directions, products, strict=True):
            estimate.addcmul_(direction, product.detach(), value=1 / samples)
    return estimates


def take_hessian(
    optimizer: Optimizer,
    state: str,
    hessian: Iterable[Tensor] | None,
    draw: Callable[[Tensor], Tensor],
    samples: int,
    squared: bool,
) -> None:
    """h ← β₂·h + (1 − β₂)·ĥ, or of ĥ², for every parameter with a gradient. Mutates: that state."""
    groups = [(group, param) for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    params = [param for _, param in groups]
    estimates = hutchinson(params, draw, samples) if hessian is None else list(hessian)
    if [one.shape for one in estimates] != [param.shape for param in params]:
        raise ValueError(
            f"update_hessian takes one estimate, of its shape, for each of the {len(params)} parameters with a gradient"
        )
    optimizer.make_states()
    with torch.no_grad():
        for (group, param), estimate in zip(groups, estimates, strict=True):
            known: Any = optimizer.state[param][state]
            known.lerp_(estimate.square() if squared else estimate, 1 - float(group["betas"][1]))
