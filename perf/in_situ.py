"""A step inside training, in pairs within one process: python perf/in_situ.py [--models mlp convnet] [--seconds 10]

Between two steps a model runs forward and backward, so parameters, gradients, states and the interpreter's own data are no
longer in the caches: the same step takes longer than in a loop of steps alone. So each pair trains two copies of one model
in turns. Timed are `optimizer.step()` by itself, where it stands in the loop, and the whole iteration around it; then, for
comparison, the steps alone, one right after the other.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import append, circumstances
from step import compare, quartiles
from torch import Tensor, nn
from torch.nn import functional

import compiledopt

LR = 1e-4
AGAINST: dict[str, dict[str, Any]] = {
    "torch default": {},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}
Loss = Callable[[nn.Module], Tensor]


def mlp() -> tuple[nn.Module, Loss]:
    """8-64-64-4, batch 64: 6 tensors."""
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return model, lambda model: functional.mse_loss(model(x), y)


def layers() -> tuple[nn.Module, Loss]:
    """40 × (Linear 128, LayerNorm), batch 64: 160 tensors."""
    x, y = torch.randn(64, 128), torch.randn(64, 128)
    blocks = [nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.ReLU()) for _ in range(40)]
    return nn.Sequential(*blocks), lambda model: functional.mse_loss(model(x), y)


def convnet() -> tuple[nn.Module, Loss]:
    """Four convolutions with batch norm on 16 × 16 images, batch 16: 18 tensors."""
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    parts: list[nn.Module] = []
    for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
        parts += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return model, lambda model: functional.cross_entropy(model(x), y)


class Adapted(nn.Module):
    """A frozen Linear and an adapter of rank 4 beside it (LoRA)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (Adapted(width) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        ).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(x)  # type: ignore[no-any-return]


def lora() -> tuple[nn.Module, Loss]:
    """25 layers of width 64, adapters on the four projections, all else frozen, 4 × 32 tokens: 200 tensors."""
    x, y = torch.randn(4, 32, 64), torch.randn(4, 32, 64)
    return nn.Sequential(*[Block(64) for _ in range(25)]), lambda model: functional.mse_loss(model(x), y)


def embedding() -> tuple[nn.Module, Loss]:
    """A table of 50,000 × 32 with dense gradients and an MLP, batch 256 of 8 entries each: 5 tensors."""
    x, y = torch.randint(50_000, (256, 8)), torch.randint(10, (256,))
    model = nn.Sequential(nn.Embedding(50_000, 32), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, lambda model: functional.cross_entropy(model(x), y)


MODELS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    made.__name__: made for made in (mlp, layers, convnet, lora, embedding)
}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def iterations(model: nn.Module, loss: Loss, optimizer: Any, count: int) -> list[tuple[float, float]]:
    """(seconds of the step, seconds of the whole iteration) of each."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model).backward()
        before = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        found.append((end - before, end - start))
    return found


def in_turns(theirs: tuple[Any, ...], ours: tuple[Any, ...], budget: float) -> tuple[list[tuple[float, float]], ...]:
    """Turns of ten iterations (fewer of long ones) for `budget` seconds; the first of each turn warms and is dropped."""
    for one in (theirs, ours):
        iterations(*one, 5)
    longest = max(whole for one in (theirs, ours) for _, whole in iterations(*one, 3))
    turn = max(3, min(10, int(budget / 10 / longest)))
    a: list[tuple[float, float]] = []
    b: list[tuple[float, float]] = []
    start = time.perf_counter()
    while time.perf_counter() - start < budget or len(a) < 9:
        a += iterations(*theirs, turn)[1:]
        b += iterations(*ours, turn)[1:]
    return a, b


def columns(name: str, theirs: list[float], ours: list[float]) -> dict[str, str]:
    a, b = statistics.median(theirs), statistics.median(ours)
    found = {f"their_{name}_ms": f"{a * 1e3:.4g}", f"their_{name}_quartiles": quartiles(theirs)}
    found |= {f"our_{name}_ms": f"{b * 1e3:.4g}", f"our_{name}_quartiles": quartiles(ours)}
    return {**found, f"{name}_ratio": f"{a / b:.2f}"}


def row(name: str, against: str, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model, loss = MODELS[name]()
    other = copy.deepcopy(model)
    theirs = torch.optim.AdamW(trainable(model), lr=LR, **AGAINST[against])
    ours = compiledopt.AdamW(trainable(other), lr=LR)
    a, b = in_turns((model, loss, theirs), (other, loss, ours), seconds)
    warm = compare(theirs, ours, seconds / 4, None)
    sizes = [param.numel() for param in trainable(model)]
    found = {"model": name, "tensors": len(sizes), "elements": sum(sizes), "against": against, "ours": ours.executor}
    found |= columns("step", *([step for step, _ in one] for one in (a, b)))
    found |= columns("iteration", *([whole for _, whole in one] for one in (a, b)))
    found |= columns("warm", *warm)
    text = "{model:10} {against:14} step {their_step_ms:>7} ms, ours {our_step_ms:>7} ms, ratio {step_ratio:>5}; iteration"
    text += " {their_iteration_ms:>7} to {our_iteration_ms:>7}; steps alone {their_warm_ms:>7} to {our_warm_ms:>7}"
    print(text.format(**found))
    return {**found, "iterations": len(a), **circumstances()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--against", nargs="+", default=list(AGAINST), choices=list(AGAINST))
    parser.add_argument("--seconds", type=float, default=8.0, help="for each pair; a quarter of it more for steps alone")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    for name in arguments.models:
        found = [row(name, against, arguments.seconds) for against in arguments.against]
        if not arguments.no_save:
            append("in_situ.csv", found)


if __name__ == "__main__":
    main()
