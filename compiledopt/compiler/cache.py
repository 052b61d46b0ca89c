"""Compiled files on disk, so that a warm start runs no compiler. Every failure here means compiling again, no more.

An entry is one file, made under another name and moved into place: two processes at once both succeed, and nobody ever
sees half of one. Its first line is a checksum, because loading a truncated library kills the process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

FORMAT = 1


def cache_dir() -> Path:
    """COMPILEDOPT_CACHE_DIR, else the platform's convention for caches."""
    chosen = os.environ.get("COMPILEDOPT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "compiledopt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "compiledopt" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compiledopt"


@lru_cache
def processor() -> str:
    """What `-march=native` depends on: the model and the flags of the first processor."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(16384).split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.split(":")[0].strip() in ("model name", "flags", "Features")]
        if lines:
            return "\n".join(lines)
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def compiler() -> str | None:
    """The path of the C++ compiler: CXX, else the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for path in map(shutil.which, names) if path), None)


def compiler_identity() -> list[object]:
    """Which compiler it is, without running it: a new version is a new file."""
    path = compiler()
    if path is None:
        return []
    real = os.path.realpath(path)
    stat = os.stat(real)
    return [real, stat.st_size, stat.st_mtime_ns]


def key(kind: str, *parts: object) -> str:
    """A name for what is made of `parts` on this machine with these versions."""
    python = [sys.implementation.cache_tag, sysconfig.get_config_var("SOABI")]
    identity = [FORMAT, kind, torch.__version__, python, compiler_identity(), processor(), platform.machine(), *parts]
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:40]


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def load(name: str) -> bytes | None:
    """The entry, or None where it is missing, unreadable or damaged."""
    try:
        checksum, _, content = (cache_dir() / name).read_bytes().partition(b"\n")
    except OSError:
        return None
    return content if checksum == _checksum(content) else None


def store(name: str, content: bytes) -> bool:
    """Write the entry if it can be written; a cache that cannot be is no error."""
    try:
        directory = cache_dir()
        directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_checksum(content) + b"\n" + content)
        os.replace(temporary, directory / name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        return False
    return True


@lru_cache
def _private_dir(process: int) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="compiledopt-", ignore_cleanup_errors=True)


_serial = itertools.count()


def scratch(name: str) -> Path:
    """A new path of this process alone, removed at its end: libraries are loaded from here, never from the shared cache,
    and never from a path that was used before, since writing over a loaded library kills the process."""
    directory = Path(_private_dir(os.getpid()).name)
    directory.mkdir(exist_ok=True)  # a cleaner of temporary files may have been here
    return directory / f"{next(_serial)}-{name}"
