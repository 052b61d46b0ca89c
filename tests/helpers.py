"""Models of a few tensors with fixed gradients, and what is measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from compiledopt.algorithms import muon
from compiledopt.rules import matrix_program

SHAPES = [(40, 50), (3001,), (), (0,), (1, 7)]


def parameters(
    dtype: torch.dtype = torch.float32, shapes: Iterable[Sequence[int]] = SHAPES, seed: int = 1
) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.nn.Parameter(torch.randn(tuple(s), generator=generator, dtype=wide).to(dtype)) for s in shapes]


def copies(params: Iterable[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().to(dtype or p.dtype, copy=True)) for p in params]


class Gradients:
    """The same sequence of gradients for every run: values of `dtype`, whatever dtype they are asked for in."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 2, skip: bool = False) -> None:
        self.dtype, self.seed, self.skip = dtype, seed, skip

    def set(self, params: Sequence[torch.Tensor], step: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + step)
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        for index, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator, dtype=wide).to(self.dtype).to(param.dtype)
            param.grad = None if self.skip and (step + index) % 5 == 3 else grad


def run(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor], gradients: Gradients, steps: range) -> None:
    for step in steps:
        gradients.set(params, step)
        optimizer.step()


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().double().reshape(-1) for t in real])


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


def snapshot(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Copies of everything a step may write, for comparison bit by bit."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = None if param.grad is None else param.grad.detach().clone()
            state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state.get(param, {}).items()}
            found.append((param.detach().clone(), grad, state))
    return found


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
            return False
        if a.layout is not torch.strided:
            return same(a.coalesce().values(), b.coalesce().values())
        flat = [one.reshape(-1).clone(memory_format=torch.contiguous_format) for one in (a, b)]  # one element may have stride 0
        return torch.equal(*(one.view(torch.uint8) for one in flat))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def multiplying_in(monkeypatch: Any, dtype: torch.dtype) -> None:
    """Muon and its relatives, for programs that are made from here on: by itself it is bfloat16 where the hardware has that."""
    monkeypatch.setattr(muon, "product_dtype", lambda device: dtype)
    monkeypatch.setattr(matrix_program, "Crossing", type("Crossing", (matrix_program.Crossing,), {}))  # by which they are kept
