"""What fits on a GPU's processors, by ptxas, on any machine: python perf/occupancy.py [--arch 80 90] [--save]

For AdamW's kernel, of each way of keeping values and each block size and number of warps: registers, and how many blocks, warps
and elements, whose loads are all under way at once, a processor holds. backends/triton/tuning.py takes its defaults from these
rows: no other candidate that spills nothing has a sixth more of elements or of warps than a default, and as many of the other
(tests/test_perf_gpu.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from common import append, circumstances

import compiledopt
from compiledopt import around
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.tuning import ALL
from compiledopt.rules.traced import traced

KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "int8": (torch.float32, {"state_dtype": "int8"}),
    "int8, bfloat16 rounded with random bits": (torch.bfloat16, {"state_dtype": "int8", "rounding": "stochastic"}),
    "dynamic8": (torch.float32, {"state_dtype": "dynamic8"}),
    "bfloat16, split": (torch.bfloat16, {"rounding": "split", "state_dtype": "bfloat16"}),
}
REGISTERS, UNIT = 65536, 8  # of a processor; registers of a thread are given in units
# (threads, bytes of shared memory) of a processor; each block takes 1 KiB more.
LIMITS = {80: (2048, 164 << 10), 90: (2048, 228 << 10), 100: (2048, 228 << 10), 120: (1536, 100 << 10)}


def rows(arch: int) -> Iterator[dict[str, Any]]:
    for kind, (dtype, options) in KINDS.items():
        param = torch.nn.Parameter(torch.empty(1024, 1024, dtype=dtype, device="meta"))
        group = compiledopt.AdamW([param], **options).param_groups[0]
        program = traced(around.derived(compiledopt.AdamW.rule, group, param=param), group)
        kernel = kernel_of(program, (dtype, dtype, *program.dtypes_of(param).values()))
        for block, warps in ALL:
            built = triton.build_for(kernel, arch, block=block, warps=warps)
            found = {"kind": kind, "arch": f"sm_{arch}", "block": block, "warps": warps, "registers": built.registers}
            yield {**found, "spills": built.spills, **held(built, arch), **circumstances()}


def held(built: triton.Built, arch: int) -> dict[str, int]:
    """What a processor has of it at once."""
    (most, shared), warps, threads = LIMITS[arch], built.warps, 32 * built.warps
    given = -(-built.registers // UNIT) * UNIT * threads
    blocks = min(REGISTERS // given, most // threads, shared // (built.shared + 1024))
    return {"blocks": blocks, "warps_held": blocks * warps, "elements_held": blocks * built.block}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--save", action="store_true", help="add the rows to perf/results/occupancy.csv")
    arguments = parser.parse_args()
    for arch in arguments.arch:
        for row in rows(arch):
            print(*list(row.values())[:9], flush=True)
            if arguments.save:
                append("occupancy.csv", [row])


if __name__ == "__main__":
    main()
