"""docs/performance.md, the measured part of docs/precision.md, their pictures and the README's, from perf/results/*.csv:
python perf/report.py [--check]

Of each case the newest row is shown; the others stay in perf/results. --check: exit with 1 where a page is not what the rows
say, or a picture that it shows is missing; pictures are not compared, since fonts differ between machines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common import read

Row = dict[str, str]
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = """# Performance

Written by `python perf/report.py` from the rows in `perf/results`; no figure is typed by hand. Each figure comes from a pair,
measured in turns within one process: the median of each, and **ratio**, the other's time divided by ours; above 1, ours is
faster. Ratios can be compared across a table; times only where they stand in one line, since the machine is not equally fast
all day (so the pictures place each contender by its ratio). Quartiles, loads and older rows are in the files.
"""
SHAPES = {
    "many_small": "300 × 1,000",
    "small": "300 × 5,000",
    "tiny": "2,000 × 64",
    "even": "20 × 1,000,000",
    "one": "1 × 20,000,000",
    "matrices": "24 × 512²",
    "matrices_128": "100 × 128²",
    "resnet50": "ResNet-50",
    "vit_b16": "ViT-B/16",
    "gpt2_small": "GPT-2 small",
    "llama_1b": "Llama 1B",
    "llama_1b_scaled": "Llama 1B, a quarter",
}
MODELS = {
    "mlp": "MLP 8-64-64-4",
    "layers": "40 × (Linear 128, LayerNorm)",
    "convnet": "small convnet",
    "lora": "LoRA on a transformer",
    "embedding": "embedding table, MLP",
}
BETWEEN = {"warm": "nothing", "cold": "caches emptied"}
STEP = ("optimizer", "tensors", "between steps", "our ms")
TORCHS = ("torch fused", "torch foreach", "torch for-loop")
OTHERS = ("torch.compile(step)", "optimi", "heavyball", "torchao")


def latest(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The last row of each case, in the order in which cases came first."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found[tuple(row[key] for key in keys)] = row
    return list(found.values())


def steps(ours: str, against: Sequence[str]) -> list[Row]:
    """Of each algorithm, shapes, contender and what happens between steps the newest row."""
    rows = [row for row in read("step.csv") if row["ours"] == ours and row["against"] in against]
    return latest(rows, ["optimizer", "shapes", "against", "caches"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def machine(rows: Sequence[Row]) -> str:
    commits: dict[str, dict[str, str]] = {}
    for row in rows:
        where = "{processor}, {threads} threads, torch {torch}, Python {python}".format(**row)
        commits.setdefault(where, {})[row["commit"]] = row["date"][:10]
    return (
        "Measured on "
        + "; ".join(f"{where}, commit {', '.join(of)}, {max(of.values())}" for where, of in commits.items())
        + "."
    )


def section(title: str, text: str, rows: Sequence[Row], header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return "\n\n".join([f"## {title}", *([text] if text else []), table(header, cells), machine(rows)]) + "\n" if rows else ""


def picture(name: str, text: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="pictures/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{text}" src="pictures/{name}-light.svg"></picture>\n'


def plain(title: str, text: str, file: str, keys: Sequence[str], columns: Mapping[str, str]) -> str:
    """The newest rows of a file as they are. columns: {name in the file: heading}."""
    rows = latest(read(file), keys)
    return section(title, text, rows, list(columns.values()), [[words(row[name]) for name in columns] for row in rows])


def words(cell: str) -> str:
    return SHAPES.get(cell, MODELS.get(cell, cell))


def in_training() -> str:
    rows = latest(read("in_situ.csv"), ["model", "against"])
    cells = [
        [words(r["model"]), r["tensors"], r["against"], r["their_step_ms"], r["our_step_ms"], r["step_ratio"]]
        + [
            f"{r['their_iteration_ms']} → {r['our_iteration_ms']}",
            f"{r['their_warm_ms']} → {r['our_warm_ms']}",
            r["warm_ratio"],
        ]
        for r in rows
    ]
    header = ["model", "tensors", "against", "its step, ms", "our step, ms", "ratio"]
    text = "AdamW as it is made by default, in a loop of forward, backward and step (`python perf/in_situ.py`). Between two\n"
    text += (
        "steps a model runs through the caches, so a step takes longer than in a loop of steps alone, which stands beside it."
    )
    return section("A step inside training", text, rows, [*header, "whole iteration, ms", "steps alone, ms", "ratio"], cells)


def pivot(rows: Sequence[Row], against: Sequence[str]) -> list[list[str]]:
    """A line per algorithm, shapes and what happens between steps: our newest time, and the ratio to each contender in its own
    pair."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["optimizer"], row["shapes"], row["caches"]), {})[row["against"]] = row
    shapes_first = {shapes: index for index, shapes in enumerate(dict.fromkeys(shapes for _, shapes, _ in found))}
    lines = []
    for (optimizer, shapes, caches), pairs in sorted(
        found.items(), key=lambda one: (one[0][0] != "AdamW", one[0][0], shapes_first[one[0][1]], one[0][2] != "warm")
    ):
        newest = max(pairs.values(), key=lambda row: row["date"])
        ratios = [pairs[name]["ratio"] if name in pairs else "–" for name in against]
        lines.append([optimizer, words(shapes), BETWEEN[caches], newest["our_ms"], *ratios])
    return lines


