"""Why a kernel cannot be had for a parameter; where it can, it is made ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiledopt.backends.batch import Entry, operand_dtypes
from compiledopt.backends.cpp.kernels import launcher
from compiledopt.backends.distributed import local
from compiledopt.backends.gathered import too_many
from compiledopt.backends.triton.capturable import check_scalars
from compiledopt.backends.triton.norm import check_norm
from compiledopt.backends.triton.readiness import check_on_device, kernel_of
from compiledopt.backends.triton.shared import check_shared
from compiledopt.errors import CompileError


def refusal_of(entry: Entry, group: Mapping[str, Any], there: bool) -> str | None:
    """Make ready what one program over a parameter needs; why that cannot be, or None. there: whether the scalar part is on the
    device."""
    runs, param, dtypes = entry.runs, entry.param, operand_dtypes(entry)
    if (reason := too_many(entry)) is not None:
        return reason
    if not entry.traced.elementwise and runs.program.blocks:
        return f"{runs.rule.name} reduces and has states in blocks, and there is no Triton kernel for that"
    if runs.program.blocks and not local(param).is_contiguous():
        return "its states are kept in blocks of a row, and a parameter does not lie in memory row after row"
    try:
        kernel = kernel_of(runs, dtypes)
        check_on_device(runs, param, dtypes)
        if runs.is_clipped:
            check_norm(runs, dtypes, kernel, param.device, there)
        check_shared(entry.traced, group, param.device)
        if there:
            check_scalars(runs, group, param, entry.state, kernel)
        launcher()
    except CompileError as error:
        return str(error)
    return None
