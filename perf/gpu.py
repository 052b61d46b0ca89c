"""What is to be measured on a GPU, the most important first: python perf/gpu.py --all --minutes 9, or --only bandwidth ...

Rows go to perf/results/gpu.csv, or to --out, each as soon as it is measured, so that a run that is cut short answers what it
reached; called again, it goes on after the rows of the same commit and device that are there (--again measures them too).
A case that fails costs its own row: what kills the process, loses the device or takes PATIENCE is left out by the next process,
which is begun at once (perf/supervised.py).
A pair takes turns within one process; medians. Two times of a step:
    ms       on the device: events around steps that wait there while the host queues them, so that none of its time is in it
    wall_ms  of a loop of steps: whichever of host and device is slower
A row of which something is asked says what, and whether that was met; what was missed is said once more at the end.
Without git, COMPILEDOPT_COMMIT names the commit. Without a GPU, --fake measures the host's time against a driver that does
nothing (perf/fake_driver.py); the rows say so.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parent.parent))  # where nothing is installed, a copy of the files is enough
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import fake_driver
import torch
from catalog import CATALOG, MENU
from common import RESULTS, append, circumstances, processor, read
from shapes import SHAPES
from step import OPTIONS, bitsandbytes, optimi, torchao
from supervised import LOST, note, noted, supervise

import compiledopt
from compiledopt.backends.triton import symmetric, tuning
from compiledopt.backends.triton.tables import Tables
from compiledopt.step import steady

DEVICE = "cuda"
MODELS = ("gpt2_small", "llama_1b", "resnet50", "vit_b16")
FAKE = False  # whether the driver is
ELEMENTWISE = [name for name in OPTIONS if getattr(compiledopt, name).rule.elementwise]
WITHOUT_FUSED = [name for name in ELEMENTWISE if "fused" not in inspect.signature(getattr(torch.optim, name)).parameters]
WITH_FUSED = [name for name in ELEMENTWISE if name not in (*WITHOUT_FUSED, "AdamW")]  # which is measured by itself
REDUCING = next(name for name in OPTIONS if CATALOG[name].reduces)  # of several launches
LARGE = [(4096, 4096)] * 64  # 2^30 elements
STACKS = [(12, 768, 768), (12, 768, 3072), (24, 1024, 4096), (4, 2048, 2048), (2, 4096, 4096), (2, 4096, 11008)]
WARM = 3  # steps before any is timed: kernels are made, tables uploaded, the native step prepared
STEPS = 5  # of a turn: few enough that the launches of an eager step all fit into the device's queue
HOST_STEPS = 200  # of which the first quarter warms
CYCLES = 2e9  # per second, of the fastest GPU
PATIENCE = 150.0  # seconds for a case

Step = Callable[[], Any]
Make = Callable[[Any], Any]
Row = dict[str, Any]
Found = tuple[list[float], list[float], str]  # [ms on the device, ms of a loop], theirs and ours; and a note
KEY = ("what", "optimizer", "shapes", "against")
Goal = tuple[str, float]  # ("ratio" on the device, or "wall_ratio" of a loop, the least that is asked)
COPY, AHEAD, TWICE, THRICE = ("ratio", 0.92), ("ratio", 1.0), ("wall_ratio", 2.0), ("ratio", 3.0)
# Within what a median moves; of a loop, since one kernel of a graph begins later than one that is queued behind another.
REPLAYED = ("wall_ratio", 0.98)


@dataclass(frozen=True)
class Case:
    """A row to be measured. run: measures it; goal: what is asked of it."""

    what: str
    optimizer: str
    shapes: str
    against: str
    run: Callable[[Measure], Found]
    goal: Goal | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in KEY)


class Measure:
    """seconds: for each pair; end: when no other is begun, by time.monotonic(); known: rows that are there; journal: the cases
    that were begun, where another process may go on after them."""

    def __init__(
        self, seconds: float, end: float, known: Sequence[Mapping[str, Any]] = (), journal: Path | None = None
    ) -> None:
        self.seconds, self.end, self.journal = seconds, end, journal
        now, where = circumstances()["commit"], device()
        self.known = {tuple(row[name] for name in KEY) for row in known if (row["commit"], row["device"]) == (now, where)}
        self.known |= {tuple(json.loads(line)) for line in (noted(journal) if journal else ())}

    def begin(self, case: Case) -> None:
        if self.journal is not None:
            note(self.journal, json.dumps(case.key))

    def pair(self, theirs: Step, ours: Step) -> tuple[list[float], list[float]]:
        """[ms on the device, ms of a loop] of each, medians of turns."""
        found: dict[Step, list[list[float]]] = {theirs: [], ours: []}
        for step in found:
            for _ in range(WARM):
                step()
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


def row(case: Case, found: Found) -> Row:
    (their, their_wall), (our, our_wall), told = found
    row = {**dict(zip(KEY, case.key, strict=True)), "their_ms": f"{their:.4g}"}
    row |= {"our_ms": f"{our:.4g}", "ratio": f"{their / our:.3f}", "their_wall_ms": f"{their_wall:.4g}"}
    row |= {"our_wall_ms": f"{our_wall:.4g}", "wall_ratio": f"{their_wall / our_wall:.3f}"}
    asked = [] if case.goal is None else [f"{case.goal[1]:g} asked: {'missed' if is_missed(case, row) else 'met'}"]
    return {**row, "note": ", ".join([*asked, *filter(None, [told])]), "device": device(), **circumstances()}


def is_missed(case: Case, row: Row) -> bool:
    return case.goal is not None and float(row[case.goal[0]]) < case.goal[1]


def device() -> str:
    if FAKE:
        return f"a driver that does nothing, on {processor()}"
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


# ---- what is measured: each part gives cases ----


def against(
    what: str, name: str, shapes: str, contenders: dict[str, Make], ours: Make | None = None, goal: Goal | None = None
) -> Iterator[Case]:
    """Our step against that of each contender, on parameters of the same shapes. ours: where it is not the plain one."""

    def run(measure: Measure, make: Make) -> Found:
        theirs, own = (one(model(SHAPES[shapes]())) for one in (make, ours or mine(name)))
        return *measure.pair(theirs.step, own.step), form(own)

    for label, make in contenders.items():
        yield Case(what, name, shapes, label, partial(run, make=make), goal)


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


def form(optimizer: Any) -> str:
    """The block size and warps that tuning chose."""
    tables = (getattr(batch, "tables", None) for batch in optimizer._stepper.plan.batches)
    chosen = {(each.block, each.warps) for each in tables if type(each) is Tables}
    return "; ".join(f"blocks of {block} by {warps} warps" for block, warps in sorted(chosen))


def free() -> None:
    if DEVICE == "cuda":
        gc.collect()  # of what came after `gc.freeze`: else each takes a part of a second
        torch.cuda.empty_cache()


def bandwidth() -> Iterator[Case]:
    """Of large tensors, as a share of what a device copy reaches, and against torch's fused."""

    def copy(measure: Measure, name: str, dtype: torch.dtype) -> Found:
        ours = getattr(compiledopt, name)(model(LARGE, dtype), compiled=True, **OPTIONS[name])
        source = torch.randn(sum(param.numel() for param in ours.param_groups[0]["params"]), device=DEVICE)
        target = torch.empty_like(source)
        copying, stepping = measure.pair(partial(target.copy_, source), ours.step)
        moved = (7 if name == "AdamW" else 5) * dtype.itemsize / 8  # of what the copy moves
        copied = 2 * source.numel() * source.element_size() / copying[0] / 1e9
        told = f"{moved * copying[0] / stepping[0]:.3f} of a copy's bandwidth, which is {copied:.2f} TB/s"
        return [moved * one for one in copying], stepping, f"{told}{', ' * bool(form(ours))}{form(ours)}"

    def fused(measure: Measure, name: str, dtype: torch.dtype) -> Found:
        theirs = torchs(name, fused=True)(model(LARGE, dtype))
        ours = getattr(compiledopt, name)(model(LARGE, dtype), compiled=True, **OPTIONS[name])
        return *measure.pair(theirs.step, ours.step), form(ours)

    for name, dtype in (("AdamW", torch.float32), ("AdamW", torch.bfloat16), ("SGD", torch.float32)):
        shapes = f"{len(LARGE)} x {tuple(LARGE[0])} {dtype}".replace("torch.", "")
        for label, run, goal in (("device copy", copy, COPY), ("torch fused", fused, AHEAD)):
            asked = goal if (name, dtype) == ("AdamW", torch.float32) else None
            yield Case("bandwidth", name, shapes, label, partial(run, name=name, dtype=dtype), asked)


