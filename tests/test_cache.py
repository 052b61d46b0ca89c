"""The disk cache: a warm start compiles nothing; on its bad days training works all the same."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from catalog import CATALOG, MENU

import compiledopt
from compiledopt.backends import cache
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp import processes
from compiledopt.rules.rule import rule
from compiledopt.rules.traced import traced
from compiledopt.stats import STATS

STEP = """
    import sys, json, torch, compiledopt
    params = [torch.nn.Parameter(torch.ones(10)) for _ in range(3)]
    for p in params: p.grad = torch.ones(10)
    optimizer = compiledopt.AdamW(params, compiled=True)
    optimizer.step()
    names = ("graph", "codecache", "scheduler")
    modules = [name for name in names if f"torch._inductor.{name}" in sys.modules]
    print(json.dumps({"value": params[0][0].item(), "modules": modules, **compiledopt.compile_stats()}))
"""


def start(directory, code=STEP, **environment):
    """What a process says of itself that does one step. It is silent besides, with every warning an error, to its very end."""
    env = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    env.setdefault("PYTHONWARNINGS", "error")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache after a cold start, and what that start said."""
    directory = tmp_path_factory.mktemp("filled")
    return directory, start(directory)


@pytest.mark.processes
def test_warm_start_runs_no_compiler_and_imports_no_inductor(filled):
    directory, cold = filled
    assert cold["kernels_compiled"] == 1 and cold["launchers_compiled"] == 1 and cold["kernels_lowered"] == 1
    # No process can be started, once torch is there, whose builds for CUDA ask ldconfig where libraries are.
    guarded = STEP.replace("import sys,", "import subprocess, torch; subprocess.run = subprocess.Popen = None; import sys,")
    warm = start(directory, guarded)
    assert warm["disk_hits"] == 1 and warm["kernels_lowered"] == warm["kernels_compiled"] == warm["launchers_compiled"] == 0
    # torch's own Optimizer imports the package torch._inductor, through Dynamo; the compiler in it is another matter.
    assert cold["modules"] and not warm["modules"]
    assert warm["value"] == cold["value"]


SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in ("truncated", "empty", "garbage")]


@pytest.mark.processes
@pytest.mark.parametrize("damage", ["flipped", *SLOW])
def test_damaged_entries_are_compiled_again(filled, tmp_path, damage):
    cold = filled[1]
    shutil.copytree(filled[0], tmp_path, dirs_exist_ok=True)
    entries = list(tmp_path.glob("*.so"))
    assert len(entries) == 2
    for path in entries:
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        elif damage == "flipped":
            content[len(content) // 2] ^= 0xFF
        elif damage == "empty":
            content = bytearray()
        else:
            content = bytearray(b"garbage\n" * 100)
        path.write_bytes(content)
    again = start(tmp_path)
    assert again["kernels_compiled"] == 1 and again["launchers_compiled"] == 1 and again["value"] == cold["value"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in entries}
    assert sorted(map(mended, tmp_path.iterdir())) == [True, True]


def mended(path):
    checksum, _, content = path.read_bytes().partition(b"\n")
    return checksum == cache._checksum(content)


@pytest.fixture
def launched():
    """The launcher is there: it is built in a thread, which nothing must take its directory away from."""
    cpp.launcher()


@rule()
def unwritten_rule(param, grad):
    return param - 0.046875 * grad


@pytest.mark.usefixtures("launched")
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    for nowhere, dtype in ((file / "cache", torch.float32), ("/proc/compiledopt", torch.float64)):
        monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(nowhere))
        assert not cache.store("entry", b"content") and cache.load("entry") is None
        compiled = STATS.kernels_compiled
        assert cpp.kernel(traced(unwritten_rule, {}).program, [dtype] * 2).address and STATS.kernels_compiled == compiled + 1


@pytest.mark.processes
def test_processes_that_start_together_compile_once(tmp_path):
    env = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(STEP)]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    for counted in ("kernels_lowered", "kernels_compiled", "launchers_compiled"):
        assert sum(one[counted] for one in said) == 1, counted
    assert sorted(one["disk_hits"] for one in said) == [0, 1]
    assert not list(tmp_path.glob(".*")), "temporary files were left"


def no_locks(patch, directory):
    """As NFS without its lock service."""
    patch.setattr(fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))


def nowhere_to_write(patch, directory):
    patch.setenv("COMPILEDOPT_CACHE_DIR", "/proc/compiledopt")


