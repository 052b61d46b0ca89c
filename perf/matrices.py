"""Optimizers for matrices beside the packages that have them, in pairs: python perf/matrices.py [--optimizer SOAP ...]

A small transformer's hidden matrices, with its vectors where the optimizer takes them, float32. Work on matrices that is due
every k steps is so for both. Two rows for each: the median of the steps without it, and the mean over whole periods. Rows are
written as they are measured, three minutes of them on two quiet cores; `perf/menu.py` runs these too.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import append, circumstances
from step import model as made

import compiledopt

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import peers
from catalog import CATALOG, MENU

FILE = "menu_matrices.csv"
LOW_RANK = {"rank": 32, "update_proj_gap": 50, "scale": 0.25}
COLLECTION = peers.COLLECTION
# {ours: (package, class, options of both, of ours, of theirs, every how many steps work is due, 0 for at each)}
MATRICES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "APOLLOAdamW": (COLLECTION, "APOLLO", LOW_RANK, {}, {"scale_type": "channel", "projection_type": "std"}, 50),
    "AdaMuon": (COLLECTION, "AdaMuon", {}, {}, {}, 0),
    "GaLoreAdamW": (COLLECTION, "GaLore", LOW_RANK, {}, {"projection_type": "std"}, 50),
    "Kron": (peers.TIMM, "Kron", {"preconditioner_update_probability": 0.1}, {}, {}, 10),
    "Muon": ("torch.optim", "Muon", {}, {}, {}, 0),
    "NorMuon": (COLLECTION, "NorMuon", {}, {}, {}, 0),
    "SOAP": (COLLECTION, "SOAP", {}, {}, {}, 10),
    "Shampoo": (COLLECTION, "Shampoo", {"preconditioning_compute_steps": 10}, {}, {}, 10),
}
HIDDEN = [name for name in MATRICES if {**CATALOG, **MENU}[name].takes("ns_steps")]  # which take hidden matrices alone
LEAST = 2  # turns: one of the largest takes 12 seconds
SHAPES = {"transformer_64": (64, 4), "transformer_128": (128, 4), "transformer_256": (256, 2), "transformer_512": (512, 1)}


def shapes(name: str, model: str) -> list[tuple[int, ...]]:
    width, layers = SHAPES[model]
    matrices: list[tuple[int, ...]] = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    vectors: list[tuple[int, ...]] = [] if name in HIDDEN else [(width,)] * 4 + [(3 * width,), (4 * width,)]
    return (matrices + vectors) * layers


def theirs(name: str, params: list[torch.nn.Parameter]) -> Any:
    package, title, both, _, own, _ = MATRICES[name]
    groups: Any = [{"params": params, "use_muon": True}] if package == COLLECTION and name in HIDDEN else params
    if package != peers.TIMM:
        return getattr(importlib.import_module(package), title)(groups, lr=1e-3, **both, **own)
    importlib.import_module("opt_einsum")  # recommended by timm: without it a step of this one takes 90 seconds instead of 0.02
    peers.timm_optim()
    module = importlib.import_module("timm.optim.kron")
    made = module.Kron(params, lr=1e-3, **both, **own)
    for function in ("_calc_A_and_conjB", "_q_terms", "_precond_grad", "_balance_Q"):  # which it has torch.compile make
        setattr(made, function, getattr(module, function))
    return made


def measured(name: str, model: str, seconds: float) -> list[dict[str, Any]]:
    package, title, both, own, _, period = MATRICES[name]
    sizes, turn = shapes(name, model), max(period, 1)
    ours = getattr(compiledopt, name)(made(sizes, torch.float32), lr=1e-3, **both, **own)
    pair, times = (theirs(name, made(sizes, torch.float32)), ours), ([], [])  # type: ignore[var-annotated]
    for optimizer in pair:
        for _ in range(turn + 3):  # work that is due at the first step is another program than later ones'
            optimizer.step()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < LEAST:
        for optimizer, found in zip(pair, times, strict=True):
            found.append([timed(optimizer) for _ in range(turn if period else 5)])
    labels = {"optimizer": name, "shapes": model, "against": f"{package}.{title}", "executor": ours.executor}
    rows = [row(labels, "without work that is due" if period else "every step", times, steady)]
    return rows + ([row(labels, f"whole periods of {period}", times, statistics.fmean)] if period else [])


def timed(optimizer: Any) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def steady(turn: list[float]) -> float:
    """Work that is due is in one step of a turn, and takes the most."""
    return statistics.median(turn)


def row(labels: dict[str, str], which: str, times: Any, of: Callable[[list[float]], float]) -> dict[str, Any]:
    a, b = (statistics.median(map(of, turns)) * 1e3 for turns in times)
    print(f"{' '.join(f'{label:22}' for label in (*labels.values(), which))} {a:8.4g} ms, ours {b:8.4g} ms, ratio {a / b:.2f}")
    return {**labels, "steps": which, "their_ms": f"{a:.4g}", "our_ms": f"{b:.4g}", "ratio": f"{a / b:.2f}"} | circumstances()


def main(names: list[str] | None = None, seconds: float | None = None, save: bool = True) -> None:
    """Measure some of them on all shapes; without `names`, what the command line says."""
    if names is None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--optimizer", nargs="*", default=[*MATRICES])
        parser.add_argument("--seconds", type=float, default=0.5, help="of each pair, at least two turns")
        parser.add_argument("--no-save", action="store_true", help=f"print only, nothing into perf/results/{FILE}")
        given = parser.parse_args()
        names, seconds, save = given.optimizer, given.seconds, not given.no_save
    for name in names:
        for model in SHAPES:
            rows = measured(name, model, 0.5 if seconds is None else seconds)
            if save:
                append(FILE, rows)


if __name__ == "__main__":
    main()