def models() -> Iterator[Case]:
    for shapes in MODELS:
        yield from against("models", "AdamW", shapes, {"torch fused": torchs("AdamW", fused=True)}, goal=AHEAD)


def small() -> Iterator[Case]:
    """Both with capturable, or neither: torch's fused step counts on the device either way."""
    for shapes in ("many_small", "tiny", "even"):
        for capturable in (False, True):
            theirs = {f"torch fused{' capturable' * capturable}": torchs("AdamW", fused=True, capturable=capturable)}
            goal = TWICE if shapes != "even" else AHEAD
            yield from against("small", "AdamW", shapes, theirs, mine("AdamW", capturable=capturable), goal)


def foreach() -> Iterator[Case]:
    """The algorithms that torch has no fused kernel for."""
    for name in WITHOUT_FUSED:
        yield from against("foreach", name, "gpt2_small", {"torch foreach": torchs(name, foreach=True)}, goal=THRICE)


HOST: dict[str, dict[str, Any]] = {
    "plain": {},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 1.0},
    "capturable and clipped": {"capturable": True, "max_grad_norm": 1.0},
    "lr in a tensor": {"capturable": True, "lr": 1e-3},
    "two groups": {},
    "new gradients": {},
}


def host() -> Iterator[Case]:
    """The time until step() returns, with nothing queued before it, at 300 tensors; against torch's fused, and against our own
    where Python takes every step."""

    def run(_: Measure, label: str, make: Callable[[Any, dict[str, Any]], Step]) -> Found:
        sets, options = [model([(64,)] * 300) for _ in range(2)], HOST[label]
        steps = make(groups_of(label, sets[0]), options), hosted(groups_of(label, sets[1]), options).step
        their, our = returned(steps, sets, label == "new gradients")
        return [their] * 2, [our] * 2, "until step() returns"

    contenders: dict[str, Callable[[Any, dict[str, Any]], Step]] = {} if FAKE else {"torch fused": fused_step}
    contenders["ours, from Python"] = lambda groups, options: from_python(hosted(groups, options))
    for label in HOST:
        for name, make in contenders.items():
            yield Case("host", "AdamW", f"300 x 64, {label}", name, partial(run, label=label, make=make))


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


