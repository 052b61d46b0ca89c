"""What is to be measured on a GPU, the most important first: python perf/gpu.py --all --minutes 9, or --only bandwidth ...

Rows go to perf/results/gpu.csv, or to --out, each as soon as it is measured, so that a run that is cut short answers what it
reached; called again, it goes on after the rows of the same commit and device that are there (--again measures them too).
A pair takes turns within one process; medians. Two times of a step:
    ms       on the device: events around steps that wait there while the host queues them, so that none of its time is in it
    wall_ms  of a loop of steps: whichever of host and device is slower
Without git, COMPILEDOPT_COMMIT names the commit. Without a GPU, --fake measures the host's time against a driver that does
nothing (perf/fake_driver.py); the rows say so.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))  # where nothing is installed, a copy of the files is enough
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import fake_driver
import torch
from catalog import CATALOG, MENU
from common import RESULTS, append, circumstances, processor, read
from shapes import SHAPES
from step import OPTIONS, bitsandbytes, optimi, torchao

import compiledopt
from compiledopt.step import steady

DEVICE = "cuda"
MODELS = ("gpt2_small", "llama_1b", "resnet50", "vit_b16")
FAKE = False  # whether the driver is
ELEMENTWISE = [name for name in OPTIONS if getattr(compiledopt, name).rule.elementwise]
WITHOUT_FUSED = [name for name in ELEMENTWISE if "fused" not in inspect.signature(getattr(torch.optim, name)).parameters]
WITH_FUSED = [name for name in ELEMENTWISE if name not in (*WITHOUT_FUSED, "AdamW")]  # which is measured by itself
REDUCING = next(name for name in OPTIONS if CATALOG[name].reduces)  # of several launches
LARGE = [(4096, 4096)] * 32  # 2^29 elements
STEPS = 5  # of a turn: few enough that the launches of an eager step all fit into the device's queue
HOST_STEPS = 200  # of which the first quarter warms
CYCLES = 2e9  # per second, of the fastest GPU

Step = Callable[[], Any]
Make = Callable[[Any], Any]
Row = dict[str, Any]


class Stop(Exception):
    """The time is over."""


KEY = ("what", "optimizer", "shapes", "against")


class Measure:
    """seconds: for each pair; end: when no other is begun, by time.monotonic(); known: rows that are there."""

    def __init__(self, seconds: float, end: float, known: Sequence[Mapping[str, Any]] = ()) -> None:
        self.seconds, self.end = seconds, end
        now, where = circumstances()["commit"], device()
        self.known = {tuple(row[name] for name in KEY) for row in known if (row["commit"], row["device"]) == (now, where)}

    def wants(self, what: str, name: str, shapes: str, against: str) -> bool:
        """Whether a row is to be measured. Raises: Stop."""
        if (what, name, shapes, against) in self.known:
            return False
        if time.monotonic() > self.end:
            raise Stop
        return True

    def pair(self, theirs: Step, ours: Step) -> tuple[list[float], list[float]]:
        """[ms on the device, ms of a loop] of each, medians of turns."""
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
    return {**found, "device": device(), **circumstances()}


def device() -> str:
    if FAKE:
        return f"a driver that does nothing, on {processor()}"
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


# ---- what is measured: each yields rows ----


def against(
    measure: Measure, what: str, name: str, shapes: str, contenders: dict[str, Make], ours: Make | None = None
) -> Iterator[Row]:
    """Our step against that of each contender, on parameters of the same shapes. ours: where it is not the plain one."""
    make_ours = ours or mine(name)
    wanted = {label: make for label, make in contenders.items() if measure.wants(what, name, shapes, label)}
    optimizer = None
    for label, make in wanted.items():
        measure.wants(what, name, shapes, label)
        theirs = None
        try:
            optimizer = optimizer or make_ours(model(SHAPES[shapes]()))
            theirs = make(model(SHAPES[shapes]()))
            times = measure.pair(theirs.step, optimizer.step)
        except Exception as error:  # one that is not installed, or finds no room, must not end the others
            print(f"{label} on {shapes}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        finally:
            theirs = None
            free()
        yield row(what, name, shapes, label, times)


def mine(name: str, **flags: Any) -> Make:
    """Ours, which must be compiled where that can be had."""
    one = {**CATALOG, **MENU}[name]
    options = OPTIONS.get(name, {**one.promised})
    matrices = not one.elementwise and not one.reduces
    return lambda params: one.ours(params, **({} if matrices else {"compiled": True}), **options, **flags)


def eager(name: str, **flags: Any) -> Make:
    """Ours, by torch's operations on lists of tensors."""
    one = {**CATALOG, **MENU}[name]
    return lambda params: one.ours(params, foreach=True, **OPTIONS.get(name, {**one.promised}), **flags)


