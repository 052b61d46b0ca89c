"""What is to be measured on a GPU, the most important first: python perf/gpu.py --all --minutes 9, or --only bandwidth ...

Rows go to perf/results/gpu.csv, or to --out, each as soon as it is measured, so that a run that is cut short answers what it
reached. A pair takes turns within one process; medians. Two times of a step:
    ms       on the device: events around steps that wait there while the host queues them, so that none of its time is in it
    wall_ms  of a loop of steps: whichever of host and device is slower
Without git, COMPILEDOPT_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, append, circumstances
from shapes import SHAPES
from step import CATALOG, OPTIONS, optimi

import compiledopt

DEVICE = "cuda"
MODELS = ("gpt2_small", "llama_1b", "resnet50", "vit_b16")
ELEMENTWISE = [name for name in OPTIONS if getattr(compiledopt, name).rule.elementwise]
WITHOUT_FUSED = [name for name in ELEMENTWISE if "fused" not in inspect.signature(getattr(torch.optim, name)).parameters]
REDUCING = next(name for name in OPTIONS if CATALOG[name].reduces)  # of several launches
LARGE = [(4096, 4096)] * 32  # 2^29 elements
STEPS = 5  # of a turn: few enough that the launches of an eager step all fit into the device's queue
HOST_STEPS = 200  # of which the first quarter warms
CYCLES = 2e9  # per second, of the fastest GPU

Step = Callable[[], Any]
Row = dict[str, Any]


class Stop(Exception):
    """The time is over."""


class Measure:
    """seconds: for each pair; end: when no other is begun, by time.monotonic()."""

    def __init__(self, seconds: float, end: float) -> None:
        self.seconds, self.end = seconds, end

    def pair(self, theirs: Step, ours: Step) -> tuple[list[float], list[float]]:
        """[ms on the device, ms of a loop] of each, medians of turns."""
        if time.monotonic() > self.end:
            raise Stop
        found: dict[Step, list[list[float]]] = {theirs: [], ours: []}
        begun = 0.0
        while begun == 0.0 or time.monotonic() - begun < self.seconds or len(found[ours]) < 5:
            for step, times in found.items():
                times.append([device_ms(step), wall_ms(step)])
            begun = begun or time.monotonic()  # the first turn warms
        a, b = ([statistics.median(column) for column in zip(*times[1:], strict=True)] for times in found.values())
        return a, b


def device_ms(step: Step) -> float:
    """Of one step among STEPS that wait behind a pause, which is as long as the host takes to queue them."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(STEPS):
        step()
    queued = time.perf_counter() - begun
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(1.5 * queued * CYCLES))
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / STEPS


def wall_ms(step: Step) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / STEPS * 1e3


