"""The steady step of a device: native code sees that nothing changed, gathers, and computes the scalar part; Python launches,
through Triton's own launcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiledopt.backends.batch import Standing, Steady
from compiledopt.backends.cpp.steady import Numbers, assembled, is_on_host, part
from compiledopt.backends.triton.kernels import NORM

NOTHING = (0, (), (), (), ())  # a scalar part that is the device's


def steady(standing: Standing) -> Steady | None:
    """One call for all further steps, or None where Python must take part."""
    batches: Sequence[Any] = standing.batches

    def is_read(value: Any) -> bool:
        return is_on_host(value) or any(batch.reads(value) for batch in batches)

    captures = {batch.device: batch.is_being_captured for batch in batches}
    return assembled(standing, _part, is_read, list(captures.values()))


def _part(batch: Any, numbers: Numbers) -> Any | None:
    """As the launcher takes it. Mutates: numbers."""
    elsewhere = batch.bring, batch.point, batch.take, batch.launch_kernels
    if not batch.scalars_there:
        if batch.is_clipped and not batch.fills_in:
            return None
        return part(batch, numbers, elsewhere, NORM)
    if any(batch.first) or batch.staged or batch.sources is not None or not batch.stays_put():
        return None
    for name in batch.mirror.names:
        numbers.setdefault(name, len(numbers))
    return batch.native, NOTHING, [], [], False, elsewhere