def free() -> None:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def bandwidth(measure: Measure) -> Iterator[Row]:
    """Of large tensors, as a share of what a device copy reaches, and against torch's fused."""
    for name, dtype in (("AdamW", torch.float32), ("AdamW", torch.bfloat16), ("SGD", torch.float32)):
        label = f"{len(LARGE)} x {tuple(LARGE[0])} {dtype}".replace("torch.", "")
        ours = getattr(compiledopt, name)(model(LARGE, dtype), compiled=True, **OPTIONS[name])
        if measure.wants("bandwidth", name, label, "device copy"):
            source = torch.empty(sum(param.numel() for param in ours.param_groups[0]["params"]), device=DEVICE)
            target = torch.empty_like(source)
            copying, stepping = measure.pair(partial(target.copy_, source), ours.step)
            moved = (7 if name == "AdamW" else 5) * dtype.itemsize / 8  # of what the copy moves
            note = f"{moved * copying[0] / stepping[0]:.3f} of a copy's bandwidth"
            yield row("bandwidth", name, label, "device copy", ([moved * one for one in copying], stepping), note)
            del source, target
        if measure.wants("bandwidth", name, label, "torch fused"):
            theirs = torchs(name, fused=True)(model(LARGE, dtype))
            yield row("bandwidth", name, label, "torch fused", measure.pair(theirs.step, ours.step))
            del theirs
        del ours
        free()


def models(measure: Measure) -> Iterator[Row]:
    for shapes in MODELS:
        yield from against(measure, "models", "AdamW", shapes, {"torch fused": torchs("AdamW", fused=True)})


def small(measure: Measure) -> Iterator[Row]:
    fused = {f"torch fused{' capturable' * c}": torchs("AdamW", fused=True, capturable=c) for c in (False, True)}
    for shapes in ("many_small", "tiny", "even"):
        yield from against(measure, "small", "AdamW", shapes, fused)


HOST: dict[str, dict[str, Any]] = {
    "plain": {},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 1.0},
    "capturable and clipped": {"capturable": True, "max_grad_norm": 1.0},
    "lr in a tensor": {"capturable": True, "lr": 1e-3},
    "two groups": {},
    "new gradients": {},
}


def host(measure: Measure) -> Iterator[Row]:
    """The time until step() returns, with nothing queued before it, at 300 tensors; against torch's fused, and against our own
    where Python takes every step."""
    for label, options in HOST.items():
        contenders: dict[str, Callable[[Any], Step]] = {
            "ours, from Python": lambda groups, o=options: from_python(hosted(groups, o))
        }
        if not FAKE:
            contenders["torch fused"] = lambda groups, o=options: fused_step(groups, o)
        for name, make in contenders.items():
            if measure.wants("host", "AdamW", f"300 x 64, {label}", name):
                sets = [model([(64,)] * 300) for _ in range(2)]
                steps = make(groups_of(label, sets[0])), hosted(groups_of(label, sets[1]), options).step
                their, our = returned(steps, sets, label == "new gradients")
                yield row("host", "AdamW", f"300 x 64, {label}", name, ([their] * 2, [our] * 2), "until step() returns")


def groups_of(label: str, params: Any) -> Any:
    return [{"params": params[:150]}, {"params": params[150:], "lr": 1e-4}] if label == "two groups" else params


def hosted(groups: Any, options: dict[str, Any]) -> Any:
    lr = {"lr": torch.tensor(options["lr"], device=DEVICE)} if "lr" in options else {}
    return compiledopt.AdamW(groups, compiled=True, **{**options, **lr})


def from_python(optimizer: Any) -> Step:
    """A step that the native one never takes."""

    def step() -> None:
        optimizer._stepper.steady = steady.never
        optimizer.step()

    return step


def fused_step(groups: Any, options: dict[str, Any]) -> Step:
    lr = {"lr": torch.tensor(options["lr"], device=DEVICE)} if "lr" in options else {}
    optimizer = torch.optim.AdamW(groups, fused=True, capturable="capturable" in options, **lr)
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def step() -> None:
        if "max_grad_norm" in options:
            torch.nn.utils.clip_grad_norm_(params, options["max_grad_norm"], foreach=True)
        optimizer.step()

    return step


def returned(steps: tuple[Step, Step], sets: Sequence[Any], fresh: bool) -> list[float]:
    """Milliseconds until each returns, in turns. fresh: whether the gradients are other tensors at each step."""
    times: list[list[float]] = [[], []]
    kept = [[torch.zeros_like(param) for param in params] for params in sets]
    for number in range(HOST_STEPS):
        for step, params, others, found in zip(steps, sets, kept, times, strict=True):
            for index, param in enumerate(params) if fresh else ():
                param.grad, others[index] = others[index], param.grad
            synchronize()
            begun = time.perf_counter()
            step()
            if number >= HOST_STEPS // 4:
                found.append((time.perf_counter() - begun) * 1e3)
    return [statistics.median(found) for found in times]


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def replay(measure: Measure) -> Iterator[Row]:
    """A captured step against the same step, eager."""
    for name, shapes in (("AdamW", "gpt2_small"), ("AdamW", "many_small"), ("Adafactor", "gpt2_small"), ("Muon", "matrices")):
        if not measure.wants("replay", name, shapes, "ours, eager"):
            continue
        eager_one, captured = (mine(name, capturable=True)(model(SHAPES[shapes]())) for _ in range(2))
        captured.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        yield row("replay", name, shapes, "ours, eager", measure.pair(eager_one.step, graph.replay))


