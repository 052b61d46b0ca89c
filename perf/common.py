"""Rows with what is needed to read them: hardware, versions, commit."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit, and "-dirty" where the code is not the one committed; the rows themselves do not count. COMPILEDOPT_COMMIT,
    where it is set, says it for a copy of the files, on a machine without git."""
    if (given := os.environ.get("COMPILEDOPT_COMMIT")) is not None:
        return given

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    changed = git("status", "--porcelain", "--", "compiledopt", "perf/*.py")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("-dirty" if changed else "")


def circumstances() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def append(file: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to perf/results/<file>, or to a file given by its whole path, with a header if it is new."""
    rows = list(rows)
    path = RESULTS / file
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(file: str) -> list[dict[str, str]]:
    path = RESULTS / file
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))
