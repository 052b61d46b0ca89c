"""Where Triton keeps what it compiles: a home that is read-only or full must not cost the kernels."""

from __future__ import annotations

import os
import tempfile
from functools import cache as once

from compiledopt.backends import cache
from compiledopt.errors import warn

TRIED = 1 << 16  # bytes: more than a file system takes where nothing is left


@once
def settle() -> None:
    """Let a directory of this process stand in for Triton's cache where that cannot be written, and say so."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    from triton import knobs

    try:
        os.makedirs(knobs.cache.dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=knobs.cache.dir) as file:
            file.write(bytes(TRIED))
            file.flush()
    except OSError as error:
        warn(
            f"Triton cannot write to its cache {knobs.cache.dir} ({error}); kernels are compiled in every process. Let "
            f"TRITON_CACHE_DIR name a directory that can be written."
        )
        knobs.cache.dir = str(cache.scratch("triton"))
