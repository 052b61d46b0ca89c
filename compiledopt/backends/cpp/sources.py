"""The C++ files of kernels, around the functions that Inductor writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from compiledopt.backends import keys
from compiledopt.backends.cpp import blocks
from compiledopt.rules.program import Program
from compiledopt.rules.reductions import Passes
from compiledopt.stats import STATS, timed

HERE = Path(__file__).parent
C_TYPES = {torch.float32: "float", torch.float64: "double", torch.float16: "at::Half", torch.bfloat16: "at::BFloat16"}


def kernel_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The C++ file of a kernel: our prefix, Inductor's function, and a `run` with one signature for all kernels."""
    from compiledopt.backends.inductor import compute_dtype

    key = _key() if program.is_random else []
    if program.blocks:
        scalar, place = C_TYPES[compute_dtype(dtypes)], _place(program)[:-1] if program.is_random else []
        function = blocks.source(program, dtypes, _body, scalar, place)
    else:
        function = _function(program, dtypes)
    return "\n".join([loops(), prefix(), *key, *function, ""])


def passes_source(passes: Passes, dtypes: Sequence[torch.dtype]) -> str:
    """The C++ file of a rule that reduces: `run0`, `run1`, ... for its passes, and a `run` that is never called."""
    from compiledopt.backends.inductor import compute_dtype

    wide, lines = compute_dtype(dtypes), [loops(), prefix()]
    for index, sweep in enumerate(passes.sweeps):
        lines += [f"// pass {index}", *_function(sweep.program, sweep.dtypes(tuple(dtypes), wide), str(index))]
    return "\n".join([*lines, 'extern "C" void run() {}', ""])


def totals_source(program: Program, dtypes: tuple[torch.dtype, ...]) -> str:
    """The C++ file of a kernel that sums."""
    from compiledopt.backends.inductor import compute_dtype

    wide, count = compute_dtype(dtypes), len(program.tensor_outputs)
    values = _function(program, (*dtypes, *[wide] * count), "_values")
    sizes = ", ".join(str(dtype.itemsize) for dtype in dtypes)
    types = f"using A = {C_TYPES[wide]};\nconstexpr int kReads = {len(dtypes)}, kTotals = {count};"
    return "\n".join([loops(), prefix(), *values, types, f"constexpr int64_t kBytes[] = {{{sizes}}};", totals()])


def totals() -> str:
    return (HERE / "totals.h").read_text()


def prefix() -> str:
    return (HERE / "prefix.h").read_text()


def loops() -> str:
    return (HERE / "loops.h").read_text()


def _body(
    program: Program, dtypes: Sequence[torch.dtype], suffix: str = ""
) -> tuple[list[str], list[tuple[str, int]], Sequence[str]]:
    """Inductor's function for a program, called `kernel` with this suffix; its arguments and their types."""
    from compiledopt.backends.inductor import lower_cpu

    with timed("seconds_lowering"):
        lowered = lower_cpu(program, dtypes)
    STATS.kernels_lowered += 1
    body = lowered.body.replace('extern "C"', "static inline __attribute__((always_inline))")
    # Inductor 2.13 has kernels report integer divisions by zero; a rule has none.
    dropped = ("#include", "inductor_cpu_integer_div_error")
    lines = [line for line in body.splitlines() if not any(word in line for word in dropped)]
    lines = [line.replace("#pragma GCC ivdep", "INDEPENDENT") for line in lines]
    lines = [line.replace(" kernel(", f" kernel{suffix}(") for line in lines]
    return lines, list(lowered.arguments), lowered.types


def _function(program: Program, dtypes: Sequence[torch.dtype], suffix: str = "") -> list[str]:
    """Inductor's function for a program, and one called `run` with this suffix that calls it."""
    from compiledopt.backends.inductor import compute_dtype

    lines, known, types = _body(program, dtypes, suffix)
    scalar = C_TYPES[compute_dtype(dtypes)]
    arguments = []
    for (kind, index), type_name in zip(known, types, strict=True):
        pointer = {"tensor": f"({type_name}) pointers[{index}]", "column": f"columns + {index}", "length": "length"}
        arguments.append({**pointer, "place": f"place + {index}"}[kind])
    # The columns are copied to locals: the compiler then knows that no store changes them, and keeps them in registers.
    count = len(program.columns)
    values = ", ".join(f"({scalar}) table[{i}]" for i in range(count)) or "0"
    run = [
        f'extern "C" void run{suffix}(void* const* pointers, const double* table, int64_t length) {{',
        f"  const {scalar} columns[{max(count, 1)}] = {{{values}}};",
        *(_place(program) if program.is_random else ()),
        f"  kernel{suffix}({', '.join(arguments)});",
        "}",
    ]
    return [*lines, *run]


def _place(program: Program) -> list[str]:
    """Where a piece is in its parameter, and the key of its random bits, of what the launcher says of it."""
    seed, step = (f"table[{n}]" if isinstance(n, int) else repr(n) for n in keys.seed_and_step(program))
    return [
        f"  const auto at = (const int32_t*) pointers[{len(program.tensors)}];",
        f"  const Key key = key_of((int64_t) ({seed}), (int64_t) ({step}), at[1]);",
        "  const int32_t place[3] = {at[0], key.first, key.second};",
    ]


def _key() -> list[str]:
    """The function that makes a key. Integers wrap around, as -fwrapv says."""
    lines = []
    for name, sign, values in keys.operations():
        if sign == keys.INT32:
            lines.append(f"  const auto {name} = (int32_t) {values[0]};")
        elif sign:
            lines.append(f"  const auto {name} = {values[0]} {sign} ({values[1]});")
        else:
            lines.append(f"  return {{{', '.join(values)}}};")
    names = ", ".join(f"int64_t {name}" for name in keys.arguments())
    return ["struct Key { int32_t first, second; };", f"static inline Key key_of({names}) {{", *lines, "}"]