def replay() -> Iterator[Case]:
    """A captured step against the same step, eager."""

    def run(measure: Measure, name: str, shapes: str) -> Found:
        eager_one, captured = (mine(name, capturable=True)(model(SHAPES[shapes]())) for _ in range(2))
        captured.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        return *measure.pair(eager_one.step, graph.replay), ""

    for name, shapes in (("AdamW", "gpt2_small"), ("AdamW", "many_small"), ("Adafactor", "gpt2_small"), ("Muon", "matrices")):
        yield Case("replay", name, shapes, "ours, eager", partial(run, name=name, shapes=shapes), REPLAYED)


class Clipping:
    """torch's fused step behind its clip_grad_norm_."""

    def __init__(self, params: Any) -> None:
        self.params, self.optimizer = params, torchs("AdamW", fused=True)(params)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.optimizer.step()


def clipped() -> Iterator[Case]:
    """The norm in our step's own launch against torch's, in front of its fused step."""
    for shapes in ("gpt2_small", "many_small"):
        yield from against("clipped", "AdamW", shapes, {"torch, clipped": Clipping}, mine("AdamW", max_grad_norm=1.0))


def stored() -> Iterator[Case]:
    """States in fewer bits, against ours in float32, torch's fused, and packages that are installed."""
    packages = {"int8": {"bitsandbytes 8-bit": bitsandbytes("AdamW"), "torchao 8-bit": torchao("AdamW", "8bit")}}
    packages |= {"int4": {"torchao 4-bit": torchao("AdamW", "4bit")}, "float8_e4m3fn": {"torchao fp8": torchao("AdamW", "Fp8")}}
    for kept in ("int8", "dynamic8", "float8_e4m3fn", "int4", "bfloat16"):
        contenders = {"ours, float32": mine("AdamW"), "torch fused": torchs("AdamW", fused=True), **packages.get(kept, {})}
        named = {f"{label} (ours: {kept})": make for label, make in contenders.items()}
        yield from against("stored", "AdamW", "gpt2_small", named, mine("AdamW", state_dtype=kept))


