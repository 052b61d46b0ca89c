"""Run by test_native.py with a sanitizer's runtime preloaded: builds the native code with it and steps what users step.

argv: "address" (and undefined behaviour) or "thread"; "broken" as well, where it is to report something.
"""

import sys
import threading

import torch
from catalog import CASES, CATALOG
from helpers import Gradients, flat, parameters, run

import compiledopt
from compiledopt.backends.cpp import kernels as cpp

# libgomp is not built for the thread sanitizer, which does not see what its teams wait for. This one it sees.
TEAM = """
#include <pthread.h>
#include <thread>
#include <vector>
namespace own {
thread_local int thread = 0, team = 1;
thread_local pthread_barrier_t* barrier = nullptr;
inline void parallel(void (*function)(void*), void* data, unsigned threads, unsigned) {
  pthread_barrier_t met;
  pthread_barrier_init(&met, nullptr, threads);
  std::vector<std::thread> others;
  const auto work = [&](int index) {
    thread = index, team = int(threads), barrier = &met;
    function(data);
    thread = 0, team = 1, barrier = nullptr;
  };
  for (unsigned index = 1; index < threads; ++index) others.emplace_back(work, int(index));
  work(0);
  for (auto& other : others) other.join();
  pthread_barrier_destroy(&met);
}
inline void wait() { pthread_barrier_wait(barrier); }
inline int thread_number() { return thread; }
inline int threads() { return team; }
}
"""
REPLACED = {
    "GOMP_parallel(call": "own::parallel(call",
    "GOMP_barrier()": "own::wait()",
    "omp_get_thread_num()": "own::thread_number()",
    "omp_get_num_threads()": "own::threads()",
}


def build_with(*flags):
    cpp.KERNEL_FLAGS = (*cpp.KERNEL_FLAGS, "-fno-omit-frame-pointer", *flags)
    cpp.LAUNCHER_FLAGS = (*cpp.LAUNCHER_FLAGS, "-fno-omit-frame-pointer", *flags)


def with_own_team():
    plain = cpp._with_runtime

    def source(*files):
        text = plain(*files)
        declared = text[text.index('extern "C" {\nvoid GOMP_parallel') : text.index("int omp_get_num_threads();\n}")]
        text = text.replace(f"{declared}int omp_get_num_threads();\n}}", TEAM)
        for name, own in REPLACED.items():
            assert name in text or name == "GOMP_barrier()"
            text = text.replace(name, own)
        return text

    cpp._with_runtime = source


def compare(make, torchs, dtype=torch.float32, shapes=((40, 50), (3001,), (), (0,), (1, 7)), threads=1, gradient=None, **more):
    torch.set_num_threads(threads)
    results = []
    for maker in (torchs, make):
        params = parameters(dtype, shapes)
        optimizer = maker(params)
        for step in range(4):
            Gradients(dtype, **more).set(params, step)
            for param in params:
                if gradient is not None and param.grad is not None:
                    param.grad = gradient(param.grad)
            optimizer.step()
        results.append(flat(params))
    assert optimizer.executor == "compiled"
    assert (results[0] - results[1]).abs().max() < 1e-4


def case(algorithm, label):
    found = next(c for one in (CASES, CATALOG[algorithm].cases) for c in one if (c.algorithm, c.label) == (algorithm, label))
    return found.ours, found.torch


LARGE = ((700, 1000), (13,), (300, 900), (1, 1))


def address():
    build_with("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for label in ("default", "all"):
        compare(*case("AdamW", label))
    compare(*case("SGD", "momentum"))
    compare(*case("Adafactor", "all"), shapes=((40, 50), (3001,), (2, 3, 4)))
    compare(*case("AdamW", "all"), torch.complex64)
    for threads in (1, 2, 3):
        compare(*case("AdamW", "all"), shapes=LARGE, threads=threads)
        compare(*case("Adafactor", "all"), shapes=LARGE, threads=threads)
        compare(*case("AdamW", "all"), shapes=((3,),) * 5001, threads=threads, skip=True)
    compare(*case("AdamW", "all"), skip=True)
    compare(*case("AdamW", "all"), shapes=((40, 50), (7, 9)), gradient=lambda g: g.t().contiguous().t())
    clipped(LARGE)


def clipped(shapes):
    def torchs(params):
        optimizer = torch.optim.AdamW(params)
        optimizer.register_step_pre_hook(lambda *_: clip(params))
        return optimizer

    def clip(params):
        torch.nn.utils.clip_grad_norm_(params, 0.5)

    compare(lambda params: compiledopt.AdamW(params, max_grad_norm=0.5, compiled=True), torchs, shapes=shapes, threads=2)


def thread():
    build_with("-fsanitize=thread")
    with_own_team()
    expected = parameters(shapes=LARGE)
    run(compiledopt.AdamW(expected, compiled=True), expected, Gradients(), range(6))
    errors = []

    def work(params, kind):
        try:
            run(kind(params, compiled=True), params, Gradients(), range(6))  # the last four natively
        except BaseException as error:
            errors.append(error)

    torch.set_num_threads(2)
    found = [parameters(shapes=LARGE) for _ in range(2)]
    workers = [threading.Thread(target=work, args=(params, compiledopt.AdamW)) for params in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors
    for params in found:
        assert torch.equal(flat(params), flat(expected))
    at_once()
    compare(*case("Adafactor", "all"), shapes=LARGE, threads=2)
    compare(*case("AdamW", "all"), shapes=((3,),) * 5001, threads=2, skip=True)
    clipped(LARGE)


def at_once():
    """Several threads step one optimizer: each step is taken whole or refused."""
    params = [torch.nn.Parameter(torch.zeros(1 << 22)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = compiledopt.SGD(params, lr=1.0, compiled=True)
    for param in params:
        param.grad = torch.full_like(param, -1.0)
    for _ in range(4):
        optimizer.step()
    refused = []

    def work():
        for _ in range(10):
            try:
                optimizer.step()
            except RuntimeError as error:
                refused.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all("another thread is in a step" in words for words in refused), refused
    assert flat(params).unique().tolist() == [4.0 + 30 - len(refused)]


# What each sanitizer must report, to show that it is at work.
BROKEN = {
    "address": "void broken() { volatile int* a = new int[4]; delete[] a; a[0] = 1; }",
    "thread": """#include <thread>
void broken() { int a = 0; std::thread other([&] { a = 1; }); a = 2; other.join(); volatile int b = a; }""",
}


def broken(kind):
    build_with(f"-fsanitize={kind}")
    source = f'#include <cstdint>\n{BROKEN[kind]}\nextern "C" void run() {{ broken(); }}\n'
    cpp._build_kernel("broken", source).library.run()


if __name__ == "__main__":
    _, kind, *more = sys.argv
    broken(kind) if more else {"address": address, "thread": thread}[kind]()
    print("no report")
