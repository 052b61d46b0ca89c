"""The C++ files of kernels, around the functions that Inductor writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from compiledopt.backends.cpp import blocks, draws, functions
from compiledopt.files import text_beside
from compiledopt.rules.program import Program
from compiledopt.rules.reductions import Passes
from compiledopt.stats import STATS, timed

C_TYPES = {torch.float32: "float", torch.float64: "double", torch.float16: "at::Half", torch.bfloat16: "at::BFloat16"}
STRETCH = 2048  # elements whose values are summed at once: they lie in the first cache


def kernel_source(program: Program, dtypes: Sequence[torch.dtype]) -> str:
    """The C++ file of a kernel: our prefix, Inductor's function, and a `run` with one signature for all kernels."""
    from compiledopt.backends.inductor import compute_dtype

    random = draws.functions() if program.is_random else []
    if program.blocks:
        function = blocks.with_headers(blocks.source(program, dtypes, _body, C_TYPES[compute_dtype(dtypes)]))
    else:
        function = _function(program, dtypes)
    return "\n".join([loops(), prefix(), *functions.header(function), *random, *function, ""])


def passes_source(passes: Passes, dtypes: Sequence[torch.dtype]) -> str:
    """The C++ file of a rule that reduces: `run0`, `run1`, ... for its passes, and a `run` that is never called."""
    from compiledopt.backends.inductor import compute_dtype

    bits = draws.functions() if any(sweep.program.is_random for sweep in passes.sweeps) else []
    wide, lines = compute_dtype(dtypes), list[str]()
    for index, sweep in enumerate(passes.sweeps):
        program, kinds = sweep.program, sweep.dtypes(tuple(dtypes), wide)
        scalar = C_TYPES[compute_dtype(kinds)]
        made = (
            blocks.source(program, kinds, _body, scalar, str(index))
            if program.blocks
            else _function(program, kinds, str(index))
        )
        lines += [f"// pass {index}", *made]
    if any(sweep.program.blocks for sweep in passes.sweeps):
        lines = blocks.with_headers(lines)
    return "\n".join([loops(), prefix(), *functions.header(lines), *bits, *lines, 'extern "C" void run() {}', ""])


def totals_source(program: Program, dtypes: tuple[torch.dtype, ...]) -> str:
    """The C++ file of a kernel that sums."""
    from compiledopt.backends.inductor import compute_dtype

    wide, count = compute_dtype(dtypes), len(program.tensor_outputs)
    kinds, block = (*dtypes, *[wide] * count), (program.blocks or (1,))[0]
    if program.blocks:
        values = blocks.with_headers(blocks.source(program, kinds, _body, C_TYPES[wide], "_values"))
    else:
        values = _function(program, kinds, "_values")
    bits = draws.functions() if program.is_random else []
    reads = zip(program.tensors[: len(dtypes)], dtypes, strict=True)
    operands = ", ".join(f"{{{dtype.itemsize}, {node.axes}, {program.sizes.get(node.name, 0)}}}" for node, dtype in reads)
    numbers = [
        f"using A = {C_TYPES[wide]};",
        f"constexpr int kReads = {len(dtypes)}, kTotals = {count};",
        f"constexpr int64_t kStretch = {max(1, STRETCH // block) * block};",
        f"struct {{ int64_t bytes, axes, size; }} constexpr kOperands[] = {{{operands}}};",
    ]
    return "\n".join([loops(), prefix(), *functions.header(values), *bits, *values, shared(), *numbers, totals()])


def header(name: str) -> str:
    return text_beside(__name__, name)


def totals() -> str:
    return header("totals.h")


def shared() -> str:
    return header("shared.h")


def prefix() -> str:
    return header("prefix.h")


def loops() -> str:
    return header("loops.h")


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
    lines = [re.sub(r"std::is_signed_v<(\w+)>", r"std::is_signed<\1>::value", line) for line in lines]  # of C++17
    if ("place", 0) in lowered.arguments:
        lines = draws.as_argument(lines, lowered.arguments.index(("place", 0)))
    return lines, list(lowered.arguments), lowered.types


def _function(program: Program, dtypes: Sequence[torch.dtype], suffix: str = "") -> list[str]:
    """Inductor's function for a program, and one called `run` with this suffix that calls it."""
    from compiledopt.backends.inductor import compute_dtype

    lines, known, types = _body(program, dtypes, suffix)
    lines, exponents = functions.exponents(lines)
    scalar = C_TYPES[compute_dtype(dtypes)]
    arguments = []
    for (kind, index), type_name in zip(known, types, strict=True):
        pointer = {"tensor": f"({type_name}) pointers[{index}]", "column": f"columns + {index}", "length": "length"}
        arguments.append({**pointer, "place": "place"}[kind])
    # The columns are copied to locals: the compiler then knows that no store changes them, and keeps them in registers.
    count = len(program.columns)
    values = ", ".join(f"({scalar}) table[{i}]" for i in range(count)) or "0"
    given = f"({', '.join(arguments)});"
    roots = " && ".join(f"*({arguments[i]}) == ({scalar}) 0.5" for i in exponents)
    run = [
        f'extern "C" void run{suffix}(void* const* pointers, const double* table, int64_t length) {{',
        f"  const {scalar} columns[{max(count, 1)}] = {{{values}}};",
        *draws.place(program),
        *([f"  if ({roots}) return kernel{suffix}<true>{given}"] if roots else []),
        f"  kernel{suffix}{'<false>' if roots else ''}{given}",
        "}",
    ]
    return [*functions.called(lines), *run]
