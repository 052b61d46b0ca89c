"""What stands around a step, inside of it against around it, in pairs within one process: python perf/around.py

clip: torch.nn.utils.clip_grad_norm_ and our step, against `max_grad_norm`. ema: our step and our AveragedModel, or torch's
fused step and torch's AveragedModel, against `ema_decay`; and our step alone against it, whose floor in bytes is 28 : 36.
schedule: our step and torch's CosineAnnealingLR, against a schedule as `lr`. compile: torch.compile of our step with its graph
break, and as one operator (fullgraph=True), against the step as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import append
from shapes import SHAPES
from step import model, pair
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import compiledopt
from compiledopt import schedules, swa_utils

Step = Callable[[], Any]
STEADY = {"lr": 1e-6}


def ours(params: Any, **more: Any) -> Step:
    return compiledopt.AdamW(params, **{**STEADY, **more}).step  # type: ignore[return-value]


def both(first: Step, second: Step) -> Step:
    def step() -> None:
        first()
        second()

    return step


def averaging(params: Any, step: Step, kind: type, function: Any) -> Step:
    module = torch.nn.Module()
    module.params = torch.nn.ParameterList(params)
    average = kind(module, multi_avg_fn=function(0.999))
    return both(step, lambda: average.update_parameters(module))


def scheduled(params: Any) -> Step:
    optimizer = compiledopt.AdamW(params, **STEADY)
    return both(optimizer.step, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6).step)


def compiled(params: Any, **how: Any) -> Step:
    return torch.compile(ours(params), **how)  # type: ignore[no-any-return]


PAIRS: dict[str, tuple[Callable[[Any], Step], Callable[[Any], Step]]] = {
    "clip: clip_grad_norm_, then our step": (
        lambda p: both(lambda: torch.nn.utils.clip_grad_norm_(p, 1.0), ours(p)),
        lambda p: ours(p, max_grad_norm=1.0),
    ),
    "ema: our step, then our AveragedModel": (
        lambda p: averaging(p, ours(p), swa_utils.AveragedModel, swa_utils.get_ema_multi_avg_fn),
        lambda p: ours(p, ema_decay=0.999),
    ),
    "ema: torch fused, then AveragedModel": (
        lambda p: averaging(p, torch.optim.AdamW(p, fused=True, **STEADY).step, AveragedModel, get_ema_multi_avg_fn),
        lambda p: ours(p, ema_decay=0.999),
    ),
    "ema: our step alone": (lambda p: ours(p), lambda p: ours(p, ema_decay=0.999)),
    "schedule: our step, then CosineAnnealingLR": (
        scheduled,
        lambda p: ours(p, lr=1e-6 * schedules.cosine_annealing(10**6)),
    ),
    "compile: our step with its graph break": (lambda p: compiled(p), lambda p: ours(p)),
    "compile: our step as one operator (fullgraph)": (lambda p: compiled(p, fullgraph=True), lambda p: ours(p)),
}


def rows(shapes: str, seconds: float, only: str) -> list[dict[str, Any]]:
    found = []
    for label, (theirs, mine) in PAIRS.items():
        if only not in label:
            continue
        params = [model(SHAPES[shapes](), torch.float32) for _ in range(2)]
        steps = (make(p) for make, p in zip((theirs, mine), params, strict=True))
        found.append(pair(*steps, {"against": label, "shapes": shapes}, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["many_small", "even"], choices=sorted(SHAPES))
    parser.add_argument("--only", default="", help="the lines that contain this")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    for shapes in arguments.shapes:
        found = rows(shapes, arguments.seconds, arguments.only)
        if not arguments.no_save:
            append("around.csv", found)


if __name__ == "__main__":
    main()