def held_for_ever(patch, directory):
    patch.setattr(cache, "PATIENCE", 0.2)
    holder = open(directory / ".entry.lock", "w")  # noqa: SIM115 - held until the test ends
    fcntl.flock(holder, fcntl.LOCK_EX)
    return holder


def test_another_release_has_kernels_of_its_own(monkeypatch):
    """What makes them of a program may have changed with it."""
    before = cache.key("kernel", "text")
    monkeypatch.setattr(cache, "VERSION", "another")
    assert cache.key("kernel", "text") != before


@pytest.mark.parametrize("way", [no_locks, nowhere_to_write, held_for_ever])
def test_a_lock_that_cannot_be_had_holds_nobody_up(monkeypatch, tmp_path, way):
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    kept = way(monkeypatch, tmp_path)
    with cache.making("entry"):
        pass
    with pytest.raises(ZeroDivisionError), cache.making("entry"):
        raise ZeroDivisionError
    del kept


def test_a_lock_left_by_a_process_that_died(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: pytest.fail("waited for nobody"))
    (tmp_path / ".entry.lock").touch()
    with cache.making("entry"):
        assert (tmp_path / ".entry.lock").exists()
    assert not (tmp_path / ".entry.lock").exists()


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """A cache with one entry."""
    directory = tmp_path / "new" / "cache"
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(directory))
    assert cache.store("entry", b"content") and cache.load("entry") == b"content"
    return directory


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b + b"x"]
)
def test_a_damaged_entry_is_none(entry, damage):
    """Loading half a library kills the process."""
    path = entry / "entry"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load("entry") is None
    assert cache.store("entry", b"content") and cache.load("entry") == b"content"


def test_directories_that_are_made_are_their_owners_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        assert cache.store("entry", b"content")
        made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "entry", cache.scratch("x").parent]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o077 for path in made] == [0] * 4


def belongs_to_another(patch, directory):
    owner = directory.stat().st_uid
    patch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(directory, 12345, 12345)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, None], ids=lambda mode: oct(mode) if mode else "another's")
def test_a_directory_that_others_may_write_to_is_not_trusted(monkeypatch, entry, mode):
    if mode is None:
        belongs_to_another(monkeypatch, entry)
    else:
        entry.chmod(mode)
    with pytest.warns(UserWarning, match="does not use its cache .* because (others may write|it belongs)") as said:
        assert cache.load("entry") is None
    assert len(said) == 1 and said[0].filename == __file__
    assert not cache.store("entry", b"other") and not cache.store("more", b"content")  # and nothing is said twice
    assert [path.name for path in entry.iterdir()] == ["entry"]


def test_the_first_optimizer_is_where_that_is_said(monkeypatch, entry):
    """Not the thread that builds the launcher."""
    monkeypatch.setattr(cpp, "_launcher", None)
    monkeypatch.setattr(cpp, "_make_launcher", lambda: cache.load("entry"))
    entry.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write") as said:
        compiledopt.SGD([torch.nn.Parameter(torch.ones(3))])
    assert cpp._launcher.result() is None  # and the thread says nothing
    assert len(said) == 1 and said[0].filename == __file__


def test_links_are_what_they_point_to(monkeypatch, entry, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(entry)
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(link))
    assert cache.load("entry") == b"content"
    entry.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write"):
        assert cache.load("entry") is None


def test_an_entry_that_others_may_write_to_is_not_loaded(entry):
    (entry / "entry").chmod(0o666)
    assert cache.load("entry") is None
    assert cache.store("entry", b"content") and cache.load("entry") == b"content"


@pytest.mark.usefixtures("launched")
def test_a_directory_for_temporary_files_that_somebody_else_made(monkeypatch):
    """A cleaner removed ours, and the name is in use again."""
    own = cache.scratch("x").parent
    shutil.rmtree(own)
    own.mkdir()
    own.chmod(0o777)
    assert cache.scratch("x").parent != own
    shutil.rmtree(own)


def test_nothing_is_left_behind(tmp_path):
    """By a process, and by one that it forked through multiprocessing."""
    code = """
        import multiprocessing
        from compiledopt.backends import cache

        def use():
            cache.scratch("x").write_text("")
            assert list(cache.scratch("x").parent.iterdir())

        use()
        child = multiprocessing.get_context("fork").Process(target=use)
        child.start(); child.join()
        print(child.exitcode)
    """
    assert start(tmp_path / "cache", code, TMPDIR=str(tmp_path)) == 0
    assert not list(tmp_path.glob("compiledopt-*"))


