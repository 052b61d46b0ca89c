"""Where the tests of GPUs run: on the GPU; or, with TRITON_INTERPRET=1 and COMPILEDOPT_TRITON_ON_CPU=1, a rehearsal of them on
the CPU, in Triton's interpreter, with stand-ins for what they ask of torch.cuda. So none of them dies of a typing error in the
first minute on a GPU."""

import contextlib
import copy
import os

import pytest
import torch
from helpers import Gradients, flat, parameters

REHEARSED = os.environ.get("TRITON_INTERPRET") == os.environ.get("COMPILEDOPT_TRITON_ON_CPU") == "1"
DEVICE = "cpu" if REHEARSED else "cuda"
if REHEARSED:
    from interpreter import round_to_nearest

    round_to_nearest()
UNREHEARSED = pytest.mark.skipif(REHEARSED, reason="what it asks of the device has no stand-in")


def needs_a_gpu():
    if not REHEARSED and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine", allow_module_level=True)


def on_gpu(params):
    return [torch.nn.Parameter(p.detach().to(DEVICE, copy=True)) for p in params]


def there(values):
    """Options with their tensors on the device."""
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in copy.deepcopy(values).items()}


def set_gradients(params, step, dtype=torch.float32, skip=False):
    """Those that the same parameters on the host would get."""
    host = [torch.empty(param.shape, dtype=param.dtype) for param in params]
    Gradients(dtype, skip=skip).set(host, step)
    for param, other in zip(params, host, strict=True):
        param.grad = None if other.grad is None else other.grad.to(DEVICE)


def fill_gradients(params, step):
    """The same values, where the gradients are."""
    host = [torch.empty(param.shape, dtype=param.dtype) for param in params]
    Gradients(params[0].dtype).set(host, step)
    for param, other in zip(params, host, strict=True):
        param.grad.copy_(other.grad)


def on_host(tensors):
    return flat(one.cpu() for one in tensors)


def captured(*steps):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    return graph


def models(count, dtype=torch.float32, shapes=((40, 50), (301,))):
    return [on_gpu(parameters(dtype, shapes)) for _ in range(count)]


# ---- the rehearsal ----


class Graph:
    """torch.cuda.CUDAGraph, by tests/simulated.py."""

    def __init__(self):
        self.recorded = None

    def replay(self):
        self.recorded.replay()


@contextlib.contextmanager
def graph(place, *_, **__):
    from simulated import capture

    with pytest.MonkeyPatch.context() as patch, capture(patch) as place.recorded:
        yield


class Stream(contextlib.AbstractContextManager):
    """All streams of the host are one."""

    cuda_stream = 0

    def wait_stream(self, other):
        assert isinstance(other, Stream)

    def __exit__(self, *_):
        return None


def stand_in(patch):
    """For torch.cuda, where there is none."""
    stream = Stream()
    known = {"CUDAGraph": Graph, "graph": graph, "Stream": Stream, "synchronize": lambda *_: None, "stream": lambda one: one}
    known |= {"current_stream": lambda *_: stream, "set_sync_debug_mode": lambda _: None, "current_device": lambda: 0}
    for name, value in known.items():
        patch.setattr(torch.cuda, name, value)
