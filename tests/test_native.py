"""The native code: what it agrees on with Python, what it refuses, what it keeps alive, and what it does without memory."""

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import weakref
from array import array
from pathlib import Path

import pytest
import torch
from helpers import flat

import compiledopt
from compiledopt.backends import cache, gathered
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp import reducing
from compiledopt.backends.cpp.batch import squares_kernel
from compiledopt.rules import program, reductions

HERE = Path(__file__).parent
KERNEL = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_double), ctypes.c_int64)


def test_both_sides_have_the_same_numbers():
    header = cpp.header("shared.h")
    found = {name: int(value) for name, value in re.findall(r"\b(k\w+) = (-?\d+)[,; ](?! ?<<|<<)", header)}
    expected = {"kMostTensors": gathered.MOST_TENSORS, "kMostOperands": cpp.MOST_OPERANDS}
    expected |= {
        f"k{name.title()}": getattr(program, name)
        for name in ("MATRICES", "ROWS", "COLUMNS", "ELEMENTS", "NUMBER", "BLOCKS", "PACKED")
    }
    expected |= {"kAnyOrder": program.ANY_ORDER, "kRowAfterRow": program.ROW_AFTER_ROW}
    expected |= {"kColumnAfterColumn": program.COLUMN_AFTER_COLUMN, "kReady": gathered.READY, "kRegroup": gathered.REGROUP}
    expected |= {f"k{name.title()}": getattr(reductions, name) for name in ("TENSOR", "BUFFER", "TILE", "SLOT")}
    expected |= {f"k{op.title()}": index for index, op in enumerate(program.REDUCTIONS)}
    expected |= {"kOuter": program.OUTER}
    assert found == {**expected, "kRebuild": 2, "kDone": 0, "kNoMemory": -1, "kFailed": -2}


# ---- a plan by hand ----


def subtract(pointers, scalars, length):
    """param -= scalar · grad, as a kernel."""
    own, grad = ((ctypes.c_float * length).from_address(pointers[i]) for i in range(2) if length)
    for i in range(length):
        own[i] -= scalars[0] * grad[i]


class Example:
    """A plan of a few parameters with one state and one 0-dim state, and a kernel in Python."""

    def __init__(self, kernel=subtract, tensors=None, **more):
        self.params = [torch.nn.Parameter(t) for t in tensors or [torch.ones(3), torch.ones(2, 2), torch.ones(0)]]
        for param in self.params:
            param.grad = torch.ones_like(param)
        self.states = [{"step": torch.zeros(()), "average": torch.zeros_like(p)} for p in self.params]
        self.kernel = KERNEL(kernel)
        self.described = {
            "params": self.params,
            "states": self.states,
            "state_names": ("average",),
            "scalar_names": ("step",),
            "examples": tuple(torch.empty(0) for _ in range(3)),
            "axes": (program.ELEMENTS,) * 3,
            "sizes": (0,) * 3,
            "places": bytes(16 * len(self.params)),
            "order": program.ANY_ORDER,
            "kernel": ctypes.cast(self.kernel, ctypes.c_void_p).value,
            "passes": None,
            "columns": 1,
            "scale": 1,
            "device_scalars": False,
            **more,
        }
        self.plan = cpp.launcher().Plan(**self.described)

    def table(self, step):
        return array("d", [0.5, step, step + 1])  # what the kernel reads, the step as it is, as it becomes

    def gathered(self):
        for index in range(len(self.params)):
            self.plan.set_row(index, 0)
        assert self.plan.gather(self.table(0), 1, None) == gathered.READY
        return self


def test_a_plan_by_hand():
    example = Example().gathered()
    assert [states for _, *states in example.plan.active()] == [[0.0]] * 3
    example.plan.launch(example.table(0), 1)
    assert flat(example.params).tolist() == [0.5] * 7
    assert [state["step"].item() for state in example.states] == [1.0] * 3
    assert example.plan.gather(example.table(0), 1, None) == gathered.REGROUP
    assert example.plan.gather(example.table(1), 1, None) == gathered.READY