@pytest.mark.processes
def test_compilers_end_with_their_process(tmp_path):
    """With all that they started, where an optimizer was made, and its process ends before they do."""
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\nsleep 600 & echo $! $$ > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/pids; wait\n")
    compiler.chmod(0o755)
    code = f"""
        import pathlib, time, torch, compiledopt
        compiledopt.SGD([torch.nn.Parameter(torch.ones(3))])
        while not pathlib.Path("{tmp_path}/pids").exists():
            time.sleep(0.01)
        print(1)
    """
    (tmp_path / "tmp").mkdir()
    assert start(tmp_path / "cache", code, CXX=str(compiler), TMPDIR=str(tmp_path / "tmp")) == 1
    for pid in (tmp_path / "pids").read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not list((tmp_path / "tmp").glob("compiledopt-*")) and not list((tmp_path / "cache").glob("*.so"))


def test_the_launcher_is_begun_when_an_optimizer_is_made(monkeypatch):
    """That asks for kernels, whatever the device is: plans for all of them gather by it."""
    begun, declined = [], ({"foreach": True}, {"foreach": False}, {"compiled": False}, {"differentiable": True})
    monkeypatch.setattr(cpp, "launcher_soon", lambda: begun.append(1))
    for one in (*CATALOG.values(), *MENU.values()):
        wanted = one.rule is not None and one.rule.dense and one.rule.elementwise
        assert wanted or not one.elementwise
        for options in [{}, *(options for options in declined if one.takes(*options))]:
            begun.clear()
            one.ours([torch.nn.Parameter(torch.ones(3, 3))], **{**one.promised, **options})
            assert len(begun) == (wanted and not options), (one.name, options)


def test_a_lock_is_let_go_though_a_fork_has_its_file_open(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    opened = []
    monkeypatch.setattr(cache, "_locked", lambda path, own=cache._locked: opened.append(own(path)) or os.dup(opened[0]))
    with cache.making("entry"), open(tmp_path / ".entry.lock") as other:
        kept = os.dup(other.fileno())  # as one that waits has
    fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(kept), os.close(opened[0])


def test_a_fork_while_the_launcher_is_built(monkeypatch):
    """The child has no thread that would ever finish it."""
    from concurrent.futures import Future

    monkeypatch.setattr(cpp, "_launcher", Future())
    compiler = subprocess.Popen(["sleep", "60"], start_new_session=True)
    monkeypatch.setattr(processes, "_running", {compiler})
    cpp._lock.acquire()
    child = os.fork()
    if child == 0:
        processes._end_all()
        os._exit(0 if cpp._launcher is None and not processes._running and cpp._lock.acquire(timeout=5) else 1)
    cpp._lock.release()
    assert os.waitpid(child, 0)[1] == 0 and cpp._launcher is not None and compiler.poll() is None
    processes._end_all()
    assert compiler.returncode < 0


def test_the_key_knows_what_matters(monkeypatch, tmp_path):
    compilers = []
    for size in (1, 2):
        compiler = tmp_path / f"g++{size}"
        compiler.write_bytes(b"x" * size)
        compiler.chmod(0o755)
        compilers.append(str(compiler))
    keys = {cache.key("cpu", "a"), cache.key("cpu", "b"), cache.key("launcher", "a")}
    monkeypatch.setattr(cache.torch, "__version__", "2.99")
    keys.add(cache.key("cpu", "a"))
    for path in compilers:
        monkeypatch.setenv("CXX", path)
        keys.add(cache.key("cpu", "a"))
    monkeypatch.setattr(cache, "processor", lambda: "another")
    keys.add(cache.key("cpu", "a"))
    assert len(keys) == 7


@pytest.mark.usefixtures("launched")
def test_temporary_files_that_were_cleaned_away(monkeypatch, tmp_path):
    """A kernel compiled after a cleaner has removed the process's temporary directory."""

    @rule()
    def fresh_rule(param, grad):
        return param - 0.03125 * grad

    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    shutil.rmtree(cache.scratch("x").parent)
    assert cpp.kernel(traced(fresh_rule, {}).program, [torch.float32] * 2).address


def test_directory(monkeypatch):
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", "/somewhere")
    assert cache.cache_dir() == Path("/somewhere")
    monkeypatch.delenv("COMPILEDOPT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache.cache_dir() == Path("/xdg/compiledopt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "compiledopt"
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert cache.cache_dir() == Path.home() / "Library" / "Caches" / "compiledopt"
