"""What fewer bytes cost in quality: python perf/precision.py [--what loss errors traps memory] [--kept int8 ...] [--save]

    loss     the loss on held-out data at the end of the demo's training, of a smaller transformer's and of a small convnet's on
             scikit-learn's digits (the extra `perf`), from three seeds, for every way of keeping states and parameters
    errors   ‖x − y‖ / ‖y‖ of states and updates over a training: y with states in float32, x with the same gradients
    traps    what goes wrong where: numbers that everybody should have seen before choosing
    memory   the peak of steps on 20 × 1,000,000 elements over what is there

No times are taken, so other load does no harm; one thread, so that rows can be had again bit for bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import memory
import torch
from common import append, circumstances, read
from tasks import TASKS, Label, Task, task_of
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))
import compiledopt
from compiledopt import demo, schedules
from compiledopt.storage import CODECS
from compiledopt.storage.parameters import NEAREST_NAME, ROUNDINGS, upper_part

SEEDS, LOSS = (0, 1, 2), "held-out loss"
REFERENCE = "float32"
# Which others are made of: a name that is the unsigned form of another is what that one takes where it can.
STATES = [name for name in CODECS if name not in {codec.unsigned for codec in CODECS.values()}]
HALF = "bfloat16 parameters, "  # and how they are written
MASTERS = f"{HALF}float32 masters"
PARAMETERS = [MASTERS, *(HALF + name for name in (NEAREST_NAME, *ROUNDINGS))]
# One of each sort: two averages, the sign of one, one, three of which one is slow, and one that reduces over rows and columns.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-3, "weight_decay": 0.1},
    "Lion": {"lr": 2e-4, "weight_decay": 0.5},
    "SGD": {"lr": 0.3, "momentum": 0.9},
    "AdEMAMix": {"lr": 1e-3, "weight_decay": 0.1},
    "CAME": {"lr": 3e-4, "weight_decay": 0.1},
}


def options_of(name: str, steps: int) -> dict[str, Any]:
    """With what the demo has around its step: a warm-up, a cosine, clipping."""
    options = dict(ALGORITHMS[name])
    warmup, cosine = schedules.linear(0.05, 1.0, demo.WARMUP), schedules.cosine_annealing(steps - demo.WARMUP)
    options["lr"] = options["lr"] * schedules.sequential([warmup, cosine], [demo.WARMUP])
    return {**options, "max_grad_norm": demo.LARGEST_NORM}


def how(kept: str) -> dict[str, Any]:
    """The options of a way of keeping values."""
    if kept.startswith(HALF):
        rounding = kept.removeprefix(HALF)
        return {"state_dtype": REFERENCE} | ({"rounding": rounding} if rounding in ROUNDINGS else {})
    # Rows of these small models are shorter than a block of 128 or 256 is.
    return {} if kept == REFERENCE else {"state_dtype": kept, "min_quantized_numel": 4096}


def made(name: str, params: Any, steps: int, kept: str) -> Any:
    """The optimizer, or None where its rule refuses to keep states so, which is printed."""
    try:
        return getattr(compiledopt, name)(params, **options_of(name, steps), **how(kept))
    except ValueError as error:
        print(f"{name}: {error}")
        return None


def trained(task: Task, name: str, kept: str, seed: int) -> tuple[nn.Module, Any] | None:
    """A model at the end of its training. Masters: kept in float32 beside the bfloat16 parameters, which are rounded anew from
    them after each step, as "split" rounds."""
    torch.manual_seed(seed)
    model = task.model()
    if kept.startswith(HALF):
        model.bfloat16()
    params = list(model.parameters())
    masters = [nn.Parameter(param.detach().float()) for param in params] if kept == MASTERS else params
    optimizer = made(name, masters, task.steps, kept)
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(task.steps if optimizer else 0):
        loss = task.loss(model, generator)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for param, master in zip(params, masters, strict=True) if kept == MASTERS else ():
            master.grad = None if param.grad is None else param.grad.float()
        optimizer.step()
        for param, master in zip(params, masters, strict=True) if kept == MASTERS else ():
            param.data.copy_(upper_part(master.detach()))
    return (model, optimizer) if optimizer else None


def bytes_per_parameter(model: nn.Module, optimizer: Any) -> float:
    """Of parameters and states, without 0-dim ones."""
    held = [value.nbytes for values in optimizer.state.values() for value in values.values() if value.dim()]
    params = list(model.parameters())
    return (sum(held) + sum(param.nbytes for param in params)) / sum(param.numel() for param in params)


def losses(task: Task, name: str, kept: str, seed: int) -> Iterator[dict[str, Any]]:
    found = trained(task, name, kept, seed)
    if found is not None:
        model, optimizer = found
        yield row(LOSS, task.label, name, kept, seed, task.held_out(model))
        if seed == 0:
            yield row("bytes per parameter", task.label, name, kept, seed, bytes_per_parameter(model, optimizer))


def row(what: str, label: Label, name: str, kept: str, seed: int, value: float) -> dict[str, Any]:
    labels = {"what": what, **dict(zip(("task", "parameters", "steps"), label, strict=True)), "optimizer": name}
    return {**labels, "options": json.dumps(ALGORITHMS.get(name, {})), "kept": kept, "seed": seed, "value": f"{value:.6g}"}


# ---- errors ----

SAMPLES = 40  # steps of a training at which errors are taken


class Shadow:
    """An optimizer with states kept in another way, on a copy of the parameters, to which it is put back before each step."""

    def __init__(self, task: Task, name: str, kept: str, params: list[torch.Tensor]) -> None:
        self.theirs, self.kept = params, kept
        self.params = [nn.Parameter(param.detach().clone()) for param in params]
        self.optimizer = made(name, self.params, task.steps, kept)
        self.found: dict[str, list[float]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for mine, theirs in zip(self.params, self.theirs, strict=True):
            mine.copy_(theirs)
            mine.grad = theirs.grad
        self.optimizer.step()

    def values(self) -> dict[str, torch.Tensor]:
        """The states of all parameters that are kept so, by name, in float32, one after the other."""
        states: dict[str, list[torch.Tensor]] = {}
        for values in self.optimizer.state_dict(precision=REFERENCE)["state"].values():
            for name, value in values.items():
                if value.dim():
                    states.setdefault(name, []).append(value.flatten())
        return {name: torch.cat(values) for name, values in states.items()}

    def updates(self, before: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([(p.detach() - old).flatten() for p, old in zip(self.params, before, strict=True)])

    def note(self, what: str, error: float) -> None:
        self.found.setdefault(what, []).append(error)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x - y).norm() / y.norm()).item()


def errors(task: Task, name: str, ways: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Their root mean squares over the samples. All ways see the parameters and gradients of one training with float32."""
    torch.manual_seed(0)
    model = task.model()
    params = list(model.parameters())
    shadows = [Shadow(task, name, kept, params) for kept in (REFERENCE, *ways)]
    exact, *others = [shadow for shadow in shadows if shadow.optimizer is not None]
    generator = torch.Generator().manual_seed(1000)
    for step in range(1, task.steps + 1):
        loss = task.loss(model, generator)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for shadow in (exact, *others):
            shadow.step()
        if step % max(1, task.steps // SAMPLES) == 0:
            compared(exact, others, [param.detach().clone() for param in params])
        with torch.no_grad():
            for param, stepped in zip(params, exact.params, strict=True):
                param.copy_(stepped)
    for shadow in others:
        for what, seen in shadow.found.items():
            yield row(what, task.label, name, shadow.kept, 0, statistics.mean(value**2 for value in seen) ** 0.5)


def compared(exact: Shadow, others: list[Shadow], before: list[torch.Tensor]) -> None:
    """Mutates: what the shadows have found."""
    states, updates = exact.values(), exact.updates(before)
    for shadow in others:
        shadow.note("error of the update", distance(shadow.updates(before), updates))
        shadow.note("signs of the update that differ", (shadow.updates(before).sign() != updates.sign()).float().mean().item())
        for state, value in shadow.values().items():
            shadow.note(f"error of {state}", distance(value, states[state]))


# ---- traps ----


def noisy(sizes: torch.Tensor, steps: int, kept: str, **options: Any) -> tuple[torch.Tensor, Any]:
    """AdamW's last parameters and states (in float32) on gradients of these sizes. sizes: of each step, or of all."""
    param = nn.Parameter(torch.zeros(64, 64))
    optimizer = compiledopt.AdamW([param], weight_decay=0.0, **{**options, **how(kept)})
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        param.grad = torch.randn(param.shape, generator=generator) * sizes[step if sizes.dim() > 2 else ...]
        before = param.detach().clone()
        optimizer.step()
    return param.detach() - before, optimizer.state_dict(precision=REFERENCE)["state"][0]


def standing_still(kept: str) -> float:
    """v after 10,000 steps of gradients of one size, over its square."""
    return noisy(torch.ones(64, 64), 10_000, kept, lr=0.0)[1]["exp_avg_sq"].mean().item()


def after_a_change(kept: str) -> float:
    """v after 10,000 steps of gradients a tenth as large as in 2,000 before, over the square of their size."""
    sizes = torch.ones(12_000, 1, 1)
    sizes[2000:] = 0.1
    return noisy(sizes, 12_000, kept, lr=0.0)[1]["exp_avg_sq"].mean().item() / 0.01


def among_large(elements: slice) -> Callable[[str], float]:
    """The size of AdamW's update, over float32's, of those elements beside whose gradients stands one 1,000 times as large in
    each block."""

    def measured(kept: str) -> float:
        sizes = torch.full((64, 64), 1e-3)
        sizes[:, ::32] = 1.0
        of = [noisy(sizes, 300, way, lr=1e-3)[0].view(64, 2, 32)[..., elements] for way in (kept, REFERENCE)]
        return (of[0].square().mean() / of[1].square().mean()).sqrt().item()

    return measured


def tiny_gradients(kept: str) -> float:
    """The largest step of AdamW at gradients of size 1e-5, in units of lr."""
    return noisy(torch.full((64, 64), 1e-5), 100, kept, lr=1.0, eps=1e-12)[0].abs().max().item()


def zeros(kept: str) -> float:
    """The share of parameters that move though no gradient of theirs ever was but zero."""
    sizes = torch.zeros(64, 64)
    sizes[:, ::32] = 1.0
    moved = noisy(sizes, 100, kept, lr=1e-3)[0].view(64, 2, 32)[..., 1:] != 0
    return moved.float().mean().item()


TRAPS: dict[str, Callable[[str], float]] = {
    "v after 10,000 steps, over what it should be": standing_still,
    "v after gradients fell to a tenth, over what it should be": after_a_change,
    "update of 31 neighbours of a gradient 1,000 × theirs, over float32's": among_large(slice(1, None)),
    "largest update where gradients are 1e-5, over lr": tiny_gradients,
    "share of parameters without gradients that move": zeros,
}


def traps(ways: Iterable[str]) -> Iterator[dict[str, Any]]:
    for what, measured in TRAPS.items():
        for kept in ways:
            yield row(what, ("one tensor of 64 × 64", 4096, 0), "AdamW", kept, 0, measured(kept))


# ---- memory ----


def measure_memory(kept: str) -> None:
    params = [nn.Parameter(torch.randn(1000, 1000)) for _ in range(20)]
    if kept.startswith(HALF):
        params = [nn.Parameter(param.detach().bfloat16()) for param in params]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = compiledopt.AdamW(params, **how(kept))
    optimizer.step()
    held = sum(value.nbytes for values in optimizer.state.values() for value in values.values() if value.dim())
    print(memory.extra_mib(optimizer.step), held / 20e6)


def peaks(ways: Iterable[str]) -> Iterator[dict[str, Any]]:
    """In processes of their own."""
    label = ("20 × 1,000,000", 20_000_000, 4)
    for kept in ways:
        command = [sys.executable, __file__, "--measure-memory", kept]
        done = subprocess.run(command, capture_output=True, text=True, env=memory.environment(), check=True)
        extra, held = map(float, done.stdout.split()[-2:])
        yield row("MiB that a step takes beside", label, "AdamW", kept, 0, extra)
        yield row("bytes of states per parameter", label, "AdamW", kept, 0, held)


def measurements(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    old = [row for row in read("precision.csv") if row["what"] == LOSS] if given.missing else []
    known = {(row["task"], row["optimizer"], row["kept"], row["seed"]) for row in old}
    states = [kept for kept in given.kept if kept != REFERENCE and kept in STATES]
    if "traps" in given.what:
        yield from traps([REFERENCE, *states])
    if "memory" in given.what:
        yield from peaks([kept for kept in given.kept if kept != MASTERS])
    if "errors" in given.what:
        task = task_of("small", given.steps)
        for name in given.optimizer:
            yield from errors(task, name, states)
    for key in given.tasks if "loss" in given.what else ():
        task = task_of(key, given.steps)
        for name in given.optimizer if key != "demo" else sorted({"AdamW"} & set(given.optimizer)):
            for kept in given.kept:
                if kept in STATES or (name == "AdamW" and key == "small"):
                    for seed in given.seeds:
                        if (task.name, name, kept, str(seed)) not in known:
                            yield from losses(task, name, kept, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["traps", "memory", "errors", "loss"]
    parser.add_argument("--what", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="the demo's with AdamW alone")
    parser.add_argument("--optimizer", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--kept", nargs="+", default=[*STATES, *PARAMETERS], choices=[*STATES, *PARAMETERS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="of a training, where not as many as the task has")
    parser.add_argument("--missing", action="store_true", help="losses that have no row yet, alone")
    parser.add_argument("--save", action="store_true", help="into perf/results/precision.csv, each row as it is measured")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure_memory:
        measure_memory(given.measure_memory)
        return
    for one in measurements(given):
        print("{task:22} {optimizer:9} {kept:32} {what} {value}".format(**one), flush=True)
        if given.save:
            append("precision.csv", [{**one, **circumstances()}])


if __name__ == "__main__":
    main()
