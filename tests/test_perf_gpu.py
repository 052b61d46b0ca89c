"""perf/gpu.py where there is no GPU: which rows it writes, when, and in which order."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from catalog import one_per_kind

PERF = Path(__file__).parent.parent / "perf"


@pytest.fixture
def gpu(monkeypatch):
    """The script on a few small tensors of the host, timed by its clock."""
    monkeypatch.syspath_prepend(str(PERF))
    import gpu

    def milliseconds(step):
        begun = time.perf_counter()
        step()
        return (time.perf_counter() - begun) * 1e3 + 1e-6

    tiny = [(4, 4), (16,)]
    for name, value in (("DEVICE", "cpu"), ("LARGE", tiny), ("device_ms", milliseconds), ("wall_ms", milliseconds)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "HOST_STEPS", 1)
    monkeypatch.setattr(gpu, "SHAPES", {name: lambda name=name: tiny[: 1 + ("matrices" not in name)] for name in gpu.SHAPES})
    yield gpu
    sys.modules.pop("gpu")


def rows(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_rows_are_written_as_they_are_measured(gpu, tmp_path, monkeypatch, capsys):
    """With neither git nor a file that is there already; what fails is said, and does not end the others."""

    def without_git(command, *more, run=subprocess.run, **options):
        if command[0] == "git":
            raise FileNotFoundError("git")
        return run(command, *more, **options)

    monkeypatch.setattr(subprocess, "run", without_git)
    monkeypatch.delenv("COMPILEDOPT_COMMIT", raising=False)
    monkeypatch.setattr(gpu, "MODELS", ("gpt2_small",))
    seen, path, append = [], tmp_path / "out" / "gpu.csv", gpu.append
    monkeypatch.setattr(gpu, "append", lambda *given: append(*given) or seen.append(len(rows(path))))

    def no_room(_):
        raise torch.OutOfMemoryError("no room")

    def broken():
        (first, *others) = gpu.small()
        yield from [dataclasses.replace(first, run=no_room, against="too much"), first, *others]

    monkeypatch.setitem(gpu.PARTS, "small", broken)
    assert gpu.run(["bandwidth", "small", "models", "host"], gpu.Measure(0.0, time.monotonic() + 1000), path) == 1
    assert "small of AdamW on many_small, too much: OutOfMemoryError: no room" in capsys.readouterr().err
    found = rows(path)
    assert seen == list(range(1, len(found) + 1))
    assert [row["what"] for row in found] == ["bandwidth"] * 6 + ["small"] * 6 + ["models"] + ["host"] * 2 * len(gpu.HOST)
    assert {row["commit"] for row in found} == {"unknown"} and all(float(row["ratio"]) > 0 for row in found)
    assert "of a copy's bandwidth" in found[0]["note"]


def test_what_is_asked_is_said(gpu, tmp_path, monkeypatch, capsys):
    """In the row; and of what was missed once more, at the end."""
    (case, *_), path = gpu.small(), tmp_path / "gpu.csv"
    for their in (1.5, 9.0):
        one = dataclasses.replace(case, run=lambda _, their=their: ([9.0, their], [1.0, 1.0], "so"))
        monkeypatch.setitem(gpu.PARTS, "small", lambda one=one: [one])
        gpu.run(["small"], gpu.Measure(0.0, time.monotonic() + 1000), path)
    assert [row["note"] for row in rows(path)] == ["2 asked: missed, so", "2 asked: met, so"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["small", "missed:", "small"]
    asked = [one.goal for name in ("bandwidth", "models", "small", "replay", "foreach") for one in gpu.PARTS[name]()]
    assert None in asked and len(set(asked)) == 6


def test_the_time_is_kept(gpu, tmp_path, capsys):
    path = tmp_path / "gpu.csv"
    assert gpu.run(list(gpu.PARTS), gpu.Measure(0.0, time.monotonic() - 1), path) == 0
    assert not path.exists() and "no time left at bandwidth" in capsys.readouterr().err


DYING = """
import os, signal, sys, time
journal, out = sys.argv[1:]
for name in ("first", "signal", "hangs", "lost", "last"):
    if name in (open(journal).read().split() if os.path.exists(journal) else ()):
        continue
    open(journal, "a").write(name + "\\n")
    if name == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        time.sleep(100)
    if name == "lost":
        sys.exit(75)
    open(out, "a").write(name + " ")
