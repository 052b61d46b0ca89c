"""C++ source → a loaded function: the kernels, and the launcher that runs them over whole models."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from compiledopt.backends import cache
from compiledopt.backends.cpp import blocks, draws, forks, functions, processes
from compiledopt.backends.cpp.sources import (
    header,
    kernel_source,
    loops,
    passes_source,
    prefix,
    shared,
    totals,
    totals_source,
)
from compiledopt.errors import CompileError, PassingCompileError
from compiledopt.rules.program import Program
from compiledopt.rules.reductions import Passes
from compiledopt.stats import STATS, timed

# The fused multiply-adds are in the source (inductor.evaluate); the compiler must not choose others: g++ chose differently in a
# loop and in its remainder, so that a result depended on where a thread's share began. errno and traps do not concern a
# kernel, and hinder the vectorizer. Random numbers are products of integers that wrap around. C++14, whose <cmath> lacks the
# special functions of C++17, a quarter of the compilation of AdamW's kernel; GNU's has numbers in hexadecimal, as C++17.
KERNEL_FLAGS = ("-O3", "-march=native", "-std=gnu++14", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv")
# g++'s passes that follow a condition made branches of choices between values again: atan2 took 1.6 times as long.
GNU_KERNEL_FLAGS = ("-fno-thread-jumps",)
# Passes of g++'s that took a quarter of the launcher's compilation, which a first step waits for, and made no step faster.
WITHOUT = "tree-pre code-hoisting tree-vrp thread-jumps tree-vectorize store-merging optimize-strlen gcse schedule-insns2"
WITHOUT += " peephole2 crossjumping reorder-blocks-and-partition ipa-cp ipa-sra ipa-icf ipa-vrp"
LEAN = tuple(f"-fno-{name}" for name in WITHOUT.split())
# NDEBUG: c10 checks its own assumptions without it, 40% of a gather.
LAUNCHER_FLAGS = ("-O2", "-DNDEBUG", "-std=c++20", "-ffp-contract=off", *LEAN)
# The files of two folders, in the order in which they are joined: each may name what stands before it.
STEPS = ("changes.h", "part.h", "step.h", "steady_type.h", "module.cpp")  # after what a plan needs
PLANS = ("objects.h", "numbers.h", "tensors.h", "tiles.h", "plan.h", "gather.h", "launch.h", "plan_type.h", "driver.h")
LAUNCHER = tuple(f"launcher/{name}" for name in PLANS + STEPS)
PASSES = tuple(f"passes/{name}" for name in ("rule.h", "tiles.h", "passes.cpp"))
SHARED = ("-fPIC", "-g0", "-w")
MOST_OPERANDS = 64  # of a pass: kMostOperands in shared.h
TIMEOUT = 300  # seconds; a compiler that takes longer is taken for hanging


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. address: of `run(pointers, columns, length)`; library: keeps it loaded; source: the C++ file."""

    address: int
    library: ctypes.CDLL
    source: str

    def pass_address(self, index: int) -> int:
        """Of `run0`, `run1`, ..., where it has one for each pass."""
        return ctypes.cast(getattr(self.library, f"run{index}"), ctypes.c_void_p).value or 0


_kernels: dict[tuple[str, tuple[torch.dtype, ...]], Kernel | CompileError] = {}
_lock = threading.RLock()