def model(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape, device=DEVICE, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def torchs(name: str, **flags: Any) -> Callable[[Any], Any]:
    return lambda params: getattr(torch.optim, name)(params, **OPTIONS[name], **flags)


def compiled(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        optimizer = torchs(name, capturable=True)(params)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return make


def row(what: str, name: str, shapes: str, against: str, times: tuple[list[float], list[float]], note: str = "") -> Row:
    (their, their_wall), (our, our_wall) = times
    found = {"what": what, "optimizer": name, "shapes": shapes, "against": against, "their_ms": f"{their:.4g}"}
    found |= {"our_ms": f"{our:.4g}", "ratio": f"{their / our:.3f}", "their_wall_ms": f"{their_wall:.4g}"}
    found |= {"our_wall_ms": f"{our_wall:.4g}", "wall_ratio": f"{their_wall / our_wall:.3f}", "note": note}
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    return {**found, "device": where, **circumstances()}


# ---- what is measured: each yields rows ----


def against(measure: Measure, what: str, name: str, shapes: str, contenders: dict[str, Callable[[Any], Any]]) -> Iterator[Row]:
    """Our step against that of each contender, on parameters of the same shapes."""
    ours = getattr(compiledopt, name)(model(SHAPES[shapes]()), compiled=True, **OPTIONS[name])
    for label, make in contenders.items():
        try:
            theirs = make(model(SHAPES[shapes]()))
            times = measure.pair(theirs.step, ours.step)
        except Stop:
            raise
        except Exception as error:  # one that is not installed, or finds no room, must not end the others
            print(f"{label} on {shapes}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        finally:
            theirs = None
            free()
        yield row(what, name, shapes, label, times)


def free() -> None:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def bandwidth(measure: Measure) -> Iterator[Row]:
    """Of large tensors, as a share of what a device copy reaches, and against torch's fused."""
    for name, dtype in (("AdamW", torch.float32), ("AdamW", torch.bfloat16), ("SGD", torch.float32)):
        ours = getattr(compiledopt, name)(model(LARGE, dtype), compiled=True, **OPTIONS[name])
        label = f"{len(LARGE)} x {tuple(LARGE[0])} {dtype}".replace("torch.", "")
        source = torch.empty(sum(param.numel() for param in ours.param_groups[0]["params"]), device=DEVICE)
        target = torch.empty_like(source)
        copying, stepping = measure.pair(partial(target.copy_, source), ours.step)
        moved = (7 if name == "AdamW" else 5) * dtype.itemsize / 8  # of what the copy moves
        share = moved * copying[0] / stepping[0]
        note = f"{share:.3f} of a copy's bandwidth"
        yield row("bandwidth", name, label, "device copy", ([moved * one for one in copying], stepping), note)
        del source, target
        theirs = torchs(name, fused=True)(model(LARGE, dtype))
        yield row("bandwidth", name, label, "torch fused", measure.pair(theirs.step, ours.step))
        del theirs, ours
        free()


def models(measure: Measure) -> Iterator[Row]:
    for shapes in MODELS:
        yield from against(measure, "models", "AdamW", shapes, {"torch fused": torchs("AdamW", fused=True)})


def small(measure: Measure) -> Iterator[Row]:
    fused = {f"torch fused{' capturable' * c}": torchs("AdamW", fused=True, capturable=c) for c in (False, True)}
    for shapes in ("many_small", "tiny", "even"):
        yield from against(measure, "small", "AdamW", shapes, fused)


def host(measure: Measure) -> Iterator[Row]:
    """The time until step() returns, with nothing queued before it, at 300 tensors."""
    for capturable in (False, True):
        if time.monotonic() > measure.end:
            raise Stop
        ours = compiledopt.AdamW(model([(64,)] * 300), compiled=True, capturable=capturable)
        theirs = torch.optim.AdamW(model([(64,)] * 300), fused=True, capturable=capturable)
        times: dict[Any, list[float]] = {theirs: [], ours: []}
        for number in range(HOST_STEPS):
            for optimizer, found in times.items():
                synchronize()
                begun = time.perf_counter()
                optimizer.step()
                if number >= HOST_STEPS // 4:
                    found.append((time.perf_counter() - begun) * 1e3)
        their, our = (statistics.median(found) for found in times.values())
        note = f"until step() returns, capturable={capturable}"
        yield row("host", "AdamW", "300 x 64", "torch fused", ([their] * 2, [our] * 2), note)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def replay(measure: Measure) -> Iterator[Row]:
    """A captured step against the same step, eager."""
    for shapes in ("gpt2_small", "many_small"):
        eager, captured = (compiledopt.AdamW(model(SHAPES[shapes]()), compiled=True, capturable=True) for _ in range(2))
        captured.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        yield row("replay", "AdamW", shapes, "ours, eager", measure.pair(eager.step, graph.replay))


def others(measure: Measure) -> Iterator[Row]:
    """Every other algorithm, and torch's foreach and another library on the models."""
    for name in sorted({*ELEMENTWISE} - {"AdamW"}, key=WITHOUT_FUSED.__contains__):
        fused = {} if name in WITHOUT_FUSED else {"torch fused": torchs(name, fused=True)}
        yield from against(measure, "others", name, "gpt2_small", {**fused, "torch foreach": torchs(name, foreach=True)})
    for shapes in MODELS:
        more = {"torch foreach": torchs("AdamW", foreach=True), "optimi": optimi("AdamW")}
        yield from against(measure, "others", "AdamW", shapes, more)


def first_step(measure: Measure) -> Iterator[Row]:
    """The time of a first step, with kernels on disk and without: what is compiled, tuned and tried."""
    for shapes in ("tiny", "gpt2_small"):
        times = []
        for name in ("AdamW", REDUCING):
            with tempfile.TemporaryDirectory() as empty:
                for _ in range(2):
                    times.append(in_a_process(name, shapes, empty))
            label = "ours, kernels on disk"
            yield row("first", name, shapes, label, ([times[-1]] * 2, [times[-2]] * 2), "seconds of a first step")
            if time.monotonic() > measure.end:
                raise Stop


FIRST = """
import sys, time; sys.path[:0] = {path!r}
import gpu, compiledopt, torch
optimizer = getattr(compiledopt, {name!r})(gpu.model(gpu.SHAPES[{shapes!r}]()), compiled=True)
begun = time.perf_counter(); optimizer.step(); gpu.synchronize(); print(time.perf_counter() - begun)
"""


def in_a_process(name: str, shapes: str, cache: str) -> float:
    here = Path(__file__).resolve().parent
    code = FIRST.format(path=[str(here), str(here.parent)], name=name, shapes=shapes)
    given = {**os.environ, "COMPILEDOPT_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.split()[-1])


def reducing(measure: Measure) -> Iterator[Row]:
    """A rule that reduces against torch's foreach."""
    for shapes in ("gpt2_small", "vit_b16"):
        yield from against(measure, "reducing", "Adafactor", shapes, {"torch foreach": torchs("Adafactor", foreach=True)})


def compile_step(measure: Measure) -> Iterator[Row]:
    """torch.compile of torch's own step, which takes minutes to compile: last."""
    for shapes in ("even", *MODELS):
        yield from against(measure, "compile", "AdamW", shapes, {"torch.compile(step)": compiled("AdamW")})


PARTS: dict[str, Callable[[Measure], Iterator[Row]]] = {
    "bandwidth": bandwidth,
    "models": models,
    "small": small,
    "host": host,
    "replay": replay,
    "reducing": reducing,
    "others": others,
    "first": first_step,
    "compile": compile_step,
}


def run(names: list[str], measure: Measure, out: Path | None) -> int:
    """Each part in turn, each row written as it comes. Returns how many parts failed."""
    failed = 0
    for name in names:
        try:
            for found in PARTS[name](measure):
                text = "{what:9} {optimizer:8} {shapes:28} {against:22} {their_ms:>8} ms, ours {our_ms:>8}, {ratio}; "
                text += "loop {their_wall_ms:>8} ms, ours {our_wall_ms:>8}, {wall_ratio} {note}"
                print(text.format(**found), flush=True)
                if out is not None:
                    append(str(out), [found])
        except Stop:
            print(f"no time left at {name}; what follows is not measured", file=sys.stderr)
            break
        except Exception as error:
            failed += 1
            print(f"{name} ended: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr, flush=True)
        free()
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every part, which is the default")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60.0, help="no pair is begun after them")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.csv", help="the file that rows are added to")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device on this machine", file=sys.stderr)
        return 1
    measure = Measure(arguments.seconds, time.monotonic() + 60 * arguments.minutes)
    return min(1, run(arguments.only, measure, None if arguments.no_save else arguments.out.resolve()))


if __name__ == "__main__":
    sys.exit(main())
