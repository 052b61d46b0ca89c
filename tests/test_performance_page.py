"""docs/performance.md is what the rows in perf/results say."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"


def test_the_newest_row_of_each_case_is_on_the_page():
    """Each pair of the compiled step: its ratio stands in the line of its algorithm and shapes, and no older one does."""
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    with (PERF / "results" / "step.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["ours"] == "compiled"]
    sys.path.insert(0, str(PERF))
    try:
        from report import BETWEEN, SHAPES, TORCHS, alone, libraries
    finally:
        sys.path.remove(str(PERF))
    newest = {(row["optimizer"], row["shapes"], row["caches"], row["against"]): row["ratio"] for row in rows}
    assert len(newest) < len(rows), "nothing was measured twice, so that this tests little"
    lines = [line.split(" | ") for line in (alone() + libraries()).replace("| ", "", 1).splitlines()]
    for (optimizer, shapes, caches, against), ratio in newest.items():
        found = [line for line in lines if [line[0].strip("| "), *line[1:3]] == [optimizer, SHAPES[shapes], BETWEEN[caches]]]
        assert any(ratio in (cell.strip(" |") for cell in line[4:]) for line in found), (optimizer, shapes, against)
    shown = [cell for line in lines if len(line) > 5 for cell in line[4:] if cell.strip(" |").replace(".", "").isdigit()]
    assert len(shown) == len(newest) and set(TORCHS) <= {against for *_, against in newest}


def test_the_page_is_generated_and_a_stale_one_or_a_missing_picture_noticed(tmp_path):
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    shutil.copytree(PERF, tmp_path / "perf")
    shutil.copytree(PERF.parent / "docs", tmp_path / "docs")

    def check():
        return subprocess.run([sys.executable, str(tmp_path / "perf" / "report.py"), "--check"]).returncode

    assert check() == 0
    (tmp_path / "docs" / "pictures" / "steps-dark.svg").unlink()
    assert check() == 1
    shutil.copy(PERF.parent / "docs" / "pictures" / "steps-dark.svg", tmp_path / "docs" / "pictures")
    page = tmp_path / "docs" / "performance.md"
    page.write_text(page.read_text().replace("1", "2", 1))
    assert check() == 1


def test_the_menus_table_has_a_line_for_each_algorithm(monkeypatch):
    """Of rows that nobody measured: the newest of each pair, and both shapes in one line."""
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    monkeypatch.syspath_prepend(str(PERF))
    import report

    common = {"processor": "P", "threads": "2", "torch": "T", "python": "3", "commit": "c", "date": "2026-01-01 00:00"}

    def row(name, shapes, ms, ratio):
        pair = {"against": f"timm.{name}", "executor": "compiled", "their_ms": "9", "our_ms": ms, "ratio": ratio}
        return {"optimizer": name, "shapes": shapes, **pair, **common}

    rows = [row("Yogi", "even", "3.0", "3.00"), row("Yogi", "many_small", "0.1", "20.0"), row("Yogi", "even", "2.0", "4.50")]
    rows += [row("Lion", "many_small", "0.2", "30.0")]
    rows += [{**row("Lion", "even", "5.0", "3.00"), "against": "timm.Lion, momentum 0.9"}]
    bounds = [{"optimizer": "Lion", "options": '{"lr": 0.001, "momentum": 0.9}', "quotient": "0.97"}]
    bounds += [{"optimizer": "Yogi", "options": '{"lr": 0.001}', "quotient": "1.02"}]
    monkeypatch.setattr(report, "read", lambda file: {"menu.csv": rows, "menu_bytes.csv": bounds}.get(file, []))
    lines = report.published().splitlines()
    assert "| Lion | timm.Lion | compiled | – | – | 0.2 | 30.0 | – |" in lines
    assert "| Lion | timm.Lion, momentum 0.9 | compiled | 5.0 | 3.00 | – | – | 0.97 |" in lines
    assert "| Yogi | timm.Yogi | compiled | 2.0 | 4.50 | 0.1 | 20.0 | 1.02 |" in lines
    monkeypatch.setattr(report, "read", lambda file: [])
    assert report.published() == report.combined() == ""
    pair = {"shapes": "width 64, 4 layers", "their_ms": "9", "our_ms": "9", "ratio": "1.00"}
    monkeypatch.setattr(report, "read", lambda file: [{**pair, **common}] if file == "combined.csv" else [])
    assert "| width 64, 4 layers | 9 | 9 | 1.00 |" in report.combined()


def test_shapes_are_the_models():
    sys.path.insert(0, str(PERF))
    try:
        from shapes import SHAPES
    finally:
        sys.path.remove(str(PERF))
    import math

    parameters = {name: sum(map(math.prod, make())) for name, make in SHAPES.items()}
    assert parameters["resnet50"] == 25_557_032
    assert parameters["vit_b16"] == 86_567_656
    assert parameters["gpt2_small"] == 124_439_808
    assert parameters["llama_1b"] == 1_235_814_400
    assert len(SHAPES["resnet50"]()) == 161


def test_models_are_what_they_say():
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    sys.path.insert(0, str(PERF))
    try:
        import in_situ
        from report import MODELS
    finally:
        sys.path.remove(str(PERF))
    assert in_situ.MODELS.keys() == MODELS.keys()
    made = {name: make() for name, make in in_situ.MODELS.items()}
    tensors = {name: len(in_situ.trainable(model)) for name, (model, _) in made.items()}
    assert tensors == {"mlp": 6, "layers": 160, "convnet": 18, "lora": 200, "embedding": 5}
    assert sum(param.numel() for param in made["convnet"][0].parameters()) == 242_826
    for model, loss in made.values():
        loss(model).backward()
        assert all(param.grad is not None for param in in_situ.trainable(model))
        assert all(param.grad is None for param in model.parameters() if not param.requires_grad)


def test_a_step_inside_training_is_measured():
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    command = [sys.executable, str(PERF / "in_situ.py"), "--models", "mlp", "--seconds", "0.1", "--no-save"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ratio ") == done.stdout.count("; steps alone ") == 3


@pytest.mark.processes
@pytest.mark.parametrize(
    ("against", "more"),
    [("torch fused", []), pytest.param("torch for-loop", ["--with-memory"], marks=pytest.mark.slow)],
    ids=["time", "memory"],
)
def test_the_measurement_runs(against, more):
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    command = [sys.executable, str(PERF / "step.py"), "--shapes", "tiny", "--against", against, "--seconds", "0.1", "--no-save"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