def alone() -> str:
    rows = steps("compiled", TORCHS)
    text = "Steps without a model around them, one right after the other or each with the caches emptied before it, against\n"
    text += "torch's executors (`python perf/step.py`): the ratio for each. A dash: not measured, or torch has none."
    return section("A step alone", text, rows, [*STEP, *TORCHS], pivot(rows, TORCHS))


def libraries() -> str:
    rows = steps("compiled", OTHERS)
    text = "The same against `torch.compile` of torch's step and against other libraries."
    return section("Against others", text, rows, [*STEP, *OTHERS], pivot(rows, OTHERS))


def eager() -> str:
    pairs = {"foreach": "torch foreach", "for-loop": "torch for-loop"}
    rows = [row for ours, theirs in pairs.items() for row in steps(ours, [theirs])]
    rows += [row for ours in pairs for row in steps(ours, ["torch"])]
    cells = [
        [r["optimizer"], words(r["shapes"]), BETWEEN[r["caches"]]]
        + [r[name] for name in ("against", "their_ms", "ours", "our_ms", "ratio")]
        for r in rows
    ]
    text = (
        "Where nothing is compiled: foreach against torch's foreach, the for-loop against torch's; Muon against what torch has."
    )
    header = [*STEP[:-1], "against", "its ms", "ours", "our ms", "ratio"]
    return section("The eager executors", text, rows, header, cells)


def memory() -> str:
    known = [row for row in read("step.csv") if row["their_extra_mib"] != "nan"]
    rows = latest(known, ["optimizer", "shapes", "against", "ours"])
    names = ("optimizer", "shapes", "against", "their_extra_mib", "ours", "our_extra_mib")
    header = ["optimizer", "tensors", "against", "its MiB", "ours", "our MiB"]
    text = "What steps take at their peak on top of parameters, gradients and states, in processes of their own."
    return section("Memory", text, rows, header, [[words(row[name]) for name in names] for row in rows])


def gpu() -> str:
    if not read("gpu.csv"):
        return (
            "## GPU\n\nNot measured so far. `python perf/gpu.py` measures everything in one call on a machine that has one.\n"
        )
    columns = {"what": "what", "optimizer": "optimizer", "shapes": "tensors", "against": "against", **PAIR}
    columns |= {"their_wall_ms": "its ms in a loop", "our_wall_ms": "our ms in a loop", "wall_ratio": "ratio in a loop"}
    columns |= {"note": "note", "device": "device"}
    keys = ["what", "optimizer", "shapes", "against", "device"]
    return plain(
        "GPU",
        "Times on the device, and of a loop of steps, where the host counts too (`python perf/gpu.py`).",
        "gpu.csv",
        keys,
        columns,
    )


def host_on_gpu() -> str:
    columns = {"optimizer": "optimizer", "shapes": "tensors", "against": "against", **PAIR}
    text = "Until `step()` returns, with a driver that does nothing in the place of a GPU's (`python perf/gpu.py --fake`)."
    return plain("The host's time of a step on a GPU", text, "gpu_host.csv", ["optimizer", "shapes", "against"], columns)


