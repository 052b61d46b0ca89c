"""The disk cache: a warm start compiles nothing; on its bad days training works all the same."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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
    env = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_warm_start_runs_no_compiler_and_imports_no_inductor(tmp_path):
    cold = start(tmp_path)
    assert cold["kernels_compiled"] == 1 and cold["launchers_compiled"] == 1 and cold["kernels_lowered"] == 1
    # No process can be started.
    guarded = STEP.replace("import sys,", "import subprocess; subprocess.run = subprocess.Popen = None; import sys,")
    warm = start(tmp_path, guarded)
    assert warm["disk_hits"] == 1 and warm["kernels_lowered"] == warm["kernels_compiled"] == warm["launchers_compiled"] == 0
    # torch's own Optimizer imports the package torch._inductor, through Dynamo; the compiler in it is another matter.
    assert cold["modules"] and not warm["modules"]
    assert warm["value"] == cold["value"]


SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in ("truncated", "empty", "garbage")]


@pytest.mark.parametrize("damage", ["flipped", *SLOW])
def test_damaged_entries_are_compiled_again(tmp_path, damage):
    cold = start(tmp_path)
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
    assert start(tmp_path)["disk_hits"] == 1


def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    assert start(file / "cache")["kernels_compiled"] == 1
    assert start("/proc/compiledopt")["kernels_compiled"] == 1


def test_two_processes_at_once(tmp_path):
    env = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = textwrap.dedent(STEP)
    running = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    assert start(tmp_path)["disk_hits"] == 1
    assert not list(tmp_path.glob(".*")), "temporary files were left"


def test_the_key_knows_what_matters(monkeypatch, tmp_path):
    from compiledopt.compiler import cache

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


def test_temporary_files_that_were_cleaned_away(monkeypatch, tmp_path):
    """A kernel compiled after a cleaner has removed the process's temporary directory."""
    import shutil

    import torch

    from compiledopt.compiler import cache, cpp
    from compiledopt.compiler.programs import traced
    from compiledopt.compiler.rule import rule

    @rule()
    def fresh_rule(param, grad):
        return param - 0.03125 * grad

    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    shutil.rmtree(cache.scratch("x").parent)
    assert cpp.kernel(traced(fresh_rule, {}).program, [torch.float32] * 2).address


def test_directory(monkeypatch):
    from compiledopt.compiler import cache

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
