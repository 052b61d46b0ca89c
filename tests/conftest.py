import collections
import math
import os
import tempfile
import time

# Before compiledopt is imported: no test reads or fills the user's cache. Kernels are shared within one run, its workers'
# and its subprocesses' too.
# tests/faults.py names a directory that many runs share.
_directory = tempfile.TemporaryDirectory(prefix="compiledopt-tests-")
_shared = os.environ.setdefault("COMPILEDOPT_TESTS_CACHE_DIR", _directory.name)
os.environ["COMPILEDOPT_CACHE_DIR"] = _shared
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: threads that wait must not take the others' cores
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest  # noqa: E402
import torch  # noqa: E402

WORKERS = 2  # each has threads of its own besides; more than the run's two cores gain nothing
REPORTED = 60  # seconds of a run from which on it says where they went
NO_TIME = "no time is left of --minutes"
BEGUN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, default=math.inf, help="what has not begun by then is skipped, and counted")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.monotonic() - BEGUN > 60 * item.config.option.minutes:
        pytest.skip(NO_TIME)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole run has two workers, where pytest-xdist is there and nobody said how many; a part of it has none."""
    if hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker, which has none of its own
    option = config.option
    asked = option.file_or_dir or option.collectonly or option.usepdb or option.keyword or option.capture == "no"
    asked = asked or "gpu" in option.markexpr  # which is one, and has memory for one
    if getattr(option, "numprocesses", 0) is None and not asked and (os.cpu_count() or 1) >= WORKERS:
        option.numprocesses = WORKERS


def pytest_ignore_collect(collection_path, config):
    """`-m gpu` is few files: the others would be imported in vain by each of its workers, and some need what a machine with a
    GPU may lack (expecttest)."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if config.option.markexpr == "gpu" and is_test and "pytest.mark.gpu" not in collection_path.read_text():
        return True
    return None


def pytest_collection_modifyitems(items):
    """What starts processes comes first, so that no worker is left with half a minute of it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


def pytest_terminal_summary(terminalreporter):
    """Which files took the time, all their tests together: the run has six minutes on two cores (CONTRIBUTING.md); and how many
    tests had none left."""
    if late := [report for report in terminalreporter.stats.get("skipped", ()) if NO_TIME in str(report.longrepr)]:
        terminalreporter.section(f"{len(late)} tests did not run: {NO_TIME}")
    seconds = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[report.nodeid.split("::")[0]] += report.duration
    if seconds.total() >= REPORTED:
        terminalreporter.section("seconds by file")
        for file, taken in seconds.most_common(12):
            terminalreporter.write_line(f"{taken:6.1f} {file}")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def proved(request, monkeypatch):
    """In Triton's interpreter, by default, kernels prove themselves in the tests of that alone; the others compare them with
    the for-loop anyway. In the slow run every kernel does."""
    hurried = os.environ.get("TRITON_INTERPRET") == "1" and request.config.option.markexpr == "not slow"
    if hurried and "prove" not in request.node.name:
        from compiledopt.backends.triton import norm, passes_ready, proof

        for module in (norm, passes_ready, proof):
            monkeypatch.setattr(module, "remembered", lambda of, device, find: None)
