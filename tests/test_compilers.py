"""A first step, from an empty cache, with each C++ compiler that is here and no other."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from compiledopt.backends import cache

STEPS = """
    import json, pathlib, torch, compiledopt

    def train(optimizer, threads):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3,), (600, 900), (1000,))]
        stepper = optimizer(params)
        for _ in range(3):
            for param in params: param.grad = torch.randn_like(param)
            stepper.step()
        return torch.cat([param.detach().flatten() for param in params])

    ours = {
        "AdamW": lambda params: compiledopt.AdamW(params, compiled=True, max_grad_norm=1e9),  # measured, never clipped
        "Adafactor": lambda params: compiledopt.Adafactor(params, compiled=True),
    }
    maps = pathlib.Path("/proc/self/maps")
    one = {name: train(make, 1) for name, make in ours.items()}
    print(json.dumps({
        "same with two threads": all(torch.equal(one[name], train(make, 2)) for name, make in ours.items()),
        "error": [(one[name] - train(getattr(torch.optim, name), 1)).abs().max().item() for name in ours],
        "runtimes": list({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line or "omp.so" in line}),
        **compiledopt.compile_stats(),
    }))
"""


def alone(name, folder):
    """What finds this compiler and none besides."""
    (folder / "bin").mkdir()
    if name == "ziglang":
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("ziglang is not installed: pip install '.[compiler]'")
        return {"PATH": str(folder / "bin")}
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return {"CXX": path}


@pytest.mark.slow  # .ci/run installs ziglang and runs these by themselves
@pytest.mark.parametrize("name", ["g++", "clang++", "ziglang"])
def test_a_first_step_with_this_compiler_alone(name, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "CXX"} | alone(name, tmp_path)
    env |= {"COMPILEDOPT_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, cwd=tmp_path / "work")
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["launchers_compiled"] == 1 and said["kernels_compiled"] >= 5 and said["fallbacks"] == 0
    assert said["same with two threads"] and max(said["error"]) < 1e-5
    assert len(said["runtimes"]) == 1, "a second OpenMP runtime competes with torch's threads"
    assert all(path.suffix == ".so" for path in (tmp_path / "cache").iterdir())
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(("torchinductor", "home"))}
    assert left == {"bin", "cache", "work"} and not list((tmp_path / "work").iterdir())


def test_which_compiler(monkeypatch, tmp_path):
    def program(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    assert not cache.is_gnu()
    zig = program(tmp_path / "site" / "ziglang" / "zig")
    (tmp_path / "site" / "ziglang" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert cache.compiler() == [zig, "c++"]
    clang = program(tmp_path / "bin" / "clang++")
    assert cache.compiler() == [clang] and not cache.is_gnu()
    gcc = program(tmp_path / "bin" / "g++")
    assert cache.compiler() == [gcc] and cache.is_gnu()
    (tmp_path / "bin" / "g++").unlink()
    (tmp_path / "bin" / "g++").symlink_to(clang)
    assert cache.compiler() == [gcc] and not cache.is_gnu()
    (tmp_path / "bin" / "g++").unlink()
    (tmp_path / "bin" / "g++").symlink_to(program(tmp_path / "lib" / "x86_64-linux-gnu-g++-12"))
    assert cache.compiler() == [gcc] and cache.is_gnu()
    ccache, spaced = program(tmp_path / "bin" / "ccache"), program(tmp_path / "with space" / "g++")
    for chosen, command in ((spaced, [spaced]), ("ccache g++ -m64", [ccache, "g++", "-m64"]), ("nonsense", None), ("'", None)):
        monkeypatch.setenv("CXX", chosen)
        assert cache.compiler() == command
