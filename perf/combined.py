"""Several algorithms as one optimizer, beside the sum of its parts, in pairs: python perf/combined.py [--no-save]

Muon for the matrices and AdamW for the rest, as two optimizers stepped one after the other, and as Combined; and all of them
clipped, the parts each by its own norm, and Combined by one over all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import append
from step import model, pair

import compiledopt


def transformer(width: int, layers: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes of its hidden matrices, and of the others."""
    matrices: list[tuple[int, ...]] = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    vectors: list[tuple[int, ...]] = [(width,), (width,), (3 * width,), (width,), (4 * width,), (width,)]
    return matrices * layers, [(1000, width), *vectors * layers]


MODELS: dict[str, Callable[[], Any]] = {
    "width 64, 4 layers": lambda: transformer(64, 4),
    "width 256, 2 layers": lambda: transformer(256, 2),
    "600 vectors, a matrix": lambda: ([(8, 8)], [(64,)] * 600),
}


def made(name: str, norm: float | None) -> tuple[Any, Any]:
    matrices, others = MODELS[name]()
    return (
        compiledopt.Muon(model(matrices, torch.float32), lr=1e-4, max_grad_norm=norm),
        compiledopt.AdamW(model(others, torch.float32), lr=1e-4, max_grad_norm=norm),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each pair")
    parser.add_argument("--no-save", action="store_true", help="print only")
    given = parser.parse_args()
    for name, norm in ((name, norm) for name in given.models for norm in (None, 1.0)):
        parts = made(name, norm)

        def one_by_one(parts: Any = parts) -> None:
            for part in parts:
                part.step()

        whole = compiledopt.Combined(*made(name, norm))
        row = pair(one_by_one, whole.step, {"shapes": name if norm is None else f"{name}, clipped"}, given.seconds)
        if not given.no_save:
            append("combined.csv", [row])


if __name__ == "__main__":
    main()
