"""Host time of a step that does almost nothing on its tensors: python perf/overhead.py

Parameters of one element, so that what remains is Python and the gather; by number of tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import append, circumstances

import compiledopt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    for count in (1, 300, 2000):
        params = [torch.nn.Parameter(torch.randn(1)) for _ in range(count)]
        for param in params:
            param.grad = torch.randn(1)
        optimizer = compiledopt.AdamW(params)
        optimizer.step()
        seconds = []
        for _ in range(300):
            start = time.perf_counter()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        row = {"optimizer": "AdamW", "tensors": count, "host_ms": f"{statistics.median(seconds) * 1e3:.4f}", **circumstances()}
        print("{tensors:5} tensors: {host_ms} ms".format(**row))
        if not arguments.no_save:
            append("overhead.csv", [row])


if __name__ == "__main__":
    main()