PAIR = {"their_ms": "its ms", "our_ms": "our ms", "ratio": "ratio"}
AROUND = """AdamW with clipping, an average, a schedule inside the step (`max_grad_norm`, `ema_decay`, `lr=schedule`), against
the same around it; and the step as it is against the step under torch.compile (`python perf/around.py`)."""
FIRST = """Seconds from making the optimizer to the end of its first step, imports included: one kernel per algorithm, flags and
dtypes, so the number of tensors hardly matters (`python perf/compile_time.py`)."""
FEWER = """Ours with its states in fewer bytes, against float32 states and against what others keep in 8 and 4 bits
(`python perf/step.py --state-dtype int8`; what it costs in quality: [precision](precision.md)). torchao compiles its update
too: its step takes about four times what 16.5 bytes an element take in the fastest float32 step here, so that none can be ten
times as fast; that of bitsandbytes goes through memory for each operation."""
FIRST_KEPT = """The same with states in fewer bytes, on matrices of 64 × 64, caches empty
(`python perf/compile_time.py --state-dtype int8`)."""
BANDWIDTH = """Bytes that a step must move, over its time, for every elementwise algorithm and for torch's fused AdamW in turns.
A step moves each tensor through memory once, and out of the caches no step is faster than memory."""
PUBLISHED = """[The menu](menu.md) beside the packages it comes from, each with its defaults (`python perf/menu.py`). Where an
algorithm has little state, torch's own operations move few bytes more than one pass does, and there is less to be gained.
**Memory**: the bytes that our step must move over its time on 20 × 1,000,000, beside those of torch's fused AdamW in turns: at
about 1 or more a step is as fast as the memory lets any step be, whatever the ratio."""
FOR_MATRICES = """Those of [the menu](menu.md) that are for matrices, on the matrices of small transformers beside the packages
(`python perf/menu.py`); where work on matrices is due every k steps, the steps without it and whole periods."""
COMBINED = """A step of `Combined(Muon(matrices), AdamW(others))` against a step of each, one after the other, in turns
(`python perf/combined.py`): what one step for both costs beside the sum of its parts."""
TRAININGS = """Small networks that step thousands of times, from one seed on one thread, in turns; medians of seconds and means
of the rewards of ten episodes afterwards (`python perf/reinforcement.py`)."""
SHARDED = (
    "AdamW on 200 tensors sharded over two processes (DTensor, gloo), one thread each, in turns (`python perf/sharded.py`)."
)


def around() -> str:
    columns = {"against": "against", "shapes": "tensors", "their_ms": "its ms", "our_ms": "inside, ms", "ratio": "ratio"}
    return plain("Around a step", AROUND, "around.csv", ["against", "shapes"], columns)


def averages() -> str:
    text = "`AveragedModel.update_parameters`, ours against torch's with the same function."
    columns = {"function": "function", "shapes": "tensors", **PAIR}
    return plain("Averages", text, "averaging.csv", ["function", "shapes"], columns)


def fewer_bytes() -> str:
    """Steps with states in fewer bytes: newest rows by how they are kept."""
    rows = [{**row, "kept": json.loads(row["options"])["state_dtype"]} for row in read("storage.csv")]
    rows = latest(rows, ["optimizer", "kept", "shapes", "against", "caches"])
    cells = [
        [r["optimizer"], r["kept"], words(r["shapes"]), BETWEEN[r["caches"]]]
        + [r[name] for name in ("against", "their_ms", "our_ms", "ratio")]
        for r in rows
    ]
    header = ["optimizer", "our states", *STEP[1:-1], "against", *PAIR.values()]
    return section("States in fewer bytes", FEWER, rows, header, cells)


def first_step() -> str:
    columns = {"tensors": "tensors", "torch_s": "torch, eager", "empty_cache_s": "ours, empty cache"}
    columns |= {"warm_cache_s": "ours, warm cache", "second_step_ms": "second step, ms"}
    kept = {"kept": "states", "tensors": "tensors", "float32_s": "float32", "kept_s": "in fewer bytes", "ratio": "ratio"}
    return plain("The first step", FIRST, "compile_time.csv", ["optimizer", "tensors"], columns) + plain(
        "The first step with states in fewer bytes", FIRST_KEPT, "first_step.csv", ["kept", "tensors"], kept
    )


def host_time() -> str:
    text = "A step on parameters of one element: what Python and the gather cost."
    return plain("Host time", text, "overhead.csv", ["optimizer", "tensors"], {"tensors": "tensors", "host_ms": "ms"})


def bandwidth() -> str:
    columns = {"optimizer": "optimizer", "bytes_per_element": "bytes/element", "our_ms": "our ms", "our_gb_s": "our GB/s"}
    columns |= {"their_gb_s": "torch's fused AdamW, GB/s", "quotient": "quotient"}
    return plain("Bandwidth", BANDWIDTH, "bandwidth.csv", ["optimizer", "options", "shapes"], columns)


def published() -> str:
    """A line for each algorithm: its ratio for each of the shapes."""
    rows = latest(read("menu.csv"), ["optimizer", "shapes", "against"])
    shapes = list(dict.fromkeys(row["shapes"] for row in rows))
    pairs: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        pairs.setdefault((row["optimizer"], row["against"]), {})[row["shapes"]] = row
    bytes_of = {(row["optimizer"], *_given(row)): row["quotient"] for row in read("menu_bytes.csv")}
    cells = []
    for (name, against), of in sorted(pairs.items()):
        executors = " + ".join(dict.fromkeys(row["executor"] for row in of.values()))
        figures = [[of[one][key] for key in ("our_ms", "ratio")] if one in of else ["–", "–"] for one in shapes]
        memory = bytes_of.get((name, *against.split(", ")[1:]), "–")
        cells.append([name, against, executors, *(cell for both in figures for cell in both), memory])
    header = ["optimizer", "against", "ours runs", *(head for one in shapes for head in (f"{words(one)}: our ms", "ratio"))]
    header.append("memory")
    return section("Published optimizers", PUBLISHED, rows, header, cells)