def untuned(run: Callable[[Measure], Found], measure: Measure) -> Found:
    """With the first candidate of each kernel: to tune takes longer than to measure."""
    with mock.patch.dict(os.environ, {"COMPILEDOPT_TUNE": "0"}):
        return run(measure)


def rest() -> Iterator[Case]:
    """Everything of the catalog and the menu that torch has no compiled kernel for, against our own eager executor."""
    for name, one in {**CATALOG, **MENU}.items():
        if one.rule is None or one.sparse_only or one.measured is None:
            continue
        shapes = "matrices" if not one.takes_vectors else "vit_b16" if one.elementwise or one.reduces else "matrices_128"
        for case in against("rest", name, shapes, {"ours, foreach": eager(name)}):
            yield replace(case, run=partial(untuned, case.run))


def others() -> Iterator[Case]:
    """The algorithms that torch has fused kernels for, and torch's foreach and another library on the models."""
    for name in WITH_FUSED:
        contenders = {"torch fused": torchs(name, fused=True), "torch foreach": torchs(name, foreach=True)}
        yield from against("others", name, "gpt2_small", contenders)
    for shapes in MODELS:
        more = {"torch foreach": torchs("AdamW", foreach=True), "optimi": optimi("AdamW")}
        yield from against("others", "AdamW", shapes, more)


def first_step() -> Iterator[Case]:
    """The time of a first step, with kernels on disk and without: what is compiled, tuned and tried."""

    def run(_: Measure, name: str, shapes: str) -> Found:
        with tempfile.TemporaryDirectory() as empty:
            without, on_disk = (in_a_process(name, shapes, empty) for _ in range(2))
        return [on_disk] * 2, [without] * 2, "seconds of a first step"

    for shapes in ("tiny", "gpt2_small"):
        for name in ("AdamW", REDUCING):
            yield Case("first", name, shapes, "ours, kernels on disk", partial(run, name=name, shapes=shapes))


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


def reducing() -> Iterator[Case]:
    """A rule that reduces, and one that multiplies matrices, against torch's foreach."""
    for shapes in ("gpt2_small", "vit_b16"):
        yield from against("reducing", "Adafactor", shapes, {"torch foreach": torchs("Adafactor", foreach=True)})
    yield from against("reducing", "Muon", "matrices", {"torch": torchs("Muon")})


def products() -> Iterator[Case]:
    """Half of a symmetric product against cuBLAS's whole one, as Newton–Schulz takes them of a transformer's matrices."""

    def run(measure: Measure, shape: tuple[int, int, int], adds: bool) -> Found:
        count, rows, columns = shape
        x = torch.randn(count, rows, rows if adds else columns, device=DEVICE, dtype=torch.bfloat16) / columns**0.5
        x = x + x.mT if adds else x
        out = torch.empty(count, rows, rows, device=DEVICE, dtype=torch.bfloat16)
        given = (x, x if adds else None, -4.775, 2.0315 if adds else 1.0, out)
        tiling = tuning.best(
            lambda one: tuning.elapsed(partial(symmetric.Product(one).write, *given), x.device), symmetric.CANDIDATES[1:]
        )
        if tiling is None:
            raise RuntimeError("no tiling can run")
        ours = partial(symmetric.Product(tiling).write, *given)
        return *measure.pair(partial(symmetric.by_cublas, *given), ours), f"tile, depth, warps, stages: {tiling}"

    for shape, (what, adds) in itertools.product(STACKS, (("x·xᵀ", False), ("β·A + α·A·A", True))):
        yield Case("products", what, " x ".join(map(str, shape)), "cuBLAS", partial(run, shape=shape, adds=adds))


