"""The measured part of docs/precision.md and its picture, from perf/results/precision.csv; perf/report.py writes both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import read
from report import latest, machine, picture, table

PAGE = Path(__file__).parent.parent / "docs" / "precision.md"
BEGIN, END = (
    "<!-- From here on written by `python perf/report.py` from perf/results/precision.csv. -->\n",
    "<!-- To here. -->\n",
)
REFERENCE, HALF = "float32", "bfloat16 parameters, "
DEMO, SMALL, DIGITS = "the demo's transformer", "small transformer", "convnet on digits"
TASKS = (DEMO, SMALL, DIGITS)
LOSS, MOST = "held-out loss", 0.005  # the loss may be so much above float32's for the bytes to be recommended
HARDLY_MORE = 1.25  # times the fewest bytes
Row = dict[str, str]
Key = tuple[str, str, str]  # task, optimizer, way


def rows() -> list[Row]:
    return latest(read("precision.csv"), ["what", "task", "optimizer", "kept", "seed"])


def of(what: str, known: Sequence[Row]) -> dict[Key, list[float]]:
    """{case: the values of its seeds, in their order}."""
    found: dict[Key, list[float]] = {}
    for row in sorted((row for row in known if row["what"] == what), key=lambda row: int(row["seed"])):
        found.setdefault((row["task"], row["optimizer"], row["kept"]), []).append(float(row["value"]))
    return found


def changes(known: Sequence[Row], reference: str = REFERENCE) -> dict[Key, tuple[float, float]]:
    """Of each case the mean loss over its reference's, less 1, and how far float32's own seeds are from their mean."""
    losses, found = of(LOSS, known), {}
    for (task, optimizer, kept), values in losses.items():
        against = losses.get((task, optimizer, reference), [])
        if len(against) == len(values):
            mean = statistics.mean(against)
            found[task, optimizer, kept] = statistics.mean(values) / mean - 1, statistics.pstdev(against) / mean
    return found


def percent(value: float | None, sign: str = "+") -> str:
    if value is None:
        return "–"
    return f"{100 * (round(value, 4) + 0.0):{sign}.2f}%" if abs(value) < 10 else f"{value:.0f} ×"  # + 0.0: none is −0


def ways(known: Sequence[Row], half: bool = False) -> list[str]:
    return list(dict.fromkeys(row["kept"] for row in known if row["kept"].startswith(HALF) is half))


def states(known: Sequence[Row]) -> str:
    """A line for each algorithm and way."""
    losses, bytes_each, lines = changes(known), of("bytes per parameter", known), []
    update, signs = of("error of the update", known), of("signs of the update that differ", known)
    for optimizer in dict.fromkeys(row["optimizer"] for row in known if row["what"] == LOSS):
        for kept in ways(known):
            key = (SMALL, optimizer, kept)
            if key not in update and not any((task, optimizer, kept) in losses for task in TASKS):
                continue
            held = next((bytes_each[task, optimizer, kept][0] for task in TASKS if (task, optimizer, kept) in bytes_each), None)
            own = [(what, values) for what, values in errors_of_states(known).items() if key in values]
            # Those that are kept in float32 all the same have none.
            each = ", ".join(f"{what} {percent(values[key][0], '')}" for what, values in own if values[key][0] >= 5e-5)
            # Of the states alone: float32 parameters have 4 bytes themselves.
            cells = [optimizer, kept, "–" if held is None else f"{held - 4:.2f}", each or "–"]
            cells += [percent(found[key][0], "") if key in found else "–" for found in (update, signs)]
            changed = [losses.get((task, optimizer, kept)) for task in TASKS]
            lines.append(cells + [percent(None if change is None else change[0]) for change in changed])
    header = ["algorithm", "states", "bytes of states", "errors of states", "of updates", "signs that differ"]
    return table([*header, *(f"loss, {task}" for task in TASKS)], lines)


def errors_of_states(known: Sequence[Row]) -> dict[str, dict[Key, list[float]]]:
    kinds = dict.fromkeys(row["what"] for row in known if row["what"].startswith("error of "))
    return {what.removeprefix("error of "): of(what, known) for what in kinds if what != "error of the update"}


def spread(known: Sequence[Row]) -> str:
    """How far apart seeds are, against which changes are to be read."""
    found = {task: value[1] for (task, optimizer, kept), value in changes(known).items() if optimizer == "AdamW"}
    return ", ".join(f"{task} {percent(value, '')}" for task, value in found.items())


def parameters(known: Sequence[Row]) -> str:
    losses, bytes_each, masters = of(LOSS, known), of("bytes per parameter", known), f"{HALF}float32 masters"
    against, lines = changes(known), []
    for kept in ways(known, half=True):
        key = (SMALL, "AdamW", kept)
        if key in losses:
            same = losses[key] == losses.get((SMALL, "AdamW", masters))
            held = bytes_each[key][0] + (2 if kept == masters else 0)  # the parameters that the model computes with
            equal = "–" if kept == masters else ("yes, bit for bit" if same else "no")
            lines.append([kept.removeprefix(HALF), f"{held:.2f}", percent(against[key][0]), equal])
    return table(["bfloat16 parameters", "bytes with float32 states", "loss", "the loss of float32 masters"], lines)


def traps(known: Sequence[Row]) -> str:
    found = [row for row in known if row["task"].startswith("one tensor")]
    kinds, lines = list(dict.fromkeys(row["what"] for row in found)), []
    values = {(row["kept"], row["what"]): float(row["value"]) for row in found}
    for kept in dict.fromkeys(row["kept"] for row in found):
        lines.append([kept, *(f"{values[kept, what]:.3g}" if (kept, what) in values else "–" for what in kinds)])
    return table(["states", *kinds], lines)


def memory(known: Sequence[Row]) -> str:
    held, extra, lines = of("bytes of states per parameter", known), of("MiB that a step takes beside", known), []
    for (task, optimizer, kept), values in held.items():
        param = 2 if kept.startswith(HALF) else 4
        total = (param + values[0]) * 20e6 / 2**20
        beside = extra[task, optimizer, kept][0]
        lines.append([kept, f"{param}", f"{values[0]:.2f}", f"{total:.1f}", f"{beside:.2f}, {percent(beside / total, '')}"])
    return table(["kept", "bytes of a parameter", "of its states", "MiB together", "MiB that a step takes beside"], lines)


def recommended(known: Sequence[Row]) -> str:
    """Of the ways whose loss is within the bound of float32's, and which were tried on most cases, the one of the fewest
    bytes; of those that have hardly more, the one whose updates are nearest."""
    worst: dict[str, tuple[float, Key]] = {}
    tried: dict[str, int] = {}
    for key, (change, _) in changes(known).items():
        if not key[2].startswith(HALF) and key[2] != REFERENCE:
            worst[key[2]] = max(worst.get(key[2], (-1.0, key)), (change, key))
            tried[key[2]] = tried.get(key[2], 0) + 1
    most = max(tried.values(), default=0)
    size = {kept: values[0] for (_, _, kept), values in of("bytes of states per parameter", known).items()}
    able = [kept for kept, (change, _) in worst.items() if change <= MOST and kept in size and tried[kept] == most]
    fewest = min((size[kept] for kept in able), default=0.0)
    errors = {
        kept: values[0] for (_, optimizer, kept), values in of("error of the update", known).items() if optimizer == "AdamW"
    }
    fine = sorted((errors.get(kept, 1.0), size[kept], kept) for kept in able if size[kept] <= HARDLY_MORE * fewest)
    said = []
    for kept, (change, key) in sorted(worst.items(), key=lambda one: one[1][0]):
        bytes_each = f"; {size[kept]:.2f} bytes with AdamW" if kept in size else ""
        said.append(
            f"- **{kept}**: at worst {percent(change)} ({key[1]}, {key[0]}) in {tried[kept]} of {most} cases{bytes_each}"
        )
    within = f"whose loss is at most {MOST:.1%} above float32's in all {most} cases (algorithms and models)"
    text = f"There is none {within}."
    if fine:
        nearest = f"of those {within} and which have the fewest bytes, or hardly more, the one whose updates are nearest"
        text = f'Take **state_dtype="{fine[0][-1]}"**: {nearest}.'
    return "\n".join([f"{text} The worst of each:", "", *said])


PARTS: list[tuple[str, str, Callable[[Sequence[Row]], str]]] = [
    ("What to take", "", recommended),
    (
        "What it costs",
        "Losses are on data that was not trained on, against float32's, means of three seeds; errors are ‖x − y‖ / ‖y‖ over a "
        "training,\ny with states in float32 and x with the same gradients (`python perf/precision.py`).",
        states,
    ),
    ("Parameters in bfloat16", "AdamW on the small transformer, against float32 parameters.", parameters),
    ("Traps", "AdamW on one matrix of 64 × 64. What float32 has is right.", traps),
    ("Memory", "AdamW on 20 × 1,000,000 elements.", memory),
]


def part() -> str:
    """The generated part; nothing where nothing was measured."""
    known = rows()
    if not known:
        return ""
    shown = picture("precision", "Change of the loss and error of the updates against bytes of state per parameter")
    lines = [shown]
    for title, text, made in PARTS:
        lines += [f"## {title}\n", *([text + "\n"] if text else []), made(known) + "\n"]
    trained = [row for row in known if row["what"] == LOSS]
    sizes = {row["task"]: f"{row['task']}: {int(row['parameters']):,} parameters, {row['steps']} steps" for row in trained}
    lines += ["; ".join(sizes.values()) + f". Standard deviation of the seeds with float32: {spread(known)}.\n"]
    return "\n".join([*lines, machine(known) + "\n"])


def page(text: str) -> str:
    """The page with what is measured put in its place. text: the page as it is."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + part() + "\n" + END + rest.partition(END)[2]


# ---- the picture ----


def draw(pyplot: Any, colours: dict[str, str]) -> Any:
    """AdamW: bytes of states per parameter against the loss of the small transformer, and against the error of the updates."""
    known = rows()
    bytes_each, losses, update = of("bytes per parameter", known), changes(known), of("error of the update", known)
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.4))
    for each, title in zip(axes, ("loss of the small transformer, against float32", "error of AdamW's updates"), strict=True):
        each.set(title=title, xlabel="bytes of states per parameter", xlim=(0, 8.8))
        each.grid(axis="y")
        each.tick_params(length=0)
    for kept in ways(known):
        key = (SMALL, "AdamW", kept)
        if key in losses:
            x = bytes_each[key][0] - 4
            points = [(axes[0], 100 * losses[key][0])] + ([(axes[1], 100 * update[key][0])] if key in update else [])
            for each, y in points:
                each.scatter(x, y, s=36, color=colours["ours"], zorder=2)
                each.annotate(kept, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes[0].axhline(0, color=colours["ours"], zorder=1)
    axes[0].set_yscale("symlog", linthresh=1)
    axes[1].set_yscale("log")
    for each in axes:
        each.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    return figure
