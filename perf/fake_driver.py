"""A CUDA driver that does nothing, for a machine without a GPU: Triton compiles for it, loads, and launches, all with its own
code; only the driver's part of a launch is missing. Memory is the host's.

    with fake_driver.installed() as launches: ...    # launches() -> [(grid, threads)] since the last call

What stands in for torch.cuda answers as torch would on one device and one stream (`WHERE`). Parameters stay what they are,
since nothing runs, so a kernel that is to prove itself here is believed.
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
MOST, PARAMETERS = 4096, 64  # launches that are remembered, and parameters of each
WHERE = {"device": 0, "stream": 0}  # what is current

SOURCE = r"""
#include "cuda.h"
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096
#define PARAMETERS 64
typedef struct { int count, sizes[PARAMETERS], unloaded; } Kernel;
typedef struct {
  int alone;  // whether it was no launch of Triton's
  unsigned int blocks, threads, shared;
  unsigned long long stream, count, given[PARAMETERS];
} Seen;
int launches = 0;
int refused = 0;  // launches that are not Triton's fail from this one on
int copies = 0;   // to the device
int copies_refused = 0;
Seen seen[MOST];

// What a cubin says of the parameters of its only kernel: EIATTR_KPARAM_INFO (4, 0x17, 12 bytes: index, ordinal and offset, and
// a word with the size in its upper 14 bits).
static Kernel *kernel_of(const unsigned char *image) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *section = (const Elf64_Shdr *)(image + head->e_shoff);
  const char *names = (const char *)image + section[head->e_shstrndx].sh_offset;
  Kernel *found = (Kernel *)calloc(1, sizeof(Kernel));
  for (int i = 0; i < head->e_shnum; ++i) {
    if (strncmp(names + section[i].sh_name, ".nv.info.", 9)) continue;
    const unsigned char *at = image + section[i].sh_offset, *end = at + section[i].sh_size;
    while (at + 4 <= end) {
      unsigned size = at[0] == 4 ? at[2] | at[3] << 8 : 0;
      if (at[0] == 4 && at[1] == 0x17) {
        unsigned word, ordinal = at[8] | at[9] << 8;
        memcpy(&word, at + 12, 4);
        if (ordinal < PARAMETERS) found->sizes[ordinal] = word >> 18;
        found->count = found->count > (int)ordinal + 1 ? found->count : (int)ordinal + 1;
      }
      at += 4 + size;
    }
  }
  return found;
}

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
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)kernel_of((const unsigned char *)image);
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {  // triton 3.8 and later, where a kernel of its own is dropped
  ((Kernel *)module)->unloaded = 1;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)module;
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
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  if (copies_refused) return CUDA_ERROR_INVALID_CONTEXT;
  ++copies;
  memcpy((void *)to, from, bytes);
  return CUDA_SUCCESS;
}
static CUresult launched(Seen one, CUfunction function, void **params) {
  const Kernel *kernel = (const Kernel *)function;
  if (kernel->unloaded) return CUDA_ERROR_INVALID_HANDLE;
  if (one.alone && refused && --refused == 0) return refused = 1, CUDA_ERROR_INVALID_CONTEXT;
  for (int i = 0; i < kernel->count && i < PARAMETERS; ++i) memcpy(&one.given[i], params[i], kernel->sizes[i]);
  one.count = kernel->count;
  seen[launches++ % MOST] = one;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
  Seen one = {0, config->gridDimX, config->blockDimX, config->sharedMemBytes, (unsigned long long)config->hStream};
  return launched(one, function, params);
}
CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z, unsigned int threads,
                        unsigned int ty, unsigned int tz, unsigned int shared, CUstream stream, void **params, void **extra) {
  Seen one = {1, x, threads, shared, (unsigned long long)stream};
  return launched(one, function, params);
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


class Seen(ctypes.Structure):
    """A launch. alone: whether it was no launch of Triton's; given: the parameters' bits."""

    _fields_ = [("alone", ctypes.c_int), *[(name, ctypes.c_uint) for name in ("blocks", "threads", "shared")]]
    _fields_ += [("stream", ctypes.c_ulonglong), ("count", ctypes.c_ulonglong), ("given", ctypes.c_ulonglong * PARAMETERS)]


def seen() -> list[Seen]:
    """The launches since the last call of this or of what `installed` gives."""
    count = ctypes.c_int.in_dll(_load(), "launches")
    found = list((Seen * MOST).in_dll(_load(), "seen"))[: min(count.value, MOST)]
    copies = [Seen.from_buffer_copy(one) for one in found]
    count.value = 0
    return copies


def copies() -> int:
    """To the device, since the last call."""
    count = ctypes.c_int.in_dll(_load(), "copies")
    found, count.value = count.value, 0
    return found


def refuse_copies(refused: bool) -> None:
    ctypes.c_int.in_dll(_load(), "copies_refused").value = refused


def refuse(refused: int) -> None:
    """Let launches that are not Triton's fail, as in a thread without a context: from the first on, 1, from the second, 2; or
    none, 0."""
    ctypes.c_int.in_dll(_load(), "refused").value = refused


def _pairs() -> list[tuple[int, int]]:
    return [(one.blocks, one.threads) for one in seen()]


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

    stream, _ = Stream(), _load()
    fake = CudaDriver()
    fake.get_current_device = fake.set_current_device = lambda *_: WHERE["device"]
    fake.get_current_stream = lambda _: WHERE["stream"]
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
            yield _pairs
    finally:
        driver._active = before
