"""What perf/precision.py trains: the demo's transformer, a smaller one, and a convnet on scikit-learn's digits."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))
from compiledopt import demo

Label = tuple[str, int, int]  # what was trained, its parameters, the steps


@dataclass(frozen=True)
class Task:
    """model: a new one; loss: of a model on a batch drawn with a generator; held_out: its loss on other data."""

    name: str
    steps: int
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, torch.Generator], torch.Tensor]
    held_out: Callable[[nn.Module], float]

    @cached_property
    def label(self) -> Label:
        return self.name, sum(param.numel() for param in self.model().parameters()), self.steps


def transformer(name: str, scale: demo.Scale, limit: int) -> Task:
    text = demo.read_text(limit)
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([index[character] for character in text])
    held_out, training = tokens[: len(tokens) // 10], tokens[len(tokens) // 10 :]

    def loss(model: nn.Module, generator: torch.Generator, source: torch.Tensor = training) -> torch.Tensor:
        seen, following = demo.cut(source, scale, generator)
        return nn.functional.cross_entropy(model(seen).flatten(0, 1).float(), following)

    @torch.no_grad()
    def on_held_out(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(2)
        return statistics.mean(loss(model, generator, held_out).item() for _ in range(32))

    return Task(name, scale.steps, lambda: demo.Transformer(len(index), scale), loss, on_held_out)


def digits() -> Task:
    """With smoothed labels, so that the loss does not go to zero."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    count = len(labels) // 5  # the last fifth is from other writers

    def model() -> nn.Module:
        convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))

    def of(model: nn.Module, which: Any) -> torch.Tensor:
        scores = model(images[which].to(next(model.parameters()).dtype)).float()
        return nn.functional.cross_entropy(scores, labels[which], label_smoothing=0.1)

    def loss(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        return of(model, torch.randint(len(labels) - count, (64,), generator=generator))

    @torch.no_grad()
    def on_held_out(model: nn.Module) -> float:
        return of(model, slice(-count, None)).item()

    return Task("convnet on digits", 300, model, loss, on_held_out)


SMALL = demo.Scale(width=64, layers=3, context=32, batch=8, steps=400)
TASKS: dict[str, Callable[[], Task]] = {
    "demo": lambda: transformer("the demo's transformer", demo.FULL, 2_000_000),
    "small": lambda: transformer("small transformer", SMALL, 200_000),
    "digits": digits,
}


def task_of(key: str, steps: int | None) -> Task:
    task = TASKS[key]()
    return task if steps is None else replace(task, steps=steps)