"""


def test_what_dies_costs_its_own_row(tmp_path, monkeypatch, capfd):
    """A process that is killed, one that hangs, and one whose device is lost: the next goes on behind that."""
    monkeypatch.syspath_prepend(str(PERF))
    import supervised

    journal, out = tmp_path / "begun", tmp_path / "out"
    command = [sys.executable, "-I", "-c", DYING, str(journal), str(out)]
    assert supervised.supervise(command, journal, time.monotonic() + 1000, patience=1.0) == 1
    assert out.read_text().split() == ["first", "last"]
    told = capfd.readouterr().err
    assert "signal ended the process: signal 9" in told and "lost ended the process: the device is lost" in told
    assert "hangs ended the process: it took 1 s" in told
    nothing = [sys.executable, "-I", "-c", "raise SystemExit(9)"]
    assert supervised.supervise(nothing, tmp_path / "none", time.monotonic() + 1000, patience=1.0) == 1


SUPERVISING = """
import sys, time
from pathlib import Path
place, directory, *command = sys.argv[1:]
sys.path.insert(0, directory)
import supervised
supervised.supervise([sys.executable, "-I", "-c", *command], Path(place), time.monotonic() + 100, 100.0)
"""


def test_who_is_ended_ends_what_it_began(tmp_path):
    """Else it would measure on beside the next run."""
    began = tmp_path / "began"
    child = f"import os, time; open({str(began)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-I", "-c", SUPERVISING, str(tmp_path / "journal"), str(PERF), child])
    while not (began.exists() and began.read_text()):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    end = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(int(began.read_text()), 0)
            time.sleep(0.02)


def test_a_device_that_is_lost_ends_the_process(gpu, tmp_path, monkeypatch):
    """And the one that is begun then leaves out what was begun."""
    journal = tmp_path / "begun"

    def gone(*_):
        raise RuntimeError("an illegal memory access was encountered")

    part = list(gpu.models())
    monkeypatch.setitem(gpu.PARTS, "models", lambda: [dataclasses.replace(part[0], run=gone), part[1]])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(gpu, "synchronize", gone)
        gpu.run(["models"], gpu.Measure(0.0, time.monotonic() + 1000, (), journal), tmp_path / "gpu.csv")
    assert left.value.code == 75 and not (tmp_path / "gpu.csv").exists()
    assert json.loads(journal.read_text()) == list(part[0].key)
    assert gpu.run(["models"], gpu.Measure(0.0, time.monotonic() + 1000, (), journal), tmp_path / "gpu.csv") == 0
    assert [row["shapes"] for row in rows(tmp_path / "gpu.csv")] == [part[1].shapes]


def test_the_order(gpu):
    """What a run that is cut short must answer comes first; what compiles for minutes comes last."""
    assert list(gpu.PARTS)[:3] == ["bandwidth", "models", "small"] and list(gpu.PARTS)[-1] == "compile"


def test_a_step_is_timed_behind_a_pause(monkeypatch):
    """Between two events there is nothing but steps, and before them a pause as long as the host takes for them."""
    monkeypatch.syspath_prepend(str(PERF))
    import gpu

    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("event")

        def synchronize(self):
            happened.append("wait")

        def elapsed_time(self, other):
            return 10.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append(cycles))
    assert gpu.device_ms(lambda: happened.append("step") or time.sleep(0.001)) == 10.0 / gpu.STEPS
    pause = happened.pop(1 + gpu.STEPS)
    assert pause > 0.005 * gpu.CYCLES
    assert happened == ["wait", *["step"] * gpu.STEPS, "event", *["step"] * gpu.STEPS, "event", "wait"]
    sys.modules.pop("gpu")


def test_the_page_shows_the_rows(gpu, tmp_path, monkeypatch):
    import common
    import report

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert "Not measured so far" in report.gpu()
    gpu.run(["bandwidth"], gpu.Measure(0.0, time.monotonic() + 1000), tmp_path / "gpu.csv")
    assert "of a copy's bandwidth" in report.gpu()


def test_a_run_goes_on_where_the_last_one_stopped(gpu, tmp_path):
    """Rows of the same commit and device are not measured again; those of others are."""
    path = tmp_path / "gpu.csv"
    parts = ["bandwidth", "small"]
    assert gpu.run(parts, gpu.Measure(0.0, time.monotonic() + 1000), path) == 0
    first = rows(path)
    assert gpu.run(parts, gpu.Measure(0.0, time.monotonic() + 1000, first[:4]), path) == 0
    later = rows(path)[len(first) :]
    assert [[row[name] for name in gpu.KEY] for row in later] == [[row[name] for name in gpu.KEY] for row in first[4:]]
    others = [{**row, "commit": "another"} for row in first]
    assert gpu.run(["bandwidth"], gpu.Measure(0.0, time.monotonic() + 1000, others), path) == 0
    assert len(rows(path)) == len(first) + len(later) + 6


@pytest.mark.slow
def test_every_part_runs(gpu, monkeypatch, capsys):
    """As far as it goes on the host: no name is missing, and what is not installed is passed over."""
    monkeypatch.setattr(gpu, "in_a_process", lambda *_: 1.0)
    known = {one.name: one for one in one_per_kind(lambda one: one.rule.dense)}
    needed = {name: gpu.CATALOG[name] for name in ("AdamW", gpu.WITHOUT_FUSED[0])}
    monkeypatch.setattr(gpu, "CATALOG", known | needed)
    monkeypatch.setattr(gpu, "MENU", {})
    monkeypatch.setattr(gpu, "WITHOUT_FUSED", gpu.WITHOUT_FUSED[:1])
    monkeypatch.setattr(gpu, "STACKS", [(2, 8, 16)])
    monkeypatch.setattr(gpu.symmetric.Product, "write", lambda self, *given: gpu.symmetric.by_cublas(*given))
    monkeypatch.setattr(gpu.tuning, "elapsed", lambda run, device: gpu.device_ms(run))
    parts = [name for name in gpu.PARTS if name not in ("host", "replay", "compile")]
    failed = gpu.run(parts, gpu.Measure(0.0, time.monotonic() + 1000), None)
    told = capsys.readouterr()
    assert failed == 0, told.err
    assert all(": ModuleNotFoundError: " in line for line in told.err.splitlines()), told.err
    assert {line.split()[0] for line in told.out.splitlines()} == set(parts)


def test_the_tests_of_gpus_are_found_without_expecttest():
    """And without importing the others: of 12 workers each would, before the first of them runs. That they know every option,
    which no test without a GPU would tell."""
    code = "import sys, pytest; sys.modules['expecttest'] = None; code = pytest.main(sys.argv[1:]); "
    code += "sys.exit(10 * ('test_optimizer' in sys.modules) + code)"
    command = [sys.executable, "-c", code, "-m", "gpu", "-v", "-p", "no:cacheprovider"]
    command += ["-k", "test_every_option_is_tried or test_parameters_on_cpu_and_gpu_in_one_optimizer"]
    given = {**os.environ, "TRITON_INTERPRET": "1", "COMPILEDOPT_TRITON_ON_CPU": "1"}
    done = subprocess.run(command, cwd=PERF.parent, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/test_gpu.py" in done.stdout and "tests/test_gpu_parts.py" in done.stdout


def test_defaults_come_from_the_rows_of_occupancy():
    """No other candidate that spills nothing has a sixth more of one, and as many of the other."""
    from compiledopt.backends.triton import tuning

    known = {}
    for row in rows(PERF / "results" / "occupancy.csv"):
        config, held = (int(row["block"]), int(row["warps"])), (int(row["elements_held"]), int(row["warps_held"]))
        known.setdefault((row["kind"], row["arch"]), {})[config] = held, int(row["spills"])
    assert {arch for _, arch in known} >= {"sm_90"} and len(known) >= 6
    tables = {"float32": tuning.CANDIDATES, "bfloat16": tuning.HALF, "bfloat16, split": tuning.CANDIDATES}
    for (kind, arch), found in known.items():
        (default, *others) = tables.get(kind, tuning.BLOCKED)
        (elements, warps), spilled = found[default]
        assert spilled == 0, (kind, arch)
        for other in others:
            (more, wider), spills = found[other]
            dominates = more >= elements and wider >= warps and 6 * max(more / elements, wider / warps) >= 7
            assert spills or not dominates, f"{kind} on {arch}: {other} holds more than {default}"
