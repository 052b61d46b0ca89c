"""What ptxas makes of the kernels of every algorithm, on any machine: python perf/kernels.py [--arch 80 90] [--save]

A row for each kernel of a step: registers, bytes spilled, shared memory, vector loads and stores, and how many blocks,
warps and elements a processor holds at once. Those of elementwise rules are for one row of scalars as arguments, and of
float32 on sm_90 for a few and for a table too; those of rules that reduce and multiply for a matrix of 1024 × 1024, for a
vector, and for a convolution where rows are of several dimensions. All of it is the same at every run, whatever else the
machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from common import append, circumstances

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from catalog import CATALOG, MENU, one_per_kind
from occupancy import held

import compiledopt
from compiledopt import around
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import norm
from compiledopt.backends.triton.built import built_for
from compiledopt.backends.triton.capturable import ROWS
from compiledopt.backends.triton.capturable import WARPS as OF_ROWS
from compiledopt.backends.triton.readiness import kernel_of
from compiledopt.backends.triton.tuning import candidates_for
from compiledopt.errors import CompileError
from compiledopt.rules.program import OUTER, scalar_program
from compiledopt.rules.traced import Traced, Variant, traced

SHAPES = ((1024, 1024), (10_000,), (256, 256, 3, 3))
CODECS = ("int8", "dynamic8", "int4", "float8_e4m3fn", {"exp_avg": "int4", "exp_avg_sq": "uint8"}, "bfloat16")
KINDS = [one for one in one_per_kind() if one.rule.dense] + [one for one in MENU.values() if one.takes("trust_clip")]
MORE: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("AdamW", {"state_dtype": codec}) for codec in CODECS),
    *(("AdamW", {"state_dtype": codec, "max_grad_norm": 1.0, "capturable": True}) for codec in ("int8", "int4")),
    ("AdamW", {"state_dtype": "int8", "rounding": "stochastic"}),
    ("AdamW", {"rounding": "compensated"}),
    ("AdamW", {"rounding": "split", "state_dtype": "bfloat16"}),
    ("AdamW", {"max_grad_norm": 1.0, "ema_decay": 0.9, "cautious": True, "corrected_decay": True, "skip_nonfinite": True}),
    ("LAMB", {"max_grad_norm": 1.0, "capturable": True}),
    *((one.name, {"state_dtype": "int8"}) for one in KINDS),
)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in {**CATALOG, **MENU}.items():
        if one.rule is not None and not one.sparse_only:
            yield name, dict(one.promised)
    yield from MORE


def rows(name: str, options: Mapping[str, Any], dtype: torch.dtype, arch: int) -> Iterator[dict[str, Any]]:
    algorithm = getattr(compiledopt, name)
    for shape in SHAPES:
        param = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        try:
            group = algorithm([param], **options).param_groups[0]
        except (TypeError, ValueError):  # of matrices alone, or of a rounding of other dtypes
            continue
        known = traced(around.derived(algorithm.rule, group, param=param), group)
        if shape != SHAPES[0] and (known.elementwise or not _is_own(known, shape)):
            continue
        try:
            found = list(kernels(known, arch, dtype, shape))
        except CompileError as error:
            print(f"{name} {options} of {shape}: {str(error)[:100]}", file=sys.stderr)
            continue
        if group.get("capturable") and known.elementwise:
            scalars = scalar_program(known.program)
            kernel = triton.rows_kernel(scalars, triton.usual_dtypes(scalars, known.rule.scalars))
            found.append(("scalars", triton.build_for(kernel, arch, block=ROWS, warps=OF_ROWS)))
        if known.is_clipped:
            found.append(("norm", triton.build_for(norm._kernel(dtype, (), 1), arch, block=norm.BLOCK, warps=norm.WARPS)))
        for which, built in found:
            row = {"optimizer": name, "options": json.dumps(options), "dtype": str(dtype).removeprefix("torch.")}
            row |= {"arch": f"sm_{arch}", "shape": " × ".join(map(str, shape)), "kernel": which}
            row |= {name: getattr(built, name) for name in ("block", "warps", "registers", "spills", "shared")}
            row |= {"vector_loads": built.vector_loads, "vector_stores": built.vector_stores}
            yield {**row, **held(built, arch), **circumstances()}


def _is_own(known: Traced, shape: tuple[int, ...]) -> bool:
    """Whether its kernels are others than those of a matrix: a vector's, and of rows of several dimensions."""
    variant = known.variant(torch.empty(shape, device="meta"))
    return len(shape) < 2 or (isinstance(variant, Variant) and bool(variant.order >> OUTER))


def kernels(known: Traced, arch: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[tuple[str, triton.Built]]:
    """Raises: CompileError."""
    if not known.elementwise or known.measures:
        found = built_for(known, arch, dtype, shape).built
        yield from ((f"{number + 1} of {len(found)}", built) for number, built in enumerate(found))
        return
    dtypes = (dtype, dtype, *known.dtypes_of(torch.empty(shape, dtype=dtype, device="meta")).values())
    kernel = kernel_of(known, dtypes)
    assert isinstance(kernel, triton.TritonKernel)
    block, warps = candidates_for(kernel, dtypes)[0]
    ways = (("one row", 1), ("few rows", triton.FEW), ("table", 0))
    for which, count in ways if (dtype, arch) == (torch.float32, 90) else ways[:1]:
        yield which, triton.build_for(kernel, arch, block, warps, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", help="algorithms")
    parser.add_argument("--save", action="store_true", help="add the rows to perf/results/kernels.csv")
    arguments = parser.parse_args()
    for name, options in cases():
        if arguments.only is not None and name not in arguments.only:
            continue
        for arch in arguments.arch:
            for dtype in arguments.dtype:
                found = list(rows(name, options, getattr(torch, dtype), arch))
                for one in found:
                    print(*list(one.values())[:17], flush=True)
                if found and arguments.save:
                    append("kernels.csv", found)


if __name__ == "__main__":
    main()
