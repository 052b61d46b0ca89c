"""Time of one optimizer step, in pairs within one process: python perf/step.py --optimizer AdamW --shapes even

Each contender runs against ours in turns of a few steps each, so that both see the same machine, its noise and its caches.
Medians of all steps, the quartiles as spread, the ratio of the medians, and the memory that a step takes on top.
Each case twice: with nothing between steps, and with the caches emptied, as a forward and backward pass does.
With --state-dtype ours keeps its states so, and rows go to perf/results/storage.csv: against what others keep in 8 and 4 bits,

    python perf/step.py --shapes even --state-dtype int8 --against "torch fused" "bitsandbytes 8-bit" "torchao 8-bit"
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import memory
import torch
from common import append, circumstances
from shapes import SHAPES

import compiledopt

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from catalog import CATALOG

OPTIONS: dict[str, dict[str, Any]] = {one.name: dict(one.measured) for one in CATALOG.values() if one.measured is not None}


def torchs(name: str, **flags: Any) -> Callable[[Any], Any]:
    return lambda params: getattr(torch.optim, name)(params, **OPTIONS.get(name, {}), **flags)


def compiled_step(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        optimizer = torchs(name)(params)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return make


def optimi(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        import optimi as library

        return getattr(library, name)(params, **OPTIONS[name])

    return make


def heavyball(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        import heavyball as library

        params = list(params)
        gradients = [param.grad for param in params]
        optimizer = library.AdamW(params, **OPTIONS[name])

        def restore(*_: Any) -> None:  # it takes the gradients away at each step
            for param, grad in zip(params, gradients, strict=True):
                param.grad = grad

        optimizer.register_step_pre_hook(restore)
        return optimizer

    return make


def torchao(name: str, bits: str = "") -> Callable[[Any], Any]:
    """bits: "8bit", "4bit" or "Fp8", or "" for its optimizer with float32 states."""

    def make(params: Any) -> Any:
        from torchao import optim as library

        return getattr(library, f"{name}{bits}" if bits else f"_{name}")(params, **OPTIONS[name])

    return make


def bitsandbytes(name: str) -> Callable[[Any], Any]:
    def make(params: Any) -> Any:
        from bitsandbytes import optim as library

        return getattr(library, f"{name}8bit")(params, **OPTIONS[name])

    return make


def contenders(name: str) -> dict[str, Callable[[Any], Any]]:
    return {
        "torch": torchs(name),
        "torch for-loop": torchs(name, foreach=False),
        "torch foreach": torchs(name, foreach=True),
        "torch fused": torchs(name, fused=True),
        "torch.compile(step)": compiled_step(name),
        "optimi": optimi(name),
        "heavyball": heavyball(name),
        "torchao": torchao(name),
        "torchao 8-bit": torchao(name, "8bit"),
        "torchao 4-bit": torchao(name, "4bit"),
        "torchao fp8": torchao(name, "Fp8"),
        "bitsandbytes 8-bit": bitsandbytes(name),
    }


BETWEEN = {"nothing": "warm", "emptied": "cold"}  # what stands in rows

OURS: dict[str, dict[str, Any]] = {"compiled": {}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def model(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def timed(step: Callable[[], Any], count: int, cold: torch.Tensor | None) -> list[float]:
    seconds = []
    for _ in range(count):
        if cold is not None:
            cold.add_(1)
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def pair(theirs: Callable[[], Any], ours: Callable[[], Any], labels: dict[str, str], seconds: float) -> dict[str, Any]:
    """One row: two ways of doing the same, in turns, printed as it is measured."""
    steps = [SimpleNamespace(step=step) for step in (theirs, ours)]
    a, b = (statistics.median(times) * 1e3 for times in compare(*steps, seconds, None))
    print(f"{' '.join(f'{label:24}' for label in labels.values())} {a:8.4g} ms, ours {b:8.4g} ms, ratio {a / b:.2f}")
    return {**labels, "their_ms": f"{a:.4g}", "our_ms": f"{b:.4g}", "ratio": f"{a / b:.2f}"} | circumstances()


def compare(theirs: Any, ours: Any, budget: float, cold: torch.Tensor | None) -> tuple[list[float], list[float]]:
    """Turns of ten steps (fewer of long ones) for `budget` seconds; the first step of each turn warms and is dropped."""
    for _ in range(3):
        theirs.step()
        ours.step()
    one = max(max(timed(theirs.step, 3, cold)), max(timed(ours.step, 3, cold)))
    turn = max(3, min(10, int(budget / 10 / one)))
    a: list[float] = []
    b: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < budget or len(a) < 9:
        a += timed(theirs.step, turn, cold)[1:]
        b += timed(ours.step, turn, cold)[1:]
    return a, b


def quartiles(seconds: list[float]) -> str:
    low, _, high = statistics.quantiles(seconds, n=4)
    return f"{low * 1e3:.4g}-{high * 1e3:.4g}"


def peak_memory(command: list[str]) -> float:
    """MiB that steps take on top of parameters, gradients and states, measured in a process of its own."""
    command = [sys.executable, __file__, *command]
    done = subprocess.run(command, capture_output=True, text=True, env=memory.environment())
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else float("nan")


def measure_memory(arguments: argparse.Namespace) -> None:
    name, params = arguments.optimizer, model(SHAPES[arguments.shapes[0]](), torch.float32)
    if arguments.memory.startswith("ours "):
        optimizer = getattr(compiledopt, name)(params, **OPTIONS[name], **OURS[arguments.memory.removeprefix("ours ")])
    else:
        optimizer = contenders(name)[arguments.memory](params)
    print(memory.extra_mib(optimizer.step))


def rows_for(arguments: argparse.Namespace, state_dtype: str | None, shapes: str, caches: str) -> list[dict[str, Any]]:
    """state_dtype: how ours keeps its states, None for the parameters' dtype."""
    name, rows = arguments.optimizer, []
    cold = torch.zeros(24 * 2**20) if caches == "cold" else None
    extra: dict[str, float] = {}
    for against in arguments.against:
        for executor in arguments.ours:
            try:
                theirs = contenders(name)[against](model(SHAPES[shapes](), torch.float32))
                theirs.step()
            except Exception as error:
                print(f"{against} on {shapes}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
                break
            kept = {"state_dtype": state_dtype} if state_dtype else {}
            ours = getattr(compiledopt, name)(model(SHAPES[shapes](), torch.float32), **OPTIONS[name], **OURS[executor], **kept)
            a, b = compare(theirs, ours, arguments.seconds, cold)
            for who in (against, f"ours {executor}") if arguments.with_memory else ():
                if who not in extra:
                    extra[who] = peak_memory(["--optimizer", name, "--shapes", shapes, "--memory", who])
            row = {
                "optimizer": name,
                "options": json.dumps({**OPTIONS[name], **kept}),
                "shapes": shapes,
                "caches": caches,
                "against": against,
                "ours": ours.executor,
                "their_ms": f"{statistics.median(a) * 1e3:.4g}",
                "their_quartiles": quartiles(a),
                "our_ms": f"{statistics.median(b) * 1e3:.4g}",
                "our_quartiles": quartiles(b),
                "ratio": f"{statistics.median(a) / statistics.median(b):.2f}",
                "their_extra_mib": f"{extra.get(against, float('nan')):.1f}",
                "our_extra_mib": f"{extra.get(f'ours {executor}', float('nan')):.1f}",
                "steps": len(a),
                **circumstances(),
            }
            print(
                "{optimizer:6} {shapes:16} {caches:4} {against:20} {their_ms:>9} ms, "
                "ours {ours:9} {our_ms:>9} ms, ratio {ratio}".format(**row)
            )
            rows.append(row)
            del theirs, ours
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", default="AdamW", choices=sorted(OPTIONS))
    parser.add_argument("--shapes", nargs="+", default=["many_small", "tiny", "even", "one"], choices=sorted(SHAPES))
    parser.add_argument("--against", nargs="+", default=["torch fused"], choices=sorted(contenders("AdamW")))
    parser.add_argument("--ours", nargs="+", default=["compiled"], choices=sorted(OURS))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair")
    parser.add_argument("--state-dtype", nargs="+", default=[None], help="how ours keeps its states: int8, bfloat16, ...")
    parser.add_argument("--between", nargs="+", default=list(BETWEEN), choices=list(BETWEEN), help="what happens between steps")
    parser.add_argument("--with-memory", action="store_true", help="peak memory too, in processes of their own")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments)
        return
    for state_dtype, shapes, between in itertools.product(arguments.state_dtype, arguments.shapes, arguments.between):
        rows = rows_for(arguments, state_dtype, shapes, BETWEEN[between])
        if rows and not arguments.no_save:
            append("storage.csv" if state_dtype else "step.csv", rows)


if __name__ == "__main__":
    main()
