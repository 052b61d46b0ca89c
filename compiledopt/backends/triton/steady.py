"""The steady step of a device: native code sees that nothing changed, gathers, and computes the scalar part; the
driver launches, or Python does, through Triton's own launcher."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from compiledopt.backends.batch import Standing, Steady
from compiledopt.backends.cpp.steady import Numbers, assembled, is_on_host, part
from compiledopt.backends.triton.norm import BOUND
from compiledopt.backends.triton.prepared import current
from compiledopt.rules.options import NORM

NOTHING = (0, (), (), (), ())  # a scalar part that is the device's


def steady(standing: Standing) -> Steady | None:
    """One call for all further steps, or None where Python must take part."""
    batches: Sequence[Any] = standing.batches

    def is_read(value: Any) -> bool:
        return is_on_host(value) or any(batch.reads(value) for batch in batches)

    captures = {batch.device: batch.is_being_captured for batch in batches}
    goes = standing.measure is None or standing.in_place
    return assembled(standing, partial(_part, goes), is_read, list(captures.values()), measure=standing.measure)


def prepared(batch: Any) -> Any:
    """A step of the driver alone: (whether `fill` is asked, where it goes, what comes before all launches, launches, what
    copies pointers); None where that is not known now, False where it cannot be."""
    before, launches = batch.prepared_norm(), batch.prepared_launches()
    if before is None or launches is None:
        return False
    where = current(batch.device) if launches else None
    return None if where is None else (batch.fills(), where, before, launches, batch.tables.lend())


def _never() -> bool:
    return False


def _part(goes: bool, batch: Any, numbers: Numbers) -> Any | None:
    """As the launcher takes it. goes: whether the driver may launch alone. Mutates: numbers."""
    told = partial(prepared, batch) if goes else _never
    elsewhere = batch.bring, batch.point, batch.take, batch.launch_kernels, told, batch.fill
    if not batch.scalars_there:
        if batch.is_clipped and not batch.fills_in:
            return None
        bound = numbers.setdefault(BOUND, len(numbers)) if batch.is_clipped else -1
        return part(batch, numbers, (*elsewhere, bound), NORM)
    if any(batch.first) or batch.staged or batch.sources is not None or not batch.stays_put():
        return None
    for name in batch.mirror.names:
        numbers.setdefault(name, len(numbers))
    return batch.native, NOTHING, [], [], False, (*elsewhere, -1), 0
