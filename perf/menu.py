"""The published algorithms beside the packages they come from, in pairs: python perf/menu.py [--optimizer Lion ...] [--save]

20 × 1M and 300 × 1000 elements, float32, each contender with its defaults, by which theirs runs lists of tensors where it can.
Needs the extra `menu`. Without --save rows are printed only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from common import append
from shapes import SHAPES
from step import model, pair

import compiledopt

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import peers


def measured(name: str, shapes: str, seconds: float) -> dict[str, Any]:
    sizes = SHAPES[shapes]()
    theirs = peers.theirs(name, model(sizes, torch.float32), lr=1e-3)
    ours = getattr(compiledopt, name)(model(sizes, torch.float32), lr=1e-3)
    package, title, _ = peers.THEIRS[name]
    labels = {"optimizer": name, "shapes": shapes, "against": f"{package}.{title}", "executor": ours.executor}
    return pair(theirs.step, ours.step, labels, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="*", default=list(peers.THEIRS))
    parser.add_argument("--shapes", nargs="*", default=["even", "many_small"])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each pair")
    parser.add_argument("--save", action="store_true", help="into perf/results/menu.csv")
    given = parser.parse_args()
    rows = [measured(name, shapes, given.seconds) for name in given.optimizer for shapes in given.shapes]
    if given.save:
        append("menu.csv", rows)


if __name__ == "__main__":
    main()
