"""Compiled files on disk, so that a warm start runs no compiler. Every failure here means compiling again, no more.

An entry is one file, made under another name and moved into place: two processes at once both succeed, and nobody ever
sees half of one. Its first line is a checksum, because loading a truncated library kills the process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from compiledopt.errors import warn
from compiledopt.version import VERSION

FORMAT = 1
PATIENCE = 60  # seconds to wait for another process that makes the same entry


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


def compiler() -> list[str] | None:
    """The command of the C++ compiler: CXX, else the first of the usual names, else the one in the package ziglang."""
    if chosen := os.environ.get("CXX"):
        return _program([chosen]) or _program(_words(chosen))
    found = (_program([name]) for name in ("g++", "clang++", "c++"))
    return next((command for command in found if command), None) or _zig()


def _program(words: list[str]) -> list[str] | None:
    path = shutil.which(words[0]) if words else None
    return [path, *words[1:]] if path else None


def _words(command: str) -> list[str]:
    """`ccache g++` is two."""
    try:
        return shlex.split(command)
    except ValueError:  # an open quote
        return []


def _zig() -> list[str] | None:
    spec = importlib.util.find_spec("ziglang")
    folders = spec.submodule_search_locations or () if spec else ()
    return next((found for folder in folders if (found := _program([os.path.join(folder, "zig"), "c++"]))), None)


def compiler_identity() -> list[object]:
    """Which compiler it is, without running it: a new version is a new file."""
    identity: list[object] = []
    for word in compiler() or ():
        path = os.path.realpath(shutil.which(word) or "")
        found = os.stat(path)
        identity += [word, path, found.st_size, found.st_mtime_ns]
    return identity


def is_gnu() -> bool:
    """Whether the compiler is g++, whatever it is called: others refuse options that they do not know."""
    found = (os.path.basename(os.path.realpath(shutil.which(word) or "")) for word in compiler() or ())
    return any(re.fullmatch(r"([\w.]+-)*g\+\+(-[\d.]+)?", name) for name in found)


def key(kind: str, *parts: object) -> str:
    """A name for what is made of `parts` on this machine with these versions."""
    python = [sys.implementation.cache_tag, sysconfig.get_config_var("SOABI")]
    identity = [FORMAT, VERSION, kind, torch.__version__, python, compiler_identity(), processor(), platform.machine(), *parts]
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:40]


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def untrusted(status: os.stat_result) -> str | None:
    """Why a directory or file may hold what others wrote, or None. What is in it is run by this process."""
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {status.st_uid}"
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})" if others else None


_said: set[Path] = set()


def usable(directory: Path) -> bool:
    """Whether the directory of the cache is there and nobody else's; says once why it is not."""
    try:
        reason = untrusted(directory.stat())
    except OSError:
        return False
    if reason is not None and directory not in _said:
        _said.add(directory)
        warn(
            f"compiledopt does not use its cache {directory}, because {reason} and code is loaded from there; kernels are "
            f"compiled in every process. Run chmod go-w on it, or let COMPILEDOPT_CACHE_DIR name a directory of your own."
        )
    return reason is None


def load(name: str) -> bytes | None:
    """The entry, or None where it is missing, unreadable, damaged, or may be somebody else's."""
    directory = cache_dir()
    if not usable(directory):
        return None
    try:
        with open(directory / name, "rb") as file:
            if untrusted(os.fstat(file.fileno())) is not None:
                return None
            checksum, _, content = file.read().partition(b"\n")
    except OSError:
        return None
    return content if checksum == _checksum(content) else None


def _writable() -> Path | None:
    """The directory of the cache, made if it is not there for its owner alone; None where there is none to write to."""
    directory = cache_dir()
    try:
        for each in (*reversed(directory.parents), directory):
            if not each.exists():
                each.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return directory if usable(directory) and os.access(directory, os.W_OK | os.X_OK) else None


def store(name: str, content: bytes) -> bool:
    """Write the entry if it can be written; a cache that cannot be is no error."""
    directory = _writable()
    if directory is None:
        return False
    try:
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


@contextmanager
def making(name: str) -> Iterator[None]:
    """Held by one process at a time, so that those that start together compile an entry once: the others find it then.

    Only work is saved by it, so whatever is in the way (no lock on this file system, a directory that cannot be written, a
    holder that takes longer than PATIENCE) means going on without. The system drops the lock of a process that dies.
    """
    directory = _writable()
    handle = _locked(directory / f".{name}.lock") if directory is not None else None
    try:
        yield
    finally:
        if handle is not None and directory is not None:
            # Whoever opened it before and gets the lock now finds the entry.
            (directory / f".{name}.lock").unlink(missing_ok=True)
            _unlock(handle)


def _locked(path: Path) -> int | None:
    """A handle of the file, with its lock, or None."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):
        return None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
    os.close(handle)
    return None


def _unlock(handle: int) -> None:
    """Closing alone would leave it to a process that was forked meanwhile and has the same file open."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


_private: dict[int, Path] = {}
_serial = itertools.count()


def _private_dir() -> Path:
    """A directory of this process, removed at its end. multiprocessing's Finalize also runs in the processes that it forks,
    where atexit does not; TemporaryDirectory would warn."""
    made = _private.get(os.getpid())
    try:
        if made is not None and untrusted(made.lstat()) is None:
            return made
    except OSError:  # a cleaner of temporary files was here
        pass
    made = _private[os.getpid()] = Path(tempfile.mkdtemp(prefix="compiledopt-"))
    Finalize(None, shutil.rmtree, (made,), {"ignore_errors": True}, exitpriority=0)
    return made


def scratch(name: str) -> Path:
    """A new path of this process alone, removed at its end: libraries are loaded from here, never from the shared cache,
    and never from a path that was used before, since writing over a loaded library kills the process."""
    return _private_dir() / f"{next(_serial)}-{name}"
