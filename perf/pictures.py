"""The pictures of docs/performance.md, docs/precision.md and the README, from the rows: perf/report.py draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.lines
import matplotlib.ticker
import precision_page
from common import read
from matplotlib import pyplot
from report import MODELS, SHAPES, TORCHS, latest, steps

# Told apart by people who see colours differently, too; on a dark ground they are lighter.
COLOURS = {
    "light": {"text": "#24292f", "grid": "#d0d7de", "ours": "#0969da", "torch fused": "#bc4c00", "torch foreach": "#6e7781"}
    | {"torch for-loop": "#afb8c1", "torch default": "#afb8c1"},
    "dark": {"text": "#e6edf3", "grid": "#30363d", "ours": "#58a6ff", "torch fused": "#ff9b52", "torch foreach": "#8b949e"}
    | {"torch for-loop": "#57606a", "torch default": "#57606a"},
}
MARKERS = {"ours": "o", "torch fused": "D", "torch foreach": "s", "torch for-loop": "^", "torch default": "^"}
Times = dict[str, dict[str, tuple[float, float]]]  # {line: {contender: (its ms, our ms)}}


def style(theme: str) -> dict[str, Any]:
    text, grid = COLOURS[theme]["text"], COLOURS[theme]["grid"]
    found: dict[str, Any] = {f"{part}.color": text for part in ("text", "xtick", "ytick")}
    found |= {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    found |= {"axes.labelcolor": text, "axes.edgecolor": grid, "grid.color": grid, "axes.titlelocation": "left"}
    found |= {"axes.titlesize": 10.5, "font.size": 9.5, "legend.frameon": False, "figure.constrained_layout.use": True}
    return found | {"svg.hashsalt": "compiledopt"}


def warm_steps() -> list[dict[str, str]]:
    return [row for row in steps("compiled", TORCHS) if row["caches"] == "warm"]


def alone() -> Times:
    """AdamW's steps one right after the other, by shapes."""
    found: Times = {}
    for row in warm_steps():
        if row["optimizer"] == "AdamW" and row["shapes"] in ("many_small", "tiny", "even"):
            pair = float(row["their_ms"]), float(row["our_ms"])
            found.setdefault(f"{SHAPES[row['shapes']]} elements", {})[row["against"]] = pair
    return found


def inside() -> Times:
    """AdamW's steps inside training, by model."""
    found: Times = {}
    for row in latest(read("in_situ.csv"), ["model", "against"]):
        pair = float(row["their_step_ms"]), float(row["our_step_ms"])
        found.setdefault(f"{MODELS[row['model']]}, {row['tensors']} tensors", {})[row["against"]] = pair
    return found


def dots(axes: Any, times: Times, theme: str, title: str) -> None:
    """One line per case. Times of two pairs may be of two hours: each contender stands at its ratio to ours in its own pair."""
    for place, pairs in enumerate(reversed(times.values())):
        ours = pairs.get("torch fused", next(iter(pairs.values())))[1]
        shown = {name: theirs / mine * ours for name, (theirs, mine) in pairs.items()} | {"ours": ours}
        axes.plot([min(shown.values()), max(shown.values())], [place, place], color=COLOURS[theme]["grid"], zorder=1)
        for name, value in shown.items():
            axes.scatter(value, place, s=42, marker=MARKERS[name], color=COLOURS[theme][name], zorder=2)
        if "torch fused" in pairs:
            theirs, mine = pairs["torch fused"]
            text = f"torch fused: {theirs / mine:.{1 if theirs < 10 * mine else 0}f} × as long"
            where = {"xytext": (0, 8), "textcoords": "offset points"}
            axes.annotate(text, (ours, place), ha="left", fontsize=8.5, color=COLOURS[theme]["ours"], **where)
    axes.set(
        yticks=range(len(times)), yticklabels=list(reversed(times)), xscale="log", title=title, ylim=(-0.5, len(times) - 0.35)
    )
    axes.set_xlabel("ms per step, logarithmic")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.grid(axis="x")
    axes.tick_params(length=0, which="both")


def legend(figure: Any, theme: str, names: Sequence[str]) -> None:
    marks = [
        matplotlib.lines.Line2D([], [], linestyle="", marker=MARKERS[name], color=COLOURS[theme][name], label=name)
        for name in names
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=len(names), handletextpad=0.1, columnspacing=1.2)


def steps_picture(theme: str) -> Any:
    panels = {"AdamW, steps alone": alone(), "AdamW, the step inside training": inside()}
    panels = {title: times for title, times in panels.items() if times}
    heights = [len(times) + 0.9 for times in panels.values()]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 0.62 * sum(heights)), height_ratios=heights, squeeze=False)
    for each, (title, times) in zip(axes[:, 0], panels.items(), strict=True):
        dots(each, times, theme, title)
    seen = {name for times in panels.values() for pairs in times.values() for name in pairs}
    legend(figure, theme, ["ours", *(name for name in MARKERS if name in seen)])
    return figure


def algorithms_picture(theme: str) -> Any:
    """The ratio to torch's executors for every algorithm, on many small tensors and on few large ones."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.6), sharey=True)
    panels = ("many_small", "even")
    rows = [row for row in warm_steps() if row["shapes"] in panels]
    names = sorted({row["optimizer"] for row in rows}, reverse=True)
    for each, shapes in zip(axes, panels, strict=True):
        for row in (row for row in rows if row["shapes"] == shapes):
            place, name = names.index(row["optimizer"]), row["against"]
            each.scatter(float(row["ratio"]), place, s=36, marker=MARKERS[name], color=COLOURS[theme][name], zorder=2)
        each.axvline(1, color=COLOURS[theme]["ours"], zorder=1)
        each.set(yticks=range(len(names)), yticklabels=names, xscale="log", title=f"{SHAPES[shapes]} elements")
        each.set_xlabel("times as long as ours (blue line), logarithmic")
        each.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        each.grid(axis="x")
        each.tick_params(length=0, which="both")
    legend(figure, theme, TORCHS)
    return figure


def first_step_picture(theme: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(8, 2.9))
    rows = sorted(latest(read("compile_time.csv"), ["optimizer", "tensors"]), key=lambda row: int(row["tensors"]))
    lines = {"torch_s": ("torch foreach", "torch, eager"), "empty_cache_s": ("torch fused", "ours, empty cache")}
    lines |= {"warm_cache_s": ("ours", "ours, warm cache")}
    for column, (colour, label) in lines.items():
        values = [float(row[column]) for row in rows]
        axes.plot([int(row["tensors"]) for row in rows], values, marker="o", color=COLOURS[theme][colour], label=label)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
    axes.set(xscale="log", ylim=(0, None), xlabel="tensors", title="Seconds to the end of the first step, imports included")
    axes.grid(axis="y")
    axes.tick_params(length=0, which="both")
    axes.legend(ncols=3, loc="lower left")
    return figure


def draw(folder: Path) -> None:
    """Each picture for light and for dark pages, without a ground of its own."""
    matplotlib.use("svg")
    folder.mkdir(exist_ok=True)
    makers = {"steps": steps_picture, "algorithms": algorithms_picture, "first-step": first_step_picture}
    makers["precision"] = lambda theme: precision_page.draw(pyplot, COLOURS[theme])
    for name, make in makers.items():
        for theme in COLOURS:
            with matplotlib.rc_context(style(theme)):
                figure = make(theme)
                figure.savefig(folder / f"{name}-{theme}.svg", transparent=True, metadata={"Date": None})
                pyplot.close(figure)
