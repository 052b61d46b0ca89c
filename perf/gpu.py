"""Everything that is to be measured on a GPU, in one call: python perf/gpu.py [--seconds 2] [--only steps copy host replay]

Rows go to perf/results/gpu.csv: times by CUDA events, in turns within one process, medians; the device, and torch's version.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import append, circumstances
from shapes import SHAPES
from step import OPTIONS, optimi

import compiledopt

MODELS = ("resnet50", "vit_b16", "gpt2_small", "llama_1b")
ELEMENTWISE = [name for name in OPTIONS if getattr(compiledopt, name).rule.elementwise]
WITHOUT_FUSED = [name for name in ELEMENTWISE if "fused" not in inspect.signature(getattr(torch.optim, name)).parameters]


def model(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def torchs(name: str, **flags: Any) -> Callable[[Any], Any]:
    return lambda params: getattr(torch.optim, name)(params, **OPTIONS[name], **flags)


def compiled(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        optimizer = getattr(torch.optim, name)(params, capturable=True, **OPTIONS[name])
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return make


def contenders(name: str) -> dict[str, Callable[[Any], Any]]:
    found = {"torch foreach": torchs(name, foreach=True)}
    if name not in WITHOUT_FUSED:
        found["torch fused"] = torchs(name, fused=True)
        if name != "SGD":
            found["torch fused capturable"] = torchs(name, fused=True, capturable=True)
    if name == "AdamW":
        found |= {"torch.compile(step)": compiled(name), "optimi": optimi(name)}
    return found


def device_ms(step: Callable[[], Any], count: int) -> list[float]:
    found = []
    for _ in range(count):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return found


def pair(theirs: Callable[[], Any], ours: Callable[[], Any], seconds: float) -> tuple[float, float]:
    for step in (theirs, ours):
        for _ in range(3):
            step()
    a: list[float] = []
    b: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(a) < 20:
        a += device_ms(theirs, 10)[2:]
        b += device_ms(ours, 10)[2:]
    return statistics.median(a), statistics.median(b)


def row(what: str, name: str, shapes: str, against: str, their_ms: float, our_ms: float, note: str = "") -> dict[str, Any]:
    found = {"what": what, "optimizer": name, "shapes": shapes, "against": against, "their_ms": f"{their_ms:.4g}"}
    found |= {"our_ms": f"{our_ms:.4g}", "ratio": f"{their_ms / our_ms:.3f}", "note": note}
    found |= {"device": torch.cuda.get_device_name(), **circumstances()}
    print(
        f"{what:8} {name:9} {shapes:11} {against:24} {their_ms:9.4g} ms, ours {our_ms:9.4g} ms, {their_ms / our_ms:.3f} {note}"
    )
    return found


def steps(seconds: float) -> list[dict[str, Any]]:
    """Against torch on the shapes of models; the other algorithms on one of them."""
    rows = []
    todo = [("AdamW", shapes) for shapes in MODELS] + [("SGD", "gpt2_small"), ("Adam", "gpt2_small"), ("Adagrad", "gpt2_small")]
    todo += [(name, "gpt2_small") for name in WITHOUT_FUSED]
    for name, shapes in todo:
        ours = getattr(compiledopt, name)(model(SHAPES[shapes]()), **OPTIONS[name])
        for against, make in contenders(name).items():
            try:
                theirs = make(model(SHAPES[shapes]()))
                times = pair(theirs.step, ours.step, seconds)
            except Exception as error:
                print(f"{against} on {shapes}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
                continue
            finally:
                theirs = None
                torch.cuda.empty_cache()
            rows.append(row("step", name, shapes, against, *times))
    return rows


def copy(seconds: float) -> list[dict[str, Any]]:
    """The bandwidth of AdamW on 2^30 parameters, as a share of what a device copy reaches."""
    params = model([(2**15, 2**15)])
    optimizer = compiledopt.AdamW(params)
    source = torch.empty(2**30, device="cuda")
    target = torch.empty_like(source)
    copying, stepping = pair(lambda: target.copy_(source), optimizer.step, seconds)
    share = (28 * 2**30 / stepping) / (8 * 2**30 / copying)
    return [row("copy", "AdamW", "2^30", "device copy", copying * 28 / 8, stepping, f"{share:.3f} of a copy's bandwidth")]


def host(seconds: float) -> list[dict[str, Any]]:
    """The time until step() returns, at 300 tensors."""
    rows = []
    for capturable in (False, True):
        ours = compiledopt.AdamW(model([(64,)] * 300), capturable=capturable)
        theirs = torch.optim.AdamW(model([(64,)] * 300), fused=True, capturable=capturable)
        times: dict[Any, list[float]] = {theirs: [], ours: []}
        for optimizer in times:
            for _ in range(300):
                start = time.perf_counter()
                optimizer.step()
                times[optimizer].append((time.perf_counter() - start) * 1e3)
                torch.cuda.synchronize()
        medians = [statistics.median(found[50:]) for found in times.values()]
        rows.append(row("host", "AdamW", "300 x 64", "torch fused", *medians, f"capturable={capturable}"))
    return rows


def replay(seconds: float) -> list[dict[str, Any]]:
    """A captured step against the same step, eager."""
    rows = []
    for shapes in ("gpt2_small", "many_small"):
        eager = compiledopt.AdamW(model(SHAPES[shapes]()), capturable=True)
        captured = compiledopt.AdamW(model(SHAPES[shapes]()), capturable=True)
        captured.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        rows.append(row("replay", "AdamW", shapes, "ours, eager", *pair(eager.step, graph.replay, seconds)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[float], list[dict[str, Any]]]] = {"copy": copy, "host": host, "replay": replay, "steps": steps}
    parser.add_argument("--only", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device on this machine", file=sys.stderr)
        return 1
    for name in arguments.only:
        rows = parts[name](arguments.seconds)
        torch.cuda.empty_cache()
        if rows and not arguments.no_save:
            append("gpu.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