def compile_step() -> Iterator[Case]:
    """torch.compile of torch's own step, which takes minutes to compile: last."""
    for shapes in ("even", *MODELS):
        yield from against("compile", "AdamW", shapes, {"torch.compile(step)": compiled("AdamW")})


PARTS: dict[str, Callable[[], Iterator[Case]]] = {
    "bandwidth": bandwidth,
    "models": models,
    "small": small,
    "replay": replay,
    "foreach": foreach,
    "host": host,
    "reducing": reducing,
    "products": products,
    "clipped": clipped,
    "stored": stored,
    "others": others,
    "first": first_step,
    "rest": rest,
    "compile": compile_step,
}


def run(names: list[str], measure: Measure, out: Path | None) -> int:
    """Each case in turn, each row written as it comes. Returns how many cases failed. Raises: SystemExit, LOST, where the
    device is of no more use in this process."""
    failed, missed = 0, list[Row]()
    for case in (case for name in names for case in PARTS[name]()):
        if case.key in measure.known:
            continue
        if time.monotonic() > measure.end:
            print(f"no time left at {case.what}; what follows is not measured", file=sys.stderr)
            break
        measure.begin(case)
        try:
            found = row(case, case.run(measure))
        except Exception as error:  # what is not installed, finds no room or is a fault must not end the others
            failed += not (isinstance(error, ImportError) or "`fused=True` requires" in str(error))  # torch has none there
            told = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"{case.what} of {case.optimizer} on {case.shapes}, {case.against}: {told}", file=sys.stderr, flush=True)
            if is_lost():
                raise SystemExit(LOST) from None
        else:
            print(TEXT.format(**found), flush=True)
            missed += [found] if is_missed(case, found) else []
            if out is not None:
                append(str(out), [found])
        free()
    print(*[f"missed: {TEXT.format(**found)}" for found in missed], sep="\n", end="\n" * bool(missed), flush=True)
    return failed


TEXT = "{what:9} {optimizer:8} {shapes:28} {against:22} {their_ms:>8} ms, ours {our_ms:>8}, {ratio}; "
TEXT += "loop {their_wall_ms:>8} ms, ours {our_wall_ms:>8}, {wall_ratio} {note}"


def is_lost() -> bool:
    """After an error of the device, as an address that is not its own, every call of this process fails."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False


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
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)  # of a process that is supervised
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.journal is None:
        end = time.monotonic() + 60 * arguments.minutes
        with tempfile.TemporaryDirectory() as place:
            journal = Path(place) / "begun"
            command = [sys.executable, *sys.argv, "--journal", str(journal), "--end", str(end)]
            return supervise(command, journal, end, PATIENCE)
    with ExitStack() as stack:
        if arguments.fake:
            pretend(stack)
            arguments.only = ["host"]
        elif not torch.cuda.is_available():
            print("no CUDA device on this machine; --fake measures the host's time without one", file=sys.stderr)
            return 1
        out = (arguments.out or RESULTS / ("gpu_host.csv" if arguments.fake else "gpu.csv")).resolve()
        gc.freeze()
        measure = Measure(arguments.seconds, arguments.end, [] if arguments.again else read(str(out)), arguments.journal)
        return min(1, run(arguments.only, measure, None if arguments.no_save else out))


def pretend(stack: ExitStack) -> None:
    """Let the driver be one that does nothing. Raises: RuntimeError where that cannot be."""
    global DEVICE, FAKE
    stack.enter_context(fake_driver.installed())
    DEVICE, FAKE = "cpu", True


if __name__ == "__main__":
    sys.exit(main())
