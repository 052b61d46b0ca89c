"""Bytes per second of every elementwise algorithm, against torch's fused AdamW in the same run: python perf/bandwidth.py

For each algorithm, its compiled step and torch's fused AdamW run in turns on the same shapes. Bytes are those that a step
must move: what the program reads and writes, once each. The quotient of the two rates should be 1 or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from common import append, circumstances
from shapes import SHAPES
from step import OPTIONS, compare, model, torchs

import compiledopt

ALGORITHMS = [name for name in OPTIONS if getattr(compiledopt, name).rule.elementwise]


def rate(name: str, shapes: str, seconds: float, options: Mapping[str, Any]) -> dict[str, object]:
    ours = getattr(compiledopt, name)(model(SHAPES[shapes](), torch.float32), **options)
    theirs = torchs("AdamW", fused=True)(model(SHAPES[shapes](), torch.float32))
    ours.step()
    part = ours._explanation().parts[0]
    a, b = compare(theirs, ours, seconds, None)
    their_ms, our_ms = statistics.median(a) * 1e3, statistics.median(b) * 1e3
    adamw = 28 * part.elements  # bytes: param, grad and two moments read, all but grad written
    return {
        "optimizer": name,
        "options": json.dumps(options),
        "shapes": shapes,
        "bytes_per_element": part.bytes_read_per_element + part.bytes_written_per_element,
        "their_ms": f"{their_ms:.4g}",
        "their_gb_s": f"{adamw / their_ms / 1e6:.1f}",
        "our_ms": f"{our_ms:.4g}",
        "our_gb_s": f"{part.bytes_per_step / our_ms / 1e6:.1f}",
        "quotient": f"{part.bytes_per_step / our_ms / (adamw / their_ms):.2f}",
        "steps": len(a),
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--shapes", default="even", choices=sorted(SHAPES))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each pair")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.optimizer:
        rows.append(rate(name, arguments.shapes, arguments.seconds, OPTIONS[name]))
        print(
            "{optimizer:9} {our_ms:>7} ms, {our_gb_s:>6} GB/s; AdamW of torch {their_gb_s:>6} GB/s; {quotient}".format(
                **rows[-1]
            )
        )
    if not arguments.no_save:
        append("bandwidth.csv", rows)


if __name__ == "__main__":
    main()
