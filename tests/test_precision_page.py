"""docs/precision.md says what the rows in perf/results/precision.csv say, and the rows can be had."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"
if not PERF.exists():
    pytest.skip("the tests run without the repository around them", allow_module_level=True)


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(PERF))
    import precision_page

    return precision_page


def row(kept, seed, value, what="held-out loss", task="small transformer", optimizer="AdamW"):
    where = {"processor": "p", "threads": "1", "torch": "t", "python": "y", "commit": "c", "date": "2026-01-01"}
    return {"what": what, "task": task, "parameters": "9", "steps": "5", "optimizer": optimizer, "kept": kept} | {
        "seed": str(seed),
        "value": str(value),
        **where,
    }


def test_what_is_recommended_has_the_fewest_bytes_within_the_bound(page):
    losses = {"float32": (2.0, 4.0), "many": (2.0, 3.9), "few": (2.01, 4.015), "fewest": (2.0, 4.04)}
    known = [row(kept, seed, value) for kept, values in losses.items() for seed, value in enumerate(values)]
    bytes_each = {"many": 4, "few": 2, "fewest": 1}
    known += [row(kept, 0, value, "bytes of states per parameter", "20") for kept, value in bytes_each.items()]
    text = page.recommended(known)
    assert text.startswith('Take **state_dtype="few"**: of those whose loss is at most 0.5% above')
    assert (
        "- **few**: at worst +0.42% (AdamW, small transformer) in 1 of 1 cases; 2.00 bytes" in text
        and "**fewest**: at worst +0.67%" in text
    )
    elsewhere = [row(kept, 0, value, task="other") for kept, value in (("float32", 1.0), ("few", 1.1), ("many", 1.0))]
    assert page.recommended(known + elsewhere).startswith('Take **state_dtype="many"**')
    near = [row("near", seed, value) for seed, value in enumerate((2.0, 4.0))]
    near.append(row("near", 0, 2.4, "bytes of states per parameter", "20"))
    off = [row(kept, 0, error, "error of the update") for kept, error in (("few", 0.05), ("near", 0.03))]
    assert page.recommended(known + near + off).startswith('Take **state_dtype="near"**'), (
        "as few bytes but for a fifth, and nearer"
    )
    assert page.recommended(known + near + off[:1]).startswith('Take **state_dtype="few"**')
    assert page.recommended(known + elsewhere[::2]).startswith('Take **state_dtype="many"**'), "few was tried on less"


def test_a_split_that_is_not_its_masters_is_told(page):
    ways = [f"bfloat16 parameters, {name}" for name in ("float32 masters", "split", "stochastic")]
    known = [row("float32", 0, 2.0), *(row(kept, 0, value) for kept, value in zip(ways, (2.2, 2.2, 2.3), strict=True))]
    known += [row(kept, 0, 12, "bytes per parameter") for kept in ways]
    assert "| split | 12.00 | +10.00% | yes, bit for bit |" in page.parameters(known)
    assert "| stochastic | 12.00 | +15.00% | no |" in page.parameters(known)


def test_the_newest_rows_are_on_the_page(page):
    with (PERF / "results" / "precision.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    text = page.PAGE.read_text()
    trap = [row for row in rows if row["kept"] == "int8" and row["task"].startswith("one tensor")]
    newest = {row["what"]: f"{float(row['value']):.3g}" for row in trap}
    line = next(line for line in text.splitlines() if line.startswith("| int8 | ") and line.count("|") == len(newest) + 2)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [newest[what] for what in newest]
    assert page.page(text) == text and page.page(text.replace(line, "")) == text


@pytest.mark.slow
def test_the_measurement_runs():
    for module in ("matplotlib", "tqdm"):
        pytest.importorskip(module, reason="the demo's packages, whose training this measures")
    command = [sys.executable, str(PERF / "precision.py"), "--tasks", "small", "--steps", "30", "--seeds", "0"]
    command += ["--what", "errors", "loss", "--optimizer", "AdamW", "CAME", "--kept", "float32", "int8"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("small transformer")]
    found = {(line[2], line[3], " ".join(line[4:-1])): float(line[-1]) for line in lines}
    assert found["AdamW", "float32", "bytes per parameter"] == 12 and found["AdamW", "int8", "bytes per parameter"] < 6.5
    assert 1e-3 < found["AdamW", "int8", "error of the update"] < 0.2
    assert abs(found["AdamW", "int8", "held-out loss"] / found["AdamW", "float32", "held-out loss"] - 1) < 0.02
    assert found["CAME", "int8", "bytes per parameter"] < found["CAME", "float32", "bytes per parameter"] - 2
