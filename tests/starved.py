"""Run by test_native.py with operator new replaced: lets each allocation of each native call fail, and counts the failures."""

import ctypes
import functools
import sys

import torch
from test_native import Example, native_calls

import compiledopt
from compiledopt.backends.cpp import kernels as cpp

fail_at = ctypes.CDLL(sys.argv[1]).fail_at
fail_at.argtypes, fail_at.restype = [ctypes.c_long], ctypes.c_bool


def starved(prepared):
    """How often a call raises MemoryError, if first its first allocation fails, then its second, until none is left to fail.
    prepared: makes everything anew, and returns the call."""
    for index in range(100):
        call = prepared()
        fail_at(index)
        try:
            call()
        except MemoryError:
            call()  # now that there is memory
        else:
            if not fail_at(-1):
                return index
            raise AssertionError("an allocation failed and nothing was said")
    raise AssertionError("it asks for memory for ever")


def method(name):
    """Of a plan whose launch lets the GIL go, and that two threads gather."""
    count = 4100 if name == "gather" else 100
    example = Example(lambda *_: None, tensors=[torch.ones(1 << 22), *(torch.ones(1) for _ in range(count))])
    for index in range(len(example.params)):
        example.plan.set_row(index, 0)
    if name != "gather":
        example.gathered()
    function, arguments = native_calls(example)[name]
    return functools.partial(keep, example, function, arguments)


def keep(example, function, arguments):
    return function(*arguments)


def reducing():
    """Adafactor's batch at its second step, its passes not laid out yet."""
    param = torch.nn.Parameter(torch.ones(600, 600))
    param.grad = torch.ones(600, 600)
    optimizer = compiledopt.Adafactor([param], compiled=True)
    optimizer.step()
    (batch,) = optimizer._plan.batches
    assert batch.prepare()
    batch.native = batch._plan()
    batch.native.set_row(0, 0)
    return optimizer, batch


def lay():
    optimizer, batch = reducing()
    return functools.partial(keep, optimizer, batch.native.gather, (batch.table, 2, None))


def run():
    optimizer, batch = reducing()
    assert batch.native.gather(batch.table, 2, None) == 0
    return functools.partial(keep, optimizer, batch.native.launch, (batch.table, 2))


def clipped():
    """A steady step that measures the norm."""
    params = [torch.nn.Parameter(torch.ones(30, 30)) for _ in range(3)]
    optimizer = compiledopt.AdamW(params, compiled=True, max_grad_norm=1.0)
    for param in params:
        param.grad = torch.ones(30, 30)
    for _ in range(4):
        optimizer.step()
    assert optimizer._stepper.steady.__self__.steps()
    return functools.partial(keep, params, optimizer.step, ())


def plan():
    example = Example()
    return functools.partial(cpp.launcher().Plan, **example.described)


if __name__ == "__main__":
    for name in native_calls(Example()):
        print(f"{name}: {starved(functools.partial(method, name))}")
    print(f"plan: {starved(plan)}\nlay: {starved(lay)}\nrun: {starved(run)}\nclipped: {starved(clipped)}")