WRONG_PLANS = {
    "passes beside a kernel": ({"passes": (0, 0, 0, 0, b"")}, TypeError, "where there is no kernel"),
    "a list of numbers": ({"params": [1, 2, 3]}, TypeError, "tensors and their state dicts"),
    "states that are no dicts": ({"states": [[], [], []]}, TypeError, "tensors and their state dicts"),
    "too few states": ({"states": [{}]}, ValueError, "as many state dicts as parameters"),
    "names that are no strings": ({"state_names": (b"average",)}, TypeError, "names of states are strings"),
    "too many states": ({"state_names": ("a",) * 14}, ValueError, "at most 16 tensors for each parameter, and got 17"),
    "no example": ({"examples": ()}, ValueError, "examples: one for each operand"),
    "examples that are no tensors": ({"examples": (1, 2, 3)}, TypeError, "examples are tensors"),
    "axes that are no numbers": ({"axes": ("a", "b", "c")}, TypeError, "integer"),
    "axes that there are not": ({"axes": (9, 7, 7)}, ValueError, "axes: of program.py"),
    "too few axes": ({"axes": (7,)}, ValueError, "axes: of each operand"),
    "an order that there is not": ({"order": 3}, ValueError, "columns, scale or order"),
    "a scale of 0": ({"scale": 0}, ValueError, "columns, scale or order"),
    "columns below 0": ({"columns": -1}, ValueError, "columns, scale or order"),
}


@pytest.mark.parametrize("wrong", WRONG_PLANS)
def test_wrong_plans_are_refused(wrong):
    more, error, words = WRONG_PLANS[wrong]
    with pytest.raises(error, match=words):
        Example(**more)


def test_wrong_calls_are_refused():
    example = Example()
    plan, ready = example.plan, "without a gather before it that said 0"
    calls = {
        "launch": (example.table(0), 1),
        "active": (),
        "tables": (),
        "shapes": (),
        "sums": (0, (1,), 1, None, 0, 1),
    }
    for name, arguments in {**calls, "commit": (example.table(0),)}.items():
        with pytest.raises(RuntimeError, match=f"{name} {ready}"):
            getattr(plan, name)(*arguments)
    assert plan.gather(None, 1, None) == gathered.READY
    with pytest.raises(RuntimeError, match=f"launch {ready}"):
        plan.launch(example.table(0), 1)  # no entry has a row
    for staged in ([], [None], (None,) * 3, [None, None, 1.0], "abc", [None] * 4):
        with pytest.raises(TypeError, match="one gradient or None for each entry, in a list"):
            plan.gather(None, 1, staged)
    for index, row in ((3, 0), (-1, 0), (0, -1)):
        with pytest.raises(IndexError, match="no such entry, or a row below 0"):
            plan.set_row(index, row)
    plan.set_row(0, 1)
    with pytest.raises(ValueError, match="a table of 24 bytes, where 2 rows of 3 float64 are needed"):
        plan.gather(example.table(0), 1, None)
    for table in ("text", 1.0, [1.0]):
        with pytest.raises(TypeError):
            plan.gather(table, 1, None)


def test_a_gather_that_fails_leaves_nothing_to_launch():
    example = Example().gathered()
    example.states[1]["average"] = torch.zeros(5)
    assert example.plan.gather(example.table(0), 1, None) == 2
    with pytest.raises(RuntimeError, match="without a gather before it"):
        example.plan.launch(example.table(0), 1)
    assert flat(example.params).tolist() == [1.0] * 7


def test_staged_gradients_stand_in():
    example = Example().gathered()
    staged = [torch.full((3,), 2.0), None, torch.ones(0)]
    assert example.plan.gather(example.table(0), 1, staged) == gathered.READY
    del staged
    assert [index for index, *_ in example.plan.active()] == [0, 2]


