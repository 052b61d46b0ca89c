"""Optimizers for matrices beside the packages that have them, in pairs; `perf/menu.py` runs these too.

A small transformer's hidden matrices, with its vectors where the optimizer takes them, float32. Work on matrices that is due
every k steps is so for both. Two rows for each: the median of the steps without it, and the mean over whole periods.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import circumstances

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
    peers.timm_optim()
    module = importlib.import_module("timm.optim.kron")
    made = module.Kron(params, lr=1e-3, **both, **own)
    for function in ("_calc_A_and_conjB", "_q_terms", "_precond_grad", "_balance_Q"):  # which it has torch.compile make
        setattr(made, function, getattr(module, function))
    return made


def measured(name: str, model: str, seconds: float, make: Callable[[list[tuple[int, ...]]], Any]) -> list[dict[str, Any]]:
    """make: parameters with gradients, of shapes."""
    package, title, both, own, _, period = MATRICES[name]
    sizes, turn = shapes(name, model), max(period, 1)
    ours = getattr(compiledopt, name)(make(sizes), lr=1e-3, **both, **own)
    pair, times = (theirs(name, make(sizes)), ours), ([], [])  # type: ignore[var-annotated]
    for optimizer in pair:
        for _ in range(max(3, turn)):  # the first of a period is one for both then
            optimizer.step()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < 5:
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
