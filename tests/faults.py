"""Do the tests notice faults? Puts each fault of fault_list.py into a copy of the tree, alone, and runs the tests that should
fail then. They are a part of the default run, so what they notice, it notices.

    python tests/faults.py [--only PATTERN] [--room rules] [--list]

Exit status: 0 where at least 90% are noticed, 1 where fewer are, 2 where a text is not there exactly once, a test is gone,
or the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LEAST = 0.9  # of the faults, that must be noticed
PATIENCE = 240  # seconds for the tests of one fault; longer ones hang
FAILED, NONE_COLLECTED, NO_SUCH_TEST = 1, 5, 4  # exit statuses of pytest
# What these files do to a kernel is not in its key: a fault there must not find kernels made without it, nor leave any.
MAKERS = ("inductor.py", "kernels.py", "sources.py", "cache.py", "program.py", "ops.py", "reductions.py", "trace.py")
BUILD = "from compiledopt.backends.cpp import kernels; kernels.launcher(); kernels.passes_driver()"


class Server:
    """A process that has imported what takes long, and forks one for each run of tests."""

    def __init__(self, tree: Path, interpreted: bool) -> None:
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = str(tree)
        if interpreted:
            environment |= {"TRITON_INTERPRET": "1", "COMPILEDOPT_TRITON_ON_CPU": "1"}
        command = [sys.executable, str(HERE / "faults.py"), "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=tree, **pipes)  # type: ignore[call-overload]

    def ask(self, **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Answer requests of lines of JSON, each in a process of its own; its output goes into a file."""
    import pytest  # noqa: F401
    import torch._inductor.graph  # noqa: F401

    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]  # the copy's tests are meant
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _answer(request)
        deadline, status = time.monotonic() + PATIENCE, 0
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):  # what it left running
            os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(done[1])
        print(json.dumps({"status": status, "said": Path(request["log"]).read_text(errors="replace")[-3000:]}), flush=True)


def _answer(request: dict[str, Any]) -> None:
    """In the forked process: run tests, or Python; never returns."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["COMPILEDOPT_TESTS_CACHE_DIR"] = os.environ["COMPILEDOPT_CACHE_DIR"] = request["cache"]
    status = 3
    try:
        if "code" in request:
            exec(request["code"], {})
            status = 0
        else:
            import pytest

            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "", "--tb=line", *request["tests"]]))
    finally:
        os.sys.stdout.flush()  # type: ignore[attr-defined]
        os._exit(status)


class Bench:
    """A copy of the tree, a cache, and the servers that run its tests."""

    def __init__(self, place: Path) -> None:
        self.place, self.tree = place, place / "tree"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "results", ".*_cache")
        shutil.copytree(HERE.parent, self.tree, ignore=ignored)
        self.servers: dict[bool, Server] = {}
        # Kept from one call of this script to the next; what is in it is known by its source and by its programs.
        self.cache = Path(tempfile.gettempdir()) / f"compiledopt-faults-{os.getuid()}"
        self.seed = self.cache.with_name(self.cache.name + "-seed")
        for folder in (self.cache, self.seed):
            folder.mkdir(mode=0o700, exist_ok=True)

    def ask(self, interpreted: bool, **request: Any) -> dict[str, Any]:
        if interpreted not in self.servers:
            self.servers[interpreted] = Server(self.tree, interpreted)
        return self.servers[interpreted].ask(log=str(self.place / "log"), **request)

    def prepare(self) -> None:
        """Build the launcher and the driver of passes once, for caches that begin empty."""
        said = self.ask(False, code=BUILD, cache=str(self.seed))
        if said["status"]:
            raise ValueError(f"nothing can be compiled here: {said['said']}")

    def run(self, tests: Sequence[str], own_cache: bool) -> tuple[int, str]:
        """The first status that is not 0, and what was said."""
        cache = self.cache
        if own_cache:
            cache = self.place / "cache"
            shutil.copytree(self.seed, cache)
        try:
            for interpreted in (False, True):
                mine = [f"tests/{test}" for test in tests if test.startswith("interpreted") is interpreted]
                if mine:
                    found = self.ask(interpreted, tests=mine, cache=str(cache))
                    if found["status"]:
                        return found["status"], found["said"]
            return 0, ""
        finally:
            if own_cache:
                shutil.rmtree(cache, ignore_errors=True)

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


def place_of(tree: Path, fault: Any) -> Path:
    """The file that holds a fault's text. Raises: ValueError where it is not there exactly once."""
    found = [(path, path.read_text().count(fault.find)) for path in sorted((tree / "compiledopt").rglob(fault.file))]
    holding = [(path, count) for path, count in found if count]
    if [count for _, count in holding] != [1]:
        where = ", ".join(f"{count} times in {path.name}" for path, count in holding) or "nowhere"
        raise ValueError(f"{fault.name}: {fault.find!r} is found {where} in {fault.file}")
    return holding[0][0]


