"""The published algorithms beside the packages they come from, in pairs: python perf/menu.py [--optimizer Lion ...] [--no-save]

20 × 1M and 300 × 1000 elements, float32, each contender with its defaults, by which theirs runs lists of tensors where it can,
and with a momentum where by default there is none; and the bytes that our step moves, beside torch's fused AdamW. Those for
matrices on the matrices of transformers (perf/matrices.py), into perf/results/menu_matrices.csv.
Needs the extra `menu` and adam-atan2-pytorch; ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matrices
import torch
from bandwidth import rate
from common import append
from shapes import SHAPES
from step import model, pair

import compiledopt

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import peers

# Those whose steps are compared with the authors' packages elsewhere: {ours: (package, class, options of theirs)}.
AUTHORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AdamAtan2": ("adam_atan2_pytorch.adam_atan2", "AdamAtan2", {"weight_decay": 0.01}),
    "AdamWScheduleFree": ("schedulefree", "AdamWScheduleFree", {}),
    "DAdaptAdam": ("dadaptation", "DAdaptAdam", {}),
    "Prodigy": ("prodigyopt", "Prodigy", {}),
    "RAdamScheduleFree": ("schedulefree", "RAdamScheduleFree", {}),
    "SGDScheduleFree": ("schedulefree", "SGDScheduleFree", {}),
}
# What by default is SGD without a momentum, beside that: LARS adapts its steps where weights decay.
WITH_MOMENTUM: dict[str, dict[str, Any]] = {
    "LARS": {"momentum": 0.9, "weight_decay": 1e-4},
    "SGDP": {"momentum": 0.9},
    "SGDW": {"momentum": 0.9},
}


def theirs_of(name: str, params: Any, more: Mapping[str, Any]) -> tuple[Any, str]:
    """Theirs, and whose it is, with what both are given."""
    if name not in AUTHORS:
        package, title, _ = peers.THEIRS[name]
        given = "".join(f", {key} {value}" for key, value in more.items())
        return peers.theirs(name, params, lr=1e-3, **more), f"{package}.{title}{given}"
    package, title, options = AUTHORS[name]
    made = getattr(peers.alone(*package.split(".")), title)(params, lr=1e-3, **options)
    if hasattr(made, "train"):
        made.train()
    return made, f"{package.split('.')[0]}.{title}"


def measured(name: str, shapes: str, seconds: float, more: Mapping[str, Any]) -> dict[str, Any]:
    sizes = SHAPES[shapes]()
    theirs, against = theirs_of(name, model(sizes, torch.float32), more)
    ours = getattr(compiledopt, name)(model(sizes, torch.float32), lr=1e-3, **more)
    ours.step()
    labels = {"optimizer": name, "shapes": shapes, "against": against, "executor": ours.executor}
    return pair(theirs.step, ours.step, labels, seconds)


def moved(name: str, seconds: float, more: Mapping[str, Any]) -> dict[str, Any]:
    """How near a step is to the memory's speed, for the row of `measured` with the same options."""
    row = rate(name, "even", seconds, {"lr": 1e-3, **more})
    print("{optimizer:24} {our_gb_s:>6} GB/s, AdamW of torch {their_gb_s:>6} GB/s; {quotient}".format(**row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="*", default=[*sorted([*peers.THEIRS, *AUTHORS]), *matrices.MATRICES])
    parser.add_argument("--shapes", nargs="*", default=["even", "many_small"], help="of those that are not for matrices")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each pair")
    parser.add_argument("--no-save", action="store_true", help="print only, nothing into perf/results/menu.csv")
    given = parser.parse_args()
    for name in given.optimizer:
        try:
            if name in matrices.MATRICES:
                file, one = matrices.FILE, lambda sizes: model(sizes, torch.float32)
                rows = [row for shapes in matrices.SHAPES for row in matrices.measured(name, shapes, given.seconds, one)]
            else:
                file, options = "menu.csv", [{}, *([WITH_MOMENTUM[name]] if name in WITH_MOMENTUM else [])]
                rows = [measured(name, shapes, given.seconds, more) for more in options for shapes in given.shapes]
                bounds = [moved(name, given.seconds, more) for more in options if "even" in given.shapes]
        except ModuleNotFoundError as error:
            print(f"{name}: not measured, {error}", flush=True)
            continue
        if given.no_save:
            continue
        append(file, rows)
        if file == "menu.csv":
            append("menu_bytes.csv", bounds)


if __name__ == "__main__":
    main()