def _run(command: Sequence[str]) -> None:
    try:
        status, said = processes.run(command, TIMEOUT, _environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PassingCompileError(f"the C++ compiler {command[0]} could not be run: {error}") from error
    if status != 0:
        said = said.strip()[-800:]
        # Killed as for want of memory, which g++ says of its parts; or no room for what it writes.
        passing = status < 0 or "Killed signal" in said or "No space left" in said
        raise (PassingCompileError if passing else CompileError)(
            f"the C++ compiler {command[0]} failed with status {status}: {said}"
        )


def _environment() -> dict[str, str]:
    """Zig keeps every object file that it made in caches of its own, which nobody would ever empty. `_run` reads English."""
    own = str(cache.scratch("zig"))
    return {**os.environ, "LC_ALL": "C", "ZIG_GLOBAL_CACHE_DIR": own, "ZIG_LOCAL_CACHE_DIR": own}


def _runtime(compiler: Sequence[str]) -> list[str]:
    """The C++ runtime that torch runs on, where a compiler would bring another: zig compiles LLVM's for each library (25 s to
    80 s), and exceptions of the one cannot be caught by the other. What c10 needs is there, libstdc++ and libm among them."""
    is_zig = any(Path(word).name in ("zig", "ziglang") for word in compiler)
    c10 = str(Path(torch.__file__).parent / "lib" / "libc10.so")
    return ["-nostdlib", "-Wl,--no-as-needed", c10] if is_zig else []


def _compiler() -> list[str]:
    command = cache.compiler()
    if command is not None:
        return command
    if chosen := os.environ.get("CXX"):
        raise CompileError(f"CXX={chosen!r} names no program that can be run; set it to a C++ compiler, or unset it")
    raise CompileError(
        "no C++ compiler found (CXX, g++, clang++, c++, ziglang); install one: pip install 'compiledopt[compiler]'"
    )


def build(name: str, source: str, flags: Sequence[str], link: Sequence[str] = ()) -> bytes:
    """Compile and link; in two commands, or zig looks for the headers of the C++ library that it is not to link."""
    compiler = _compiler()
    try:
        file = cache.scratch(f"{name}.cpp")
        file.write_text(source, encoding="utf-8")
        object_file, library = file.with_suffix(".o"), file.with_suffix(".so")
        _run([*compiler, *flags, *SHARED, "-c", str(file), "-o", str(object_file)])
        _run([*compiler, "-shared", str(object_file), "-o", str(library), *link, *_runtime(compiler)])
        object_file.unlink(missing_ok=True)
        return library.read_bytes()
    except OSError as error:
        raise PassingCompileError(f"no room for temporary files: {error}") from error


# ---- kernels ----


def _kernel_flags() -> tuple[str, ...]:
    return KERNEL_FLAGS + GNU_KERNEL_FLAGS if cache.is_gnu() else KERNEL_FLAGS


def kernel(program: Program, dtypes: Sequence[torch.dtype]) -> Kernel:
    """The kernel of a program for these dtypes (param, grad, states): from memory, from disk, or compiled now.

    Raises: CompileError with the reason.
    """
    source = functools.partial(kernel_source, program, dtypes)
    return _remembered((program.kernel_text, tuple(dtypes)), lambda: _find_kernel(_name(program.kernel_text, dtypes), source))


def passes_kernel(passes: Passes, dtypes: Sequence[torch.dtype]) -> Kernel:
    """The functions for the passes of a rule that reduces, for these dtypes of its tensors. Raises: CompileError."""
    most = max(max(len(sweep.operands), len(sweep.columns)) for sweep in passes.sweeps)
    if most > MOST_OPERANDS:
        raise CompileError(f"a pass of the rule reads and writes {most} values, and at most {MOST_OPERANDS} are possible")
    source = functools.partial(passes_source, passes, dtypes)
    return _remembered((passes.text, tuple(dtypes)), lambda: _find_kernel(_name(passes.text, dtypes), source))


def passes_driver() -> Kernel:
    """What runs passes one after the other over many parameters. Raises: CompileError."""
    return _driver("passes", *PASSES)


def pieces_driver() -> Kernel:
    """What runs a kernel over tensors that are given by their addresses. Raises: CompileError."""
    return _driver("pieces", "pieces.cpp")


def _driver(kind: str, *files: str) -> Kernel:
    def find() -> Kernel:
        source = _with_runtime(*files)
        name = cache.key(kind, source, _kernel_flags())
        return _find_kernel(name, lambda: source, _openmp(Path(torch.__file__).parent / "lib"))

    return _remembered((kind, ()), find)


def totals_kernel(program: Program, dtypes: Sequence[torch.dtype]) -> Kernel:
    """The kernel that sums what a program computes for each element. dtypes: of the tensors that it reads; those that it writes
    follow them. Raises: CompileError with the reason."""
    source = functools.partial(totals_source, program, tuple(dtypes))
    text = f"totals of {program.kernel_text}"
    return _remembered((text, tuple(dtypes)), lambda: _find_kernel(_name(text, dtypes, totals() + shared()), source))


def _remembered(identity: tuple[str, tuple[torch.dtype, ...]], find: Callable[[], Kernel]) -> Kernel:
    """What `find` finds, looked for once; a failure is not tried again while it is remembered. Raises: CompileError."""
    with _lock:
        known = _kernels.get(identity)
        if isinstance(known, CompileError):
            if time.monotonic() < known.until:
                raise known
        elif known is not None:
            STATS.memory_hits += 1
            return known
        try:
            found = find()
        except CompileError as error:
            _kernels[identity] = error
            raise
        _kernels[identity] = found
        return found


def _from_disk(name: str) -> Kernel | None:
    content = cache.load(f"{name}.so")
    if content is None:
        return None
    try:
        found = _load_kernel(name, content)
    except (OSError, AttributeError):  # made again, which says what is wrong
        return None
    STATS.disk_hits += 1
    return found


def _name(text: str, dtypes: Sequence[torch.dtype], more: str = "") -> str:
    parts = (loops(), prefix(), functions.TEXT, blocks.TEXT, draws.TEXT, more)
    return cache.key("cpu", text, [str(dtype) for dtype in dtypes], _kernel_flags(), *parts)


def _find_kernel(name: str, source: Callable[[], str], link: Sequence[str] = ()) -> Kernel:
    found = _from_disk(name)
    if found is not None:
        return found
    launcher_soon()
    _compiler()
    with cache.making(name):
        return _from_disk(name) or _build_kernel(name, source(), link)


def forget() -> None:
    """Drop every kernel and the launcher from memory, failures included: the next use looks for them again."""
    global _launcher
    with _lock:
        _kernels.clear()
        _launcher = None


def _build_kernel(name: str, source: str, link: Sequence[str] = ()) -> Kernel:
    with timed("seconds_compiling"):
        try:
            library = build(name, source, _kernel_flags(), link)
        except CompileError as error:
            library = _with_torch_headers(name, source, error)
    STATS.kernels_compiled += 1
    content = source.encode() + b"\0" + library
    cache.store(f"{name}.so", content)
    try:
        return _load_kernel(name, content)
    except (OSError, AttributeError) as error:
        mend = "TMPDIR must be a directory that code may be loaded from (not noexec)"
        raise CompileError(f"the compiled kernel cannot be loaded: {error}; {mend}") from error


def _with_torch_headers(name: str, source: str, first: CompileError) -> bytes:
    """A kernel with functions that our prefix lacks gets torch's, and takes 5 s. One that was to run on vectors (lanes.h) runs
    without."""
    if prefix() not in source or isinstance(first, PassingCompileError):
        raise first
    full = source.replace(prefix(), "#include <torch/csrc/inductor/cpp_prefix.h>\n")
    include = Path(torch.__file__).parent / "include"
    flags = [f if not f.startswith("-std") else "-std=c++20" for f in _kernel_flags()]
    STATS.kernels_with_torch_headers += 1
    try:
        return build(name, full, [*flags, "-DPLAIN", f"-I{include}", f"-I{include}/torch/csrc/api/include"])
    except PassingCompileError:
        raise
    except CompileError as second:
        raise CompileError(f"{first}; with torch's headers: {second}") from first


def _load_kernel(name: str, content: bytes) -> Kernel:
    """Raises: OSError, AttributeError; PassingCompileError."""
    source, _, library = content.partition(b"\0")
    loaded = ctypes.CDLL(str(_to_load(name, library)))
    address = ctypes.cast(loaded.run, ctypes.c_void_p).value
    return Kernel(address or 0, loaded, source.decode())


def _to_load(name: str, library: bytes) -> Path:
    """A file of this process's own, with a library."""
    try:
        path = cache.scratch(f"{name}.loaded.so")
        path.write_bytes(library)
    except OSError as error:
        raise PassingCompileError(f"no room for temporary files: {error}") from error
    return path


# ---- the launcher ----

_launcher: Future[ModuleType] | None = None


def launcher_soon() -> None:
    """Start building the launcher beside the caller, who is about to spend seconds in importing Dynamo and Inductor."""
    global _launcher
    with _lock:
        failed = _launcher.exception() if _launcher is not None and _launcher.done() else None
        if _launcher is None or (isinstance(failed, CompileError) and time.monotonic() >= failed.until):
            _launcher = Future()
            cache.usable(cache.cache_dir())  # what is to be said of it is said at the caller's line
            threading.Thread(target=_fill, args=(_launcher,), daemon=True, name="compiledopt-launcher").start()


def _fill(future: Future[ModuleType]) -> None:
    try:
        future.set_result(_make_launcher())
    except BaseException as error:
        future.set_exception(error)


def _after_fork() -> None:
    """In a child of fork, where neither the thread that builds the launcher came along nor one that held the lock."""
    global _launcher, _lock
    _lock = threading.RLock()
    if _launcher is not None and not _launcher.done():
        _launcher = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forks.let_threads_go, after_in_child=_after_fork)


