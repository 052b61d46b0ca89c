"""A CUDA graph for CPU tensors under Triton's interpreter: what a capture records, forbids and forgets."""

import sys
import weakref
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compiledopt.backends import devices
from compiledopt.backends.triton import batch, capturable, shared
from compiledopt.backends.triton.kernels import TritonKernel

aten = torch.ops.aten
HOST = (aten._local_scalar_dense.default, aten._pin_memory.default, aten.is_nonzero.default)
PRODUCTS = (aten.bmm.out, aten.baddbmm.out, aten.sum.IntList_out)
RUNS = ("view", "detach", "select", "reshape", "remainder", "eq", "all", "bitwise_and", "equal", "alias", "slice", "is_pinned")
RUNS = (*RUNS, "transpose")


def named(one):
    """What finds a tensor again by where it lies, as long as somebody keeps it or what it is a view of; or anything else."""
    if not isinstance(one, torch.Tensor):
        return lambda: one
    base, place = weakref.ref(one if one._base is None else one._base), (one.shape, one.stride(), one.storage_offset())
    is_view = one._base is not None

    def found():
        kept = base()
        assert kept is not None, "a graph reads memory that was let go"
        return kept.as_strided(*place) if is_view else kept

    return found


class Graph:
    """Launches, copies and products with the tensors that they name, none of which it keeps alive."""

    def __init__(self):
        self.recorded, self.own = [], []

    def record(self, function, *tensors, **options):
        self.recorded.append((function, list(map(named, tensors)), {name: named(one) for name, one in options.items()}))

    def replay(self):
        for function, names, options in self.recorded:
            function(*[name() for name in names], **{name: found() for name, found in options.items()})


class Recording(TorchDispatchMode):
    """Asynchronous copies go into the graph, memory comes with what was in it, and the host must not wait for the device."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function not in HOST and not kwargs.get("pin_memory"), f"{function} during a capture"
        if function is aten.copy_.default:
            if len(args) > 2 and args[2]:
                self.graph.record(function, *args[:2])
                return args[0]
            return function(*args, **kwargs)
        if function is aten.zero_.default:
            self.graph.record(function, *args)
            return args[0]
        if function is aten.add.Tensor:  # into memory of the graph's own
            self.graph.own.append(torch.empty_like(args[0]))
            self.graph.record(aten.add.out, *args, out=self.graph.own[-1])
            return self.graph.own[-1]
        if function in PRODUCTS:
            self.graph.record(function, *args, **kwargs)
            return kwargs["out"]
        if function in (aten.empty.memory_format, aten.empty_like.default):
            made = function(*args, **kwargs)
            return made.fill_(-1) if made.numel() else made
        assert function.namespace == "profiler" or function.__name__.split(".")[0] in RUNS, f"{function} during a capture"
        return function(*args, **kwargs)


def unwatched(patch):
    """A dispatch mode stands for the device here: the library is not told of it, or an eager executor would take over."""
    for name, module in list(sys.modules.items()):
        if name.startswith("compiledopt") and hasattr(module, "watched_by"):
            patch.setattr(module, "watched_by", lambda: None)


@contextmanager
def capture(monkeypatch):
    """Within, steps are recorded and nothing happens."""
    graph, load = Graph(), TritonKernel.__dict__["function"].func

    class Launches:
        def __init__(self, kernel):
            self.function = load(kernel)

        def __getitem__(self, grid):
            return lambda *tensors, **options: graph.record(self.function[grid], *tensors, **options)

    with monkeypatch.context() as patch:
        unwatched(patch)
        patch.setattr(TritonKernel, "function", property(Launches))
        for module in (batch, capturable, devices, shared):
            patch.setattr(module, "is_capturing", lambda _: True)
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with Recording(graph):
            yield graph
