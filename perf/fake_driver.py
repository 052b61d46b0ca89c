"""A CUDA driver that does nothing, for a machine without a GPU: Triton compiles for it, loads, and launches, all with its own
code; only the driver's part of a launch is missing. Memory is the host's.

    with fake_driver.installed() as launches: ...    # launches() -> [(grid, threads)] since the last call

What stands in for torch.cuda answers as torch would on one device and one stream. Parameters stay what they are, since nothing
runs, so a kernel that is to prove itself here is believed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

ARCH = (9, 0)  # of an H100 or H200
MOST = 4096  # launches that are remembered

SOURCE = r"""
#include "cuda.h"
#include <string.h>

int launches = 0;
unsigned int seen[4096][2];

static int attribute(CUdevice_attribute which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 232448;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 132;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    default: return 1024;
  }
}
CUresult cuInit(unsigned int flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "the fake driver failed"; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 0; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  *value = attribute(which);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)1; return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)1;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute which, CUdeviceptr pointer) {
  memcpy(data, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
  seen[launches % 4096][0] = config->gridDimX;
  seen[launches % 4096][1] = config->blockDimX;
  ++launches;
  return CUDA_SUCCESS;
}
"""


def missing() -> str | None:
    """Why it cannot be had here, or None."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton's interpreter launches nothing"
    try:
        import triton.backends.nvidia.driver  # noqa: F401
    except ImportError as error:
        return f"triton is not installed: {error}"
    return None if _compiler() else "no C compiler"


def _compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _built(directory: Path) -> ctypes.CDLL:
    """The library, under the name by which Triton's launchers find it once it is loaded."""
    from triton.backends.nvidia.driver import include_dirs

    (directory / "libcuda.c").write_text(SOURCE)
    library = directory / "libcuda.so.1"
    where = [f"-I{one}" for one in include_dirs]
    command = [str(_compiler()), "-shared", "-fPIC", "-O1", "-w", *where, "libcuda.c", "-o", str(library)]
    subprocess.run([*command, "-Wl,-soname,libcuda.so.1"], cwd=directory, check=True, capture_output=True, text=True)
    shutil.copy(library, directory / "libcuda.so")
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


_library: list[ctypes.CDLL] = []  # loaded once for a process


def _load() -> ctypes.CDLL:
    if not _library:
        directory = Path(tempfile.mkdtemp(prefix="compiledopt-fake-driver-"))
        os.environ["TRITON_LIBCUDA_PATH"] = str(directory)
        _library.append(_built(directory))
    return _library[0]


def _launches(library: ctypes.CDLL) -> Callable[[], list[tuple[int, int]]]:
    count = ctypes.c_int.in_dll(library, "launches")
    seen = (ctypes.c_uint * (2 * MOST)).in_dll(library, "seen")

    def found() -> list[tuple[int, int]]:
        pairs = [(seen[2 * i], seen[2 * i + 1]) for i in range(min(count.value, MOST))]
        count.value = 0
        return pairs

    return found


class Stream:
    """The only one."""

    def current(self, *_: object) -> Stream:
        return self


def _no(*_: object) -> bool:
    return False


@contextmanager
def installed() -> Iterator[Callable[[], list[tuple[int, int]]]]:
    """Within, Triton's driver is this one, and the compiled executor of GPUs serves tensors of the host.

    Raises: RuntimeError where that cannot be.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(f"no fake driver: {reason}")
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    from compiledopt.backends import devices
    from compiledopt.backends.triton import norm, passes_ready, readiness

    library, stream = _load(), Stream()
    fake = CudaDriver()
    fake.get_current_device = fake.set_current_device = lambda *_: 0
    fake.get_current_stream = lambda _: 0
    fake.get_device_capability = lambda *_: ARCH
    before = driver._active
    driver.set_active(fake)
    try:
        with (
            mock.patch.dict(os.environ, {"COMPILEDOPT_TRITON_ON_CPU": "1"}),
            mock.patch.object(readiness, "proved", return_value=None),
            mock.patch.object(passes_ready, "proved", return_value=None),
            mock.patch.object(norm, "proved", return_value=None),
            mock.patch.object(devices, "is_capturing", _no),
            mock.patch.object(torch.accelerator, "current_stream", stream.current),
        ):
            yield _launches(library)
    finally:
        driver._active = before