class Odd(torch.Tensor):
    """Whose strides are computed by code that raises."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(
            cls, (1,), strides=(1,), dispatch_sizes_strides_policy="strides", requires_grad=True
        )

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} was asked for")


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_that_raise_when_looked_at(threads):
    """A parameter that became one: the plan no longer fits, whichever thread looks."""
    example = Example(tensors=[torch.ones(1) for _ in range(4097)])
    for index in range(4097):
        example.plan.set_row(index, 0)
    assert example.plan.gather(example.table(0), threads, None) == gathered.READY
    odd = Odd()
    odd.grad = None
    example.params[-1].grad = None
    torch.utils.swap_tensors(example.params[-1], odd)
    staged = [torch.ones(1) for _ in range(4097)]
    assert example.plan.gather(example.table(0), threads, staged) == 2


# ---- while the GIL is let go ----


class Memory(ctypes.Array):
    """Of a tensor, that tells when it is gone."""

    _type_, _length_ = ctypes.c_float, 1 << 18


def test_tensors_are_held_while_the_gil_is_let_go():
    """Another thread takes gradients, states and parameters' memory away in the middle of a launch."""
    memories = [Memory() for _ in range(3)]
    seen = [weakref.ref(memory) for memory in memories]
    alive = []

    def kernel(pointers, scalars, length):
        (param,) = example.params
        param.grad, param.data = None, torch.ones(2)
        example.states[0].clear()
        gc.collect()
        alive.append([ref() is not None for ref in seen])
        if all(alive[-1]):
            subtract(pointers, scalars, 1)
        with pytest.raises(RuntimeError, match="another thread is in a step of this optimizer"):
            example.plan.gather(example.table(0), 1, None)

    example = Example(kernel, tensors=[torch.frombuffer(memories[0], dtype=torch.float32)])
    example.params[0].grad = torch.frombuffer(memories[1], dtype=torch.float32)
    example.states[0]["average"] = torch.frombuffer(memories[2], dtype=torch.float32)
    del memories
    example.gathered().plan.launch(example.table(0), 1)
    gc.collect()
    assert alive == [[True] * 3] and [ref() for ref in seen] == [None] * 3
    assert example.params[0].tolist() == [1.0, 1.0]


RUN = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64, *[ctypes.c_void_p] * 2)


def test_the_tensors_of_passes_are_held(monkeypatch):
    """Likewise, where the passes of a rule run."""
    memory, real, alive = Memory(), reducing.passes, []
    seen = weakref.ref(memory)
    param = torch.nn.Parameter(torch.ones(512, 512))
    param.grad = torch.frombuffer(memory, dtype=torch.float32).view(512, 512).fill_(1.0)
    del memory

    def run_passes(*arguments):
        if alive:
            param.grad = None
            optimizer.state[param]["row_var"] = torch.zeros(1)
            gc.collect()
        alive.append(seen() is not None)
        RUN(ctypes.cast(cpp.passes_driver().library.passes_run, ctypes.c_void_p).value)(*arguments)

    run = RUN(run_passes)
    address = ctypes.cast(run, ctypes.c_void_p).value
    monkeypatch.setattr(reducing, "passes", lambda rule: (*real(rule)[:2], address, *real(rule)[3:]))
    optimizer = compiledopt.Adafactor([param], compiled=True)
    optimizer.step()
    optimizer.step()
    assert alive == [True, True] and seen() is None


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_last_of_many_parameters_is_updated(threads):
    """Shares of 5001 parameters do not end evenly: each takes part, with its step, once."""
    torch.set_num_threads(threads)
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(5001)]
    optimizer = compiledopt.AdamW(params, lr=0.5, weight_decay=0.0, compiled=True)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(1)
        optimizer.step()
    assert flat(params).unique().tolist() == [flat(params)[0]] and abs(flat(params)[0].item()) < 1e-4
    assert {optimizer.state[param]["step"].item() for param in params} == {2.0}
    assert {param._version for param in params} == {2}


# ---- without memory ----