def tried(bench: Bench, fault: Any) -> tuple[bool, str]:
    """Whether the tests notice a fault, and which one did."""
    path = place_of(bench.tree, fault)
    before = path.read_text()
    path.write_text(before.replace(fault.find, fault.put))
    try:
        status, said = bench.run(fault.tests, path.name in MAKERS)
    finally:
        path.write_text(before)
    if status in (NONE_COLLECTED, NO_SUCH_TEST):
        raise ValueError(f"{fault.name}: no such tests, {fault.tests}\n{said}")
    failed = re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", said, re.MULTILINE)
    return status != 0, (failed[-1] if failed else f"status {status}") if status else ""


def share(found: dict[str, bool]) -> None:
    """Print how many were noticed, by room."""
    rooms = dict.fromkeys(name.split(":")[0] for name in found)
    for room in rooms:
        mine = [noticed for name, noticed in found.items() if name.split(":")[0] == room]
        print(f"{room:16} {sum(mine):3} of {len(mine):3}")
    print(f"{'all':16} {sum(found.values()):3} of {len(found):3}: {sum(found.values()) / len(found):.0%}")


def chosen(only: str | None, room: str | None) -> list[Any]:
    from fault_list import FAULTS

    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names), "two faults have one name"
    return [
        fault
        for fault in FAULTS
        if (room is None or fault.name.split(":")[0] == room) and (only is None or re.search(only, fault.name))
    ]


def measure(bench: Bench, faults: Sequence[Any]) -> dict[str, bool]:
    bench.prepare()
    every = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    start = time.monotonic()
    status, said = bench.run(every, own_cache=False)
    if status:
        raise ValueError(f"the tests fail without any fault: status {status}\n{said}")
    print(f"{len(every)} tests pass without a fault, {time.monotonic() - start:.0f} s", flush=True)
    found = {}
    for number, fault in enumerate(faults, 1):
        start = time.monotonic()
        found[fault.name], who = tried(bench, fault)
        word = "noticed" if found[fault.name] else "NOT NOTICED"
        print(f"[{number}/{len(faults)}] {time.monotonic() - start:5.1f} s  {word:11}  {fault.name}  {who}", flush=True)
    return found


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression that a fault's name contains")
    parser.add_argument("--room", help="the faults of one room")
    parser.add_argument("--list", action="store_true", help="names, and whether the texts are there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve()
        return 0
    sys.path.insert(0, str(HERE))
    faults = chosen(given.only, given.room)
    wrong = []
    for fault in faults:
        try:
            path = place_of(HERE.parent, fault)
        except ValueError as error:
            wrong.append(str(error))
            continue
        if given.list:
            print(f"{fault.name:70} {path.relative_to(HERE.parent)}")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    if wrong or not faults:
        return 2
    if given.list:
        return 0
    with tempfile.TemporaryDirectory(prefix="compiledopt-faults-tree-") as place:
        bench = Bench(Path(place))
        try:
            found = measure(bench, faults)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            bench.close()
    share(found)
    return 0 if sum(found.values()) >= LEAST * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
