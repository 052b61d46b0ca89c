"""The demo: a small character-level transformer on the Python standard library's sources, with torch.optim and with us.

Both runs start from the same seed and see the same batches, warm up and follow a cosine, clip and keep an average of the
parameters, torch's around its step and ours inside of it. So the loss curves must agree, and so must the losses that the
averages have on text which was not trained on. A third run keeps its states in 8 bits: its curve and its memory stand beside
them. Then the step of each optimizer is timed on this model, in turns, and whole iterations of a small model, of which torch's
step is the largest part.
"""

from __future__ import annotations

import statistics
import sysconfig
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import compiledopt
from compiledopt import schedules

Factory = Callable[[Any], torch.optim.Optimizer]
OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
LARGEST_NORM, DECAY, WARMUP, EVALUATIONS = 1.0, 0.98, 20, 8


@dataclass(frozen=True)
class Scale:
    width: int
    layers: int
    context: int
    batch: int
    steps: int


FULL = Scale(width=128, layers=4, context=64, batch=16, steps=400)
QUICK = Scale(width=64, layers=3, context=32, batch=8, steps=120)


def read_text(limit: int = 2_000_000) -> str:
    """The standard library's own sources, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    pieces: list[str] = []
    for path in sorted(root.glob("*.py")):
        pieces.append(path.read_text(encoding="utf-8", errors="replace"))
        if sum(map(len, pieces)) > limit:
            break
    text = "".join(pieces)[:limit]
    if len(text) < 10_000:
        raise RuntimeError(f"no sources of the standard library under {root}; the demo trains on them")
    return text


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, characters: int, scale: Scale) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, scale.width)
        self.positions = nn.Embedding(scale.context, scale.width)
        layer = nn.TransformerEncoderLayer(
            scale.width, 4, 4 * scale.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, scale.layers, enable_nested_tensor=False)
        self.head = nn.Linear(scale.width, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        hidden = self.characters(tokens) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.layers(hidden, mask=mask, is_causal=True))  # type: ignore[no-any-return]


@dataclass
class Run:
    losses: list[float]
    averages: list[tuple[int, float]]  # (step, loss of the averaged parameters on held-out text)
    step_seconds: list[float]
    total_seconds: float
    state_bytes: int = 0  # of the algorithm's own states, at the end: without the average


class Around:
    """torch's optimizer with what torch has around it."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), **OPTIONS)
        parts = [LinearLR(self.optimizer, 0.05, 1.0, WARMUP), CosineAnnealingLR(self.optimizer, steps - WARMUP)]
        self.scheduler = SequentialLR(self.optimizer, parts, [WARMUP])
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)

    def evaluate(self, loss: Callable[[nn.Module], float]) -> float:
        return loss(self.average)


class Inside:
    """Ours, with the same inside of its step. more: options of the optimizer."""

    def __init__(self, model: nn.Module, steps: int, **more: Any) -> None:
        warmup, cosine = schedules.linear(0.05, 1.0, WARMUP), schedules.cosine_annealing(steps - WARMUP)
        lr = OPTIONS["lr"] * schedules.sequential([warmup, cosine], [WARMUP])
        options = {**OPTIONS, "lr": lr, "max_grad_norm": LARGEST_NORM, "ema_decay": DECAY, **more}
        self.model, self.optimizer = model, compiledopt.AdamW(model.parameters(), **options)

    def step(self) -> None:
        self.optimizer.step()

    def evaluate(self, loss: Callable[[nn.Module], float]) -> float:
        with self.optimizer.use_ema():
            return loss(self.model)