def native_calls(example):
    """(function, arguments) of every entry of a plan that asks for memory, in an order in which they succeed."""
    plan, table = example.plan, example.table(0)
    summed = squares_kernel(torch.float32).address
    return {
        "gather": (plan.gather, (table, 2, None)),
        "active": (plan.active, ()),
        "tables": (plan.tables, ()),
        "shapes": (plan.shapes, ()),
        "sums": (plan.sums, (summed, (1,), 1, None, 0, 2)),
        "launch": (plan.launch, (table, 2)),
    }


@pytest.mark.parametrize("name", ["active", "tables", "shapes"])
def test_python_without_memory(name):
    """Whichever of its allocations fails, MemoryError it is, and the next call succeeds."""
    allocator = pytest.importorskip("_testcapi", reason="this Python has no allocator that fails on demand")
    function, arguments = native_calls(Example().gathered())[name]
    expected, failed = function(*arguments), 0
    for index in range(40):
        allocator.set_nomemory(index, index + 1)
        try:
            function(*arguments)
        except MemoryError:
            failed += 1
        finally:
            allocator.remove_mem_hooks()
    assert failed and function(*arguments) == expected


# operator new, of which the n-th call from now on fails.
STARVE = """
#include <atomic>
#include <cstdlib>
#include <new>
static std::atomic<long> left{-1};
extern "C" bool fail_at(long n) { return left.exchange(n) < 0; }
void* operator new(std::size_t size) {
  if (left >= 0 && left-- == 0) throw std::bad_alloc();
  if (void* made = std::malloc(size ? size : 1)) return made;
  throw std::bad_alloc();
}
extern "C" void run() {}
"""


def test_cpp_without_memory(tmp_path):
    """The same of C++'s own allocations, a launch has none, and what follows is whole; in a process of its own."""
    if cache.compiler() is None or sys.platform != "linux":
        pytest.skip("operator new is replaced by a library that is compiled and preloaded, as Linux does")
    library = tmp_path / "starve.so"
    library.write_bytes(cpp.build("starve", STARVE, ["-O1", "-std=c++17"]))
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "starved.py"), str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    failures = dict(re.findall(r"(\w+): (\d+)", done.stdout))
    without = {name for name, count in failures.items() if count == "0"}
    assert without == {"active", "launch", "run"} and len(failures) == 10, failures


# ---- sanitizers ----


def runtime_path(name):
    """Where g++ has it; the name alone where it has not."""
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def sanitized(tmp_path, kind, runtimes, *more):
    """Runs sanitized.py with these runtimes preloaded. Returns: (status, what it wrote)."""
    preloaded = ":".join(map(runtime_path, runtimes))
    environment = {**os.environ, "LD_PRELOAD": preloaded, "CXX": "g++", "COMPILEDOPT_CACHE_DIR": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment |= {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1"}
    # The thread sanitizer of g++ 12 knows no addresses as random as Linux makes them by now.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    command = [*fixed, sys.executable, str(HERE / "sanitized.py"), kind, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "runtimes", "words"),
    [
        ("address", ("libasan.so", "libubsan.so", "libstdc++.so"), "AddressSanitizer: heap-use-after-free"),
        ("thread", ("libtsan.so", "libstdc++.so"), "ThreadSanitizer: data race"),
    ],
)
def test_sanitizers_have_nothing_to_say(tmp_path, kind, runtimes, words):
    """Launcher, passes and kernels, built with them: every kind of step; and they say something where something is broken."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("the sanitizers are g++'s, preloaded as Linux does")
    missing = [name for name in runtimes if runtime_path(name) == name]
    if missing:
        pytest.skip(f"g++ brings no {missing}")
    status, said = sanitized(tmp_path, kind, runtimes, "broken")
    assert status != 0 and words in said and "no report" not in said, said[-3000:]
    status, said = sanitized(tmp_path, kind, runtimes)
    assert status == 0 and said.endswith("no report\n"), said[-6000:]
