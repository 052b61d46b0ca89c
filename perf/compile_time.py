"""Seconds from `import` to the end of the first step, with an empty and with a warm cache, by number of tensors.

    python perf/compile_time.py [--counts 1 10 100]
    python perf/compile_time.py --state-dtype int8 --counts 1 300    # with empty caches, against float32 states

Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from common import append, circumstances

PROGRAM = """
import json, sys, time
import torch
count, library, kept = int(sys.argv[1]), sys.argv[2], sys.argv[3]
shape = (64, 64) if kept else (16,)
params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(count)]
for param in params:
    param.grad = torch.randn(shape)
start = time.perf_counter()
if library == "torch":
    optimizer = torch.optim.AdamW(params)
else:
    import compiledopt
    optimizer = compiledopt.AdamW(params, compiled=True, **({"state_dtype": kept} if kept else {}))
optimizer.step()
first = time.perf_counter() - start
start = time.perf_counter()
optimizer.step()
print(json.dumps([first, time.perf_counter() - start]))
"""


def once(count: int, library: str, cache: str, kept: str = "") -> tuple[float, float]:
    """Seconds of the first step and of the second. kept: how ours keeps its states, "" for vectors and float32."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory() as inductor:
        env = {**os.environ, "COMPILEDOPT_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": inductor, "PYTHONPATH": root}
        command = [sys.executable, "-c", PROGRAM, str(count), library, kept]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    first, second = json.loads(done.stdout.splitlines()[-1])
    return first, second


def against_float32(kept: str, count: int, repeats: int) -> dict[str, Any]:
    """First steps with empty caches, in turns."""
    found: dict[str, list[float]] = {"float32": [], kept: []}
    for _ in range(repeats):
        for name, values in found.items():
            with tempfile.TemporaryDirectory() as cache:
                values.append(once(count, "ours", cache, name)[0])
    theirs, ours = (statistics.median(values) for values in found.values())
    return {
        "optimizer": "AdamW",
        "kept": kept,
        "tensors": count,
        "float32_s": f"{theirs:.3f}",
        "kept_s": f"{ours:.3f}",
        "ratio": f"{ours / theirs:.2f}",
        "repeats": repeats,
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000, 10000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--state-dtype", nargs="+", default=[], help="int8, ...: with empty caches, against float32 states")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    for kept, count in itertools.product(arguments.state_dtype, arguments.counts):
        row = against_float32(kept, count, arguments.repeats)
        print("{tensors:6} tensors: {kept} {kept_s} s, float32 {float32_s} s, ratio {ratio}".format(**row))
        if not arguments.no_save:
            append("first_step.csv", [row])
    if arguments.state_dtype:
        return
    for count in arguments.counts:
        found: dict[str, list[tuple[float, float]]] = {"torch": [], "empty": [], "warm": []}
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as cache:
                found["torch"].append(once(count, "torch", cache))
                found["empty"].append(once(count, "ours", cache))
                found["warm"].append(once(count, "ours", cache))
        median = {name: statistics.median(first for first, _ in values) for name, values in found.items()}
        row = {
            "optimizer": "AdamW",
            "tensors": count,
            "torch_s": f"{median['torch']:.3f}",
            "empty_cache_s": f"{median['empty']:.3f}",
            "warm_cache_s": f"{median['warm']:.3f}",
            "second_step_ms": f"{statistics.median(second for _, second in found['warm']) * 1e3:.3f}",
            "repeats": arguments.repeats,
            **circumstances(),
        }
        print("{tensors:6} tensors: torch {torch_s} s, ours {empty_cache_s} s empty, {warm_cache_s} s warm".format(**row))
        if not arguments.no_save:
            append("compile_time.csv", [row])


if __name__ == "__main__":
    main()