class Clipping:
    """torch's fused step behind its clip_grad_norm_."""

    def __init__(self, params: Any) -> None:
        self.params, self.optimizer = params, torchs("AdamW", fused=True)(params)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.optimizer.step()


def clipped(measure: Measure) -> Iterator[Row]:
    """The norm in our step's own launch against torch's, in front of its fused step."""
    for shapes in ("gpt2_small", "many_small"):
        yield from against(measure, "clipped", "AdamW", shapes, {"torch, clipped": Clipping}, mine("AdamW", max_grad_norm=1.0))


def stored(measure: Measure) -> Iterator[Row]:
    """States in fewer bits, against ours in float32, torch's fused, and packages that are installed."""
    packages = {"int8": {"bitsandbytes 8-bit": bitsandbytes("AdamW"), "torchao 8-bit": torchao("AdamW", "8bit")}}
    packages |= {"int4": {"torchao 4-bit": torchao("AdamW", "4bit")}, "float8_e4m3fn": {"torchao fp8": torchao("AdamW", "Fp8")}}
    for kept in ("int8", "dynamic8", "float8_e4m3fn", "int4", "bfloat16"):
        contenders = {"ours, float32": mine("AdamW"), "torch fused": torchs("AdamW", fused=True), **packages.get(kept, {})}
        named = {f"{label} (ours: {kept})": make for label, make in contenders.items()}
        yield from against(measure, "stored", "AdamW", "gpt2_small", named, mine("AdamW", state_dtype=kept))


def rest(measure: Measure) -> Iterator[Row]:
    """Everything of the catalog and the menu that torch has no compiled kernel for, against our own eager executor."""
    for name, one in {**CATALOG, **MENU}.items():
        if one.rule is None or one.sparse_only or one.measured is None:
            continue
        shapes = "matrices" if not one.takes_vectors else "vit_b16" if one.elementwise or one.reduces else "matrices_128"
        yield from against(measure, "rest", name, shapes, {"ours, foreach": eager(name)})


def others(measure: Measure) -> Iterator[Row]:
    """Every other algorithm, and torch's foreach and another library on the models."""
    for name in (*WITH_FUSED, *WITHOUT_FUSED):
        fused = {} if name in WITHOUT_FUSED else {"torch fused": torchs(name, fused=True)}
        yield from against(measure, "others", name, "gpt2_small", {**fused, "torch foreach": torchs(name, foreach=True)})
    for shapes in MODELS:
        more = {"torch foreach": torchs("AdamW", foreach=True), "optimi": optimi("AdamW")}
        yield from against(measure, "others", "AdamW", shapes, more)


def first_step(measure: Measure) -> Iterator[Row]:
    """The time of a first step, with kernels on disk and without: what is compiled, tuned and tried."""
    for shapes in ("tiny", "gpt2_small"):
        for name in ("AdamW", REDUCING):
            if not measure.wants("first", name, shapes, "ours, kernels on disk"):
                continue
            with tempfile.TemporaryDirectory() as empty:
                without, on_disk = (in_a_process(name, shapes, empty) for _ in range(2))
            times = [on_disk] * 2, [without] * 2
            yield row("first", name, shapes, "ours, kernels on disk", times, "seconds of a first step")


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
    """A rule that reduces, and one that multiplies matrices, against torch's foreach."""
    for shapes in ("gpt2_small", "vit_b16"):
        yield from against(measure, "reducing", "Adafactor", shapes, {"torch foreach": torchs("Adafactor", foreach=True)})
    yield from against(measure, "reducing", "Muon", "matrices", {"torch": torchs("Muon")})


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
    "stored": stored,
    "clipped": clipped,
    "others": others,
    "first": first_step,
    "rest": rest,
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
    parser.add_argument("--out", type=Path, help="what rows are added to: perf/results/gpu.csv, gpu_host.csv of --fake")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--again", action="store_true", help="measure what this commit and device have rows of, too")
    parser.add_argument("--fake", action="store_true", help="the host's time with a driver that does nothing, without a GPU")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.fake:
            pretend(stack)
            arguments.only = ["host"]
        elif not torch.cuda.is_available():
            print("no CUDA device on this machine; --fake measures the host's time without one", file=sys.stderr)
            return 1
        out = (arguments.out or RESULTS / ("gpu_host.csv" if arguments.fake else "gpu.csv")).resolve()
        known = [] if arguments.again else read(str(out))
        measure = Measure(arguments.seconds, time.monotonic() + 60 * arguments.minutes, known)
        return min(1, run(arguments.only, measure, None if arguments.no_save else out))


def pretend(stack: ExitStack) -> None:
    """Let the driver be one that does nothing. Raises: RuntimeError where that cannot be."""
    global DEVICE, FAKE
    stack.enter_context(fake_driver.installed())
    DEVICE, FAKE = "cpu", True


if __name__ == "__main__":
    sys.exit(main())