def launcher() -> ModuleType:
    """The native module that gathers tensors and runs kernels. Raises: CompileError with the reason."""
    launcher_soon()
    assert _launcher is not None
    try:
        return _launcher.result()
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(f"the launcher could not be loaded with torch {torch.__version__}: {error!r}") from error


def _make_launcher() -> ModuleType:
    source = _with_runtime(*LAUNCHER)
    name = cache.key("launcher", source, LAUNCHER_FLAGS)
    content = cache.load(f"{name}.so")
    if content is None:
        with cache.making(name):
            content = cache.load(f"{name}.so") or _build_launcher(name, source)
    return _import_launcher(name, content)


def _build_launcher(name: str, source: str) -> bytes:
    headers = sysconfig.get_paths()["include"]
    if not (Path(headers) / "Python.h").exists():
        raise CompileError(f"Python.h is not in {headers}; install Python's headers, for instance python3-dev")
    root = Path(torch.__file__).parent
    flags = [flag for flag in LAUNCHER_FLAGS if flag not in LEAN or cache.is_gnu()]
    flags += [f"-I{headers}", f"-I{root / 'include'}"]
    with timed("seconds_compiling"):
        content = build(name, source, flags, [f"-L{root / 'lib'}", "-lc10", *_openmp(root / "lib")])
    STATS.launchers_compiled += 1
    cache.store(f"{name}.so", content)
    return content