def _given(row: Row) -> list[str]:
    """What perf/menu.py gave to both, in the words of `against`."""
    return [f"{name} {value}" for name, value in json.loads(row["options"]).items() if name != "lr"]


def for_matrices() -> str:
    columns = {"optimizer": "optimizer", "against": "against", "executor": "ours runs", "shapes": "tensors", "steps": "steps"}
    return plain(
        "Published optimizers for matrices", FOR_MATRICES, "menu_matrices.csv", ["optimizer", "shapes", "steps"], columns | PAIR
    )


def combined() -> str:
    columns = {"shapes": "tensors", "their_ms": "one by one, ms", "our_ms": "combined, ms", "ratio": "ratio"}
    return plain("Several algorithms as one", COMBINED, "combined.csv", ["shapes"], columns)


def whole_trainings() -> str:
    columns = {"algorithm": "algorithm", "environment": "environment", "steps": "steps", "rounds": "rounds"}
    columns |= {"their_s": "torch.optim.Adam, s", "our_s": "ours, s", "ratio": "ratio"}
    columns |= {"their_reward": "its reward", "our_reward": "our reward"}
    return plain("Whole trainings of stable-baselines3", TRAININGS, "reinforcement.csv", ["algorithm"], columns)


def sharded() -> str:
    return plain(
        "Sharded parameters", SHARDED, "sharded.csv", ["shapes", "against"], {"shapes": "tensors", "against": "against", **PAIR}
    )


KERNELS = """What ptxas of triton 3.6 makes of the kernels of every algorithm (`python perf/kernels.py`), on a machine
without a GPU: how many spill registers; how many leave a processor no room for two blocks, of which one loads while the
other computes; and the fewest warps that a processor has room for. Below, each that spills or is alone."""


def kernels() -> str:
    rows = latest(read("kernels.csv"), ["optimizer", "options", "dtype", "arch", "shape", "kernel"])
    of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of.setdefault((row["arch"], row["dtype"]), []).append(row)
    cells = []
    for (arch, dtype), found in sorted(of.items()):
        spilled, alone = [int(row["spills"]) for row in found], sum(int(row["blocks"]) < 2 for row in found)
        spills = f"{sum(map(bool, spilled))}, {max(spilled)} bytes at most"
        counts = [str(len({row["optimizer"] for row in found})), str(len(found)), spills, str(alone)]
        cells.append([arch, dtype, *counts, str(min(int(row["warps_held"]) for row in found))])
    header = ["architecture", "parameters", "algorithms", "kernels", "spill", "alone on a processor", "fewest warps"]
    text = section("Kernels of GPUs", KERNELS, rows, header, cells)
    names = {"optimizer": "optimizer", "options": "options", "dtype": "parameters", "arch": "architecture", "shape": "shape"}
    names |= {
        "kernel": "kernel",
        "registers": "registers",
        "spills": "bytes spilled",
        "blocks": "blocks",
        "warps_held": "warps",
    }
    worst = [row for row in rows if int(row["spills"]) or int(row["blocks"]) < 2]
    return f"{text}\n{table(list(names.values()), [[row[name] for name in names] for row in worst])}\n" if worst else text


def pictures() -> str:
    shown = [
        picture("steps", "Times of a step of AdamW, ours and torch's, in a loop of steps alone and inside training"),
        picture("algorithms", "How many times as long as ours torch's executors take, for every algorithm"),
        picture("first-step", "Seconds to the end of the first step, by number of tensors"),
    ]
    return "\n".join(shown)


PARTS: list[Callable[[], str]] = [pictures, in_training, whole_trainings, alone, libraries, fewer_bytes, around, averages]
PARTS += [published, for_matrices, combined, first_step, host_time, bandwidth, sharded, memory, eager]
PARTS += [gpu, host_on_gpu, kernels]


def page() -> str:
    return "\n".join(text for text in (HEAD, *(part() for part in PARTS)) if text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not what the rows say")
    import precision_page

    pages = {PAGE: page(), precision_page.PAGE: precision_page.page(precision_page.PAGE.read_text())}
    if parser.parse_args().check:
        shown = [PAGE.parent / target for text in pages.values() for target in re.findall(r'"(pictures/[^"]+)"', text)]
        stale = [path for path, text in pages.items() if text != path.read_text()]
        return int(bool(stale) or not all(target.exists() for target in shown))
    for path, text in pages.items():
        path.write_text(text)
    import pictures as drawings  # matplotlib is in the extra `perf`, and the check needs none

    drawings.draw(PAGE.parent / "pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
