"""AveragedModel.update_parameters, ours against torch's, in pairs within one process: python perf/averaging.py"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import append
from shapes import SHAPES
from step import pair
from torch.optim import swa_utils as torchs

from compiledopt import swa_utils as ours

FUNCTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "get_ema_multi_avg_fn": (
        {"multi_avg_fn": torchs.get_ema_multi_avg_fn()},
        {"multi_avg_fn": ours.get_ema_multi_avg_fn()},
    ),
    "get_ema_avg_fn": ({"avg_fn": torchs.get_ema_avg_fn()}, {"avg_fn": ours.get_ema_avg_fn()}),
}


def rows(shapes: str, seconds: float) -> list[dict[str, Any]]:
    model = torch.nn.Module()
    model.params = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES[shapes]()])
    found = []
    for label, (their_arguments, our_arguments) in FUNCTIONS.items():
        averages = [torchs.AveragedModel(model, **their_arguments), ours.AveragedModel(model, **our_arguments)]
        steps = [lambda average=average: average.update_parameters(model) for average in averages]
        found.append(pair(*steps, {"function": label, "shapes": shapes}, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["many_small", "even"], choices=sorted(SHAPES))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    for shapes in arguments.shapes:
        found = rows(shapes, arguments.seconds)
        if not arguments.no_save:
            append("averaging.csv", found)


if __name__ == "__main__":
    main()