def cut(text: torch.Tensor, scale: Scale, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    at = torch.randint(len(text) - scale.context - 1, (scale.batch,), generator=generator)
    tokens = text[at[:, None] + torch.arange(scale.context + 1)]
    return tokens[:, :-1], tokens[:, 1:].flatten()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Without the average, which is not the algorithm's."""
    kept = [values.items() for values in optimizer.state.values()]
    return sum(value.nbytes for values in kept for name, value in values if name not in ("ema", "n_averaged"))


Way = Callable[[nn.Module, int], Around | Inside]


def train(text: torch.Tensor, characters: int, scale: Scale, way: Way, title: str) -> Run:
    torch.manual_seed(0)
    model = Transformer(characters, scale)
    trainer = way(model, scale.steps)
    held_out, text = text[: len(text) // 10], text[len(text) // 10 :]
    batches = torch.Generator().manual_seed(1)
    run = Run([], [], [], 0.0)

    def loss_of(net: nn.Module, source: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        tokens, following = cut(source, scale, generator)
        return nn.functional.cross_entropy(net(tokens).flatten(0, 1), following)

    @torch.no_grad()
    def held_out_loss(net: nn.Module) -> float:
        generator = torch.Generator().manual_seed(2)
        return statistics.mean(loss_of(net, held_out, generator).item() for _ in range(8))

    start = time.perf_counter()
    for step in tqdm(range(1, scale.steps + 1), desc=title, ncols=88):
        loss = loss_of(model, text, batches)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        before = time.perf_counter()
        trainer.step()
        run.step_seconds.append(time.perf_counter() - before)
        run.losses.append(loss.item())
        if step % (scale.steps // EVALUATIONS) == 0:
            run.averages.append((step, trainer.evaluate(held_out_loss)))
    run.total_seconds = time.perf_counter() - start
    run.state_bytes = state_bytes(trainer.optimizer)
    return run


CONTENDERS: dict[str, Factory] = {
    "torch for-loop": lambda params: torch.optim.AdamW(params, foreach=False, **OPTIONS),
    "torch foreach": lambda params: torch.optim.AdamW(params, foreach=True, **OPTIONS),
    "torch fused": lambda params: torch.optim.AdamW(params, fused=True, **OPTIONS),
    "compiledopt": lambda params: compiledopt.AdamW(params, **OPTIONS),
}
SMALL_CONTENDERS: dict[str, Factory] = {
    "torch default": lambda params: torch.optim.AdamW(params, **OPTIONS),
    "torch fused": CONTENDERS["torch fused"],
    "compiledopt": CONTENDERS["compiledopt"],
}


def time_steps(characters: int, scale: Scale, rounds: int = 15) -> dict[str, float]:
    """Median seconds of one step of each optimizer on this model; ten steps of each in turn, so that all see the same
    machine."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, factory in CONTENDERS.items():
        model = Transformer(characters, scale)
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        optimizers[name] = factory(model.parameters())
        optimizers[name].step()
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in tqdm(range(rounds), desc="timing the steps", ncols=88):
        for name, optimizer in optimizers.items():
            for _ in range(10):
                before = time.perf_counter()
                optimizer.step()
                seconds[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in seconds.items()}


def small_model() -> nn.Module:
    """6 tensors: forward and backward take no longer than torch's step."""
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def iterations_per_second(rounds: int) -> dict[str, float]:
    """Of a whole training of a small model, by optimizer: twenty iterations of each in turn."""
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    runs: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}
    for name, make in SMALL_CONTENDERS.items():
        model = small_model()
        runs[name] = model, make(model.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), desc="a small model, whole iterations", ncols=88):
        for name, (model, optimizer) in runs.items():
            before = time.perf_counter()
            for _ in range(20):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            seconds[name].append(time.perf_counter() - before)
    return {name: 20 / statistics.median(values) for name, values in seconds.items()}


RUNS: dict[str, Way] = {
    "torch.optim.AdamW": Around,
    "compiledopt.AdamW": Inside,
    'state_dtype="int8"': partial(Inside, state_dtype="int8"),
}


def draw(runs: dict[str, Run], seconds: dict[str, float], output: str) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    torchs, ours, eight = runs.values()
    figure = pyplot.figure(figsize=(11, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[4, 3])
    left, right, below = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    left.plot(torchs.losses, label="torch.optim.AdamW", linewidth=3, alpha=0.5)
    left.plot(ours.losses, label="compiledopt.AdamW", linewidth=1)
    left.plot(eight.losses, label='the same, state_dtype="int8"', linewidth=1, linestyle="--", color="C2")
    left.plot(
        *zip(*torchs.averages, strict=True), "o", color="C0", alpha=0.5, markersize=9, label="AveragedModel, held-out text"
    )
    left.plot(*zip(*ours.averages, strict=True), "o-", color="C1", markersize=4, label="ema_decay, held-out text")
    left.plot(*zip(*eight.averages, strict=True), "x", color="C2", markersize=5, label="ema_decay, int8, held-out text")
    left.set(xlabel="step", ylabel="loss", title="the same training: warm-up, cosine, clipping, average")
    left.legend()
    bars = {name: value * 1e3 for name, value in seconds.items()}
    _bars(right, bars, ["0.7", "0.7", "0.7", "C1"], "%.2f ms", f"median of one optimizer step, torch {torch.__version__}")
    held = {name: run.state_bytes / 1e6 for name, run in runs.items()}
    _bars(below, held, ["0.7", "C1", "C2"], "%.1f MB", "memory of the states")
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def _bars(axes: Any, values: dict[str, float], colours: list[str], unit: str, title: str) -> None:
    axes.bar_label(axes.barh(list(values), list(values.values()), color=colours), fmt=unit, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(title=title)


def report_int8(ours: Run, eight: Run, count: int) -> bool:
    """Print what 8 bits changed; whether that is little. count: of the parameters."""
    bytes_each, fewer = (run.state_bytes / count for run in (ours, eight))
    losses = [run.averages[-1][1] for run in (ours, eight)]
    print(
        f"states in 8 bits: {fewer:.2f} bytes per parameter instead of {bytes_each:.2f}; the average on held-out text "
        f"{losses[1]:.4f} instead of {losses[0]:.4f}, {losses[1] / losses[0] - 1:+.2%}"
    )
    return fewer < bytes_each / 2 and abs(losses[1] / losses[0] - 1) < 0.02


def report(torchs: Run, ours: Run, seconds: dict[str, float], scale: Scale) -> bool:
    """Print what was seen; whether the two runs agree."""
    rest = (torchs.total_seconds - sum(torchs.step_seconds)) / scale.steps
    print(f"\nforward, backward and data: {rest * 1e3:.1f} ms a step; the optimizer on top of that:")
    for name, value in seconds.items():
        print(f"  {name:15} {value * 1e3:8.3f} ms   {value / (value + rest):6.1%} of the step")
    stats = compiledopt.compile_stats()
    print(
        f"compiling took {ours.step_seconds[0]:.2f} s, once: {stats['kernels_compiled']:.0f} kernels compiled, "
        f"{stats['disk_hits']:.0f} found on disk (the next start finds them all)"
    )
    around, inside = (statistics.median(run.step_seconds) for run in (torchs, ours))
    print(f"step, clipping, schedule and average together: torch {around * 1e3:.3f} ms, ours {inside * 1e3:.3f} ms")
    curves = [(run.losses + [loss for _, loss in run.averages]) for run in (torchs, ours)]
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    fell = torchs.losses[0] - statistics.mean(torchs.losses[-10:])
    print(f"loss: {torchs.losses[0]:.3f} at first, {torchs.losses[-1]:.4f} (torch) and {ours.losses[-1]:.4f} (ours) at last")
    print(f"the averages on held-out text: {torchs.averages[-1][1]:.4f} (torch) and {ours.averages[-1][1]:.4f} (ours) at last")
    print(f"the curves differ by at most {apart:.4f}, {apart / fell:.2%} of what the loss fell")
    return bool(apart < 0.01 * fell)


def main(quick: bool = False, output: str = "demo.png") -> int:
    scale = QUICK if quick else FULL
    warnings.filterwarnings("ignore", message=".*enable_nested_tensor.*")
    text = read_text(200_000 if quick else 2_000_000)
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    tokens = torch.tensor([index[character] for character in text])
    model = Transformer(len(alphabet), scale)
    params = list(model.parameters())
    count = sum(param.numel() for param in params)
    print(f"{len(text):,} characters of Python; a transformer of {count:,} parameters in {len(params)} tensors")
    runs = {title: train(tokens, len(alphabet), scale, way, title) for title, way in RUNS.items()}
    torchs, ours, eight = runs.values()
    seconds = time_steps(len(alphabet), scale)
    agree = report(torchs, ours, seconds, scale)
    agree = report_int8(ours, eight, count) and agree
    draw(runs, seconds, output)
    rates = iterations_per_second(rounds=10 if quick else 60)
    print("whole iterations of a small model (8-64-64-4, batch 64), forward and backward included:")
    for name, rate in rates.items():
        print(f"  {name:15} {rate:8,.0f} a second")
    print(f"drawn: {output}")
    return 0 if agree else 1
