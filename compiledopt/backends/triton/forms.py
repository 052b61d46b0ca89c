"""How a launch of a rule that reduces is compiled: the first way in which two of its blocks have room on a processor, so that
one loads while the other computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

REGISTERS = 65536  # of a processor
BLOCKS = 2


@dataclass(frozen=True)
class Form:
    """most: registers of a thread, where the compiler is to keep to them; split: into how many the tiles of tensors are cut."""

    warps: int = 8
    most: int | None = None
    split: int = 1

    def has_room(self, registers: int, spills: int) -> bool:
        return not spills and BLOCKS * 32 * self.warps * registers <= REGISTERS


PLAIN = Form()
# By ptxas of triton 3.6 for sm_90, of float32 (perf/results/kernels.csv): most launches have room as they are, with 16 elements
# a thread; Adafactor's third, of 168 registers, keeps to 128 without spilling; AdaMuon's last, of 186, spills 120 bytes then,
# and takes 96 of half a tile, with 8 elements a thread: of a whole one, with 16 warps, it would be alone on a processor. Rose's
# fifth is alone in all of these forms.
FORMS = (PLAIN, Form(most=REGISTERS // (BLOCKS * 32 * PLAIN.warps)), Form(split=2), Form(split=4))


def chosen(compiled: Callable[[Form], tuple[int, int] | None]) -> Form:
    """compiled: what a form becomes, (registers, spills), or None where that is not known."""
    for form in FORMS:
        found = compiled(form)
        if found is None or form.has_room(*found):
            return form
    return FORMS[-1]
