"""Errors in a rule: whose line it is, and what to write instead."""

from __future__ import annotations

import os
import sys

# Rules pass through these; algorithms/ is an author like any other.
PACKAGE = os.path.dirname(os.path.dirname(__file__))
HERE = tuple(os.path.join(PACKAGE, room) + os.sep for room in ("rules", "around", "storage", "backends"))


class TraceError(TypeError):
    """A rule does what a rule must not; the message names its line and the mend."""


class LateTotal(TraceError):
    """A rule sums over all parameters what is not known before the update: nobody can run that."""


class NotElementwise(TraceError):
    """A rule uses an operation that is not pointwise: no fault, but no kernel either."""


def author_line() -> str:
    """Where the rule's author stands: the innermost frame that is neither the compiler's nor torch's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(HERE) and "/torch/" not in file:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def refused(what: str) -> TraceError:
    return TraceError(f"{author_line()}: {what}")


def not_compiled(what: str) -> NotElementwise:
    return NotElementwise(f"{author_line()}: {what}")
