"""docs/performance.md is what the rows in perf/results say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"


def test_page_is_generated():
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    assert subprocess.run([sys.executable, str(PERF / "report.py"), "--check"]).returncode == 0


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


@pytest.mark.parametrize("against", ["torch fused", "torch for-loop"])
def test_the_measurement_runs(against):
    if not PERF.exists():
        pytest.skip("the tests run without the repository around them")
    command = [sys.executable, str(PERF / "step.py"), "--shapes", "tiny", "--against", against, "--seconds", "0.1", "--no-save"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, "--with-memory"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
