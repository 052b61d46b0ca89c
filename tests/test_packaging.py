"""What is built installs and runs elsewhere, and the version is said once."""

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

import compiledopt

ROOT = Path(__file__).parent.parent
if not (ROOT / "pyproject.toml").exists():
    pytest.skip("the tests run without the repository around them", allow_module_level=True)
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
STEP = """
import json, torch, compiledopt
params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
for param in params:
    param.grad = torch.ones(3)
optimizer = compiledopt.AdamW(params, lr=0.1)
optimizer.step()
assert all((param < 1).all() for param in params)
print(json.dumps([compiledopt.__file__, compiledopt.__version__, optimizer.executor]))
"""


def run(*command, **more):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_version_is_said_once():
    assert compiledopt.__version__ in (VERSION, "0+checkout")
    sources = [path for path in Path(compiledopt.__file__).parent.rglob("*.py") if f'"{VERSION}"' in path.read_text()]
    assert not sources
    assert f"[{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist) of a copy of the repository: building leaves files beside the sources. The wheel is made of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".venv")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", program, folder, cwd=folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return wheel, sdist


@pytest.mark.slow
def test_the_wheel_has_the_package_alone(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert built[0].name.startswith(f"compiledopt-{VERSION}-")
    package = Path(compiledopt.__file__).parent
    kept = [path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h", ".typed") or path.name == "py.typed"]
    assert {str(path.relative_to(package.parent)) for path in kept} == {n for n in names if ".dist-info/" not in n}


@pytest.mark.slow
def test_the_sdist_has_what_the_tests_need(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kinds = {"tests": "*.py", "docs": "*.*", "perf": "*.*", "compiledopt": "*.*"}
    needed = {path for folder, kind in kinds.items() for path in (ROOT / folder).rglob(kind) if "__pycache__" not in path.parts}
    needed |= {
        ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "LICENSE", "mkdocs.yml")
    }
    assert {str(path.relative_to(ROOT)) for path in needed if path.is_file()} <= names


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(built, tmp_path):
    """Empty but for torch, which is lent: it is large."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", built[0])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["COMPILEDOPT_CACHE_DIR"] = str(tmp_path / "cache")
    file, version, executor = json.loads(run(python, "-c", STEP, cwd=tmp_path, env=environment).splitlines()[-1])
    assert Path(file).is_relative_to(site) and (version, executor) == (VERSION, "compiled")


@pytest.mark.processes
def test_from_an_archive_without_sources(tmp_path):
    """As frozen applications have it."""
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((ROOT / "compiledopt").rglob("*.*")):
            name = path.relative_to(ROOT)
            if path.suffix == ".py":
                py_compile.compile(str(path), str(tmp_path / "one.pyc"), doraise=True)
                packed.write(tmp_path / "one.pyc", name.with_suffix(".pyc"))
            elif path.suffix != ".pyc":
                packed.write(path, name)
    code = """
        import compiledopt, torch
        params = [torch.nn.Parameter(torch.ones(4096)), torch.nn.Parameter(torch.ones(3))]
        optimizer = compiledopt.AdamW(params, lr=0.1, compiled=True, state_dtype="int8")
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
        assert ".zip" in compiledopt.__file__ and params[0].max() < 0.9, params
    """
    run(sys.executable, "-c", textwrap.dedent(code), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(archive)})


def test_no_file_of_the_package_is_read_as_the_locale_has_text():
    """Where that is ASCII, the import failed."""
    pattern = re.compile(r"\b(read_text|write_text)\((?!.*encoding=)")
    assert pattern.search("path.read_text()") and pattern.search("path.write_text(source)")
    found = [str(path) for path in (ROOT / "compiledopt").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert not [one for one in found if not one.endswith("demo.py")]