def _with_runtime(*files: str) -> str:
    return "".join(header(name) for name in ("shared.h", "runtime.h", *files))


def _openmp(libraries: Path) -> list[str]:
    """torch's own OpenMP runtime, so that our threads are torch's threads and do not compete with them."""
    own = sorted(libraries.glob("libgomp*.so*")) + sorted((libraries.parent.parent / "torch.libs").glob("libgomp*.so*"))
    return [str(own[0])] if own else ["-lgomp"]


def _import_launcher(name: str, content: bytes) -> ModuleType:
    path = _to_load(name, content)
    loader = importlib.machinery.ExtensionFileLoader("compiledopt_launcher", str(path))
    spec = importlib.util.spec_from_loader("compiledopt_launcher", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    example = torch.empty(1, device="cpu")
    if not module.probe(example, example.data_ptr(), torch.Tensor, torch.nn.Parameter):
        raise CompileError(f"torch {torch.__version__} keeps its tensors in a way the launcher does not know")
    return module


# LLVM's OpenMP, which torch brings along on macOS, has no GOMP_parallel (runtime.h).
ELSEWHERE = {"win32": "Windows", "darwin": "macOS"}


def platform_reason() -> str | None:
    """Why nothing can be compiled on this platform, or None."""
    name = ELSEWHERE.get(sys.platform)
    return name and f"the C++ launcher is written for Linux, not for {name}"
