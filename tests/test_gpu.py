"""What needs a GPU: parity, captures and replays, no synchronization, launches. Skipped where there is none.

About 80 kernels are compiled, one to two seconds each; `-n 12` (pytest-xdist) shares them out. Nothing is tuned but in the
test of that.
"""

import copy
import gc

import pytest
import torch
from catalog import CASES, CATALOG, PUBLISHED, one_per_algorithm, one_per_kind, with_and_without_count
from gpu_stand_ins import (
    DEVICE,
    REHEARSED,
    UNREHEARSED,
    captured,
    fill_gradients,
    needs_a_gpu,
    on_gpu,
    set_gradients,
    stand_in,
    there,
)
from helpers import Gradients, flat, parameters, rms, same, snapshot

import compiledopt
from compiledopt import schedules
from compiledopt.backends import devices as places
from compiledopt.backends.triton import batch as devices
from compiledopt.backends.triton import capturable as capturables
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import readiness, tables, tuning

pytestmark = pytest.mark.gpu
needs_a_gpu()
SHAPES = [(40, 50), (3001,), (), (0,), (1, 7), (2048,), (128, 64)]
REPLAYED = [case for case in CASES if case.label in ("default", "all", "tensor_lr", "amsgrad", "momentum")]
DTYPES = [(case, dtype) for case in one_per_algorithm() for dtype in (torch.float64, torch.float16, torch.bfloat16)]
DTYPES += [(case, torch.complex64) for case in one_per_algorithm() if case.algorithm == "AdamW"]  # two reals, for all alike
BOTH = pytest.mark.parametrize("capturable", [False, True])


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    monkeypatch.setenv("COMPILEDOPT_TUNE", "0")
    if REHEARSED:
        stand_in(monkeypatch)


def kwargs_of(case, dtype=torch.float32):
    kwargs = {k: v for k, v in case.kwargs(dtype).items() if k != "capturable"}
    return there(kwargs)


def pair(name="AdamW", shapes=SHAPES, **options):
    """torch's own, on the same device, and ours."""
    reference, mine = on_gpu(parameters(shapes=shapes)), on_gpu(parameters(shapes=shapes))
    known = {k: v for k, v in options.items() if k != "capturable"}
    expected = getattr(torch.optim, name)(reference, foreach=False, **known)
    return expected, reference, getattr(compiledopt, name)(mine, compiled=True, **options), mine


def both_steps(expected, reference, optimizer, mine, step):
    for one, params in ((expected, reference), (optimizer, mine)):
        set_gradients(params, step)
        one.step()


def near(mine, reference):
    torch.testing.assert_close(flat(p.cpu() for p in mine), flat(p.cpu() for p in reference), rtol=1e-4, atol=1e-5)


# ---- parity ----


def against_the_host(case, dtype, steps):
    """One run of the reference on the host serves both kinds of batch."""
    reference = parameters(dtype, SHAPES)
    start, optimizers, models = flat(reference), [], []
    kwargs = {k: v for k, v in case.kwargs(dtype).items() if k != "capturable"}
    algorithm = getattr(compiledopt, case.algorithm)
    expected = algorithm(reference, foreach=False, **kwargs)
    for capturable in (False, True):
        models.append(on_gpu(parameters(dtype, SHAPES)))
        optimizers.append(algorithm(models[-1], compiled=True, capturable=capturable, **kwargs_of(case, dtype)))
    for step in range(steps):
        Gradients(dtype, skip=True).set(reference, step)
        expected.step()
        for optimizer, params in zip(optimizers, models, strict=True):
            for param, other in zip(params, reference, strict=True):
                param.grad = None if other.grad is None else other.grad.to(DEVICE)
            optimizer.step()
    effect = rms(flat(reference) - start)
    tolerance = 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    for optimizer, params in zip(optimizers, models, strict=True):
        assert optimizer.executor == "compiled"
        assert effect > 1e-3 and rms(flat(p.cpu() for p in params) - flat(reference)) <= tolerance * effect
        for p, q in zip(reference, params, strict=True):
            assert list(expected.state[p]) == list(optimizer.state[q])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_cpu(case):
    against_the_host(case, torch.float32, 6)


@pytest.mark.parametrize(("case", "dtype"), DTYPES, ids=str)
def test_other_dtypes_against_the_cpu(case, dtype):
    against_the_host(case, dtype, 4)


@BOTH
def test_pointers_that_are_not_aligned(capturable):
    """A vector load from there would be an error of the device."""
    expected, reference, optimizer, mine = pair(capturable=capturable, shapes=[(16,), (2048,)])
    for params, one in ((reference, expected), (mine, optimizer)):
        whole = torch.zeros(2049, device=DEVICE)
        params.append(torch.nn.Parameter(whole[1:]))
        one.add_param_group({"params": params[-1:]})
    for step in range(3):
        both_steps(expected, reference, optimizer, mine, step)
        mine[0].grad = torch.ones(17, device=DEVICE)[1:]
        reference[0].grad = torch.ones(16, device=DEVICE)
        expected.step()
        optimizer.step()
    near(mine, reference)


# ---- captures ----


@pytest.mark.parametrize("case", REPLAYED, ids=str)
def test_capture_and_replay_under_a_schedule(case):
    reference, mine = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    algorithm = getattr(compiledopt, case.algorithm)
    pair = [algorithm(params, capturable=True, **kwargs_of(case)) for params in (reference, mine)]
    for params in (reference, mine):
        for index, param in enumerate(params):
            generator = torch.Generator(DEVICE).manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator, device=DEVICE)

    def change_lr(optimizer):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].mul_(0.9)
            else:
                group["lr"] *= 0.9
        optimizer.refresh()

    pair[1].step()
    pair[0].step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pair[1].step()
    for _ in range(5):
        for optimizer in pair:
            change_lr(optimizer)
        pair[0].step()
        graph.replay()
    torch.cuda.synchronize()
    effect = rms(flat(p.cpu() for p in reference) - flat(parameters(shapes=SHAPES)))
    assert effect > 1e-3
    assert (flat(p.cpu() for p in mine) - flat(p.cpu() for p in reference)).abs().max() <= 1e-4 * effect


@pytest.mark.parametrize("algorithm", [*with_and_without_count(), *one_per_kind(lambda one: one.reduces)], ids=str)
def test_schedule_clipping_and_average_under_replay(algorithm):
    """The host does nothing between replays; rate, norm and averages are right when they are read."""
    reference, mine = on_gpu(parameters(shapes=SHAPES[-2:])), on_gpu(parameters(shapes=SHAPES[-2:]))
    lr = 0.1 * schedules.sequential([schedules.linear(0.1, 1.0, 3), schedules.cosine_annealing(6)], [3])
    options = {"lr": lr, "max_grad_norm": 5.0, **({} if algorithm.reduces else {"ema_decay": 0.9})}
    expected, optimizer = (algorithm.ours(p, capturable=True, **options) for p in (reference, mine))
    for params in (reference, mine):
        for index, param in enumerate(params):
            generator = torch.Generator(DEVICE).manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator, device=DEVICE)
    expected.step()
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(6):
        expected.step()
        graph.replay()
    torch.cuda.synchronize()
    assert optimizer.param_groups[0]["lr"] == expected.param_groups[0]["lr"] == pytest.approx(lr(7), rel=1e-9)
    torch.testing.assert_close(optimizer.grad_norm, expected.grad_norm)
    for p, q in zip(reference, mine, strict=True):
        torch.testing.assert_close(q, p)
    for a, b in zip(optimizer.ema_parameters(), expected.ema_parameters(), strict=True):
        torch.testing.assert_close(a, b)


@UNREHEARSED
def test_whole_training_step_in_a_graph():
    """Gradients made inside the capture have addresses of their own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).to(DEVICE)
    twin = copy.deepcopy(model)
    optimizer = compiledopt.AdamW(model.parameters(), lr=1e-2, capturable=True)
    reference = torch.optim.AdamW(twin.parameters(), lr=1e-2, foreach=False)
    x, y = torch.randn(32, 64, device=DEVICE), torch.randn(32, 8, device=DEVICE)

    def train(net, opt):
        opt.zero_grad(set_to_none=True)
        (net(x) - y).square().mean().backward()
        opt.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(model, optimizer)
    for _ in range(10):
        graph.replay()
    for _ in range(13):
        train(twin, reference)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


@UNREHEARSED
def test_capture_after_one_step_with_gradients_made_inside():
    """`first` is over, and nothing can be uploaded any more."""
    expected, reference, optimizer, mine = pair("SGD", lr=0.1, momentum=0.9, dampening=0.5, capturable=True)
    both_steps(expected, reference, optimizer, mine, 0)

    def step():
        for param in mine:
            param.grad = param.detach() * 0.5
        optimizer.step()

    graph = captured(step, step)
    for _ in range(3):
        graph.replay()
    for _ in range(6):
        for param in reference:
            param.grad = param.detach() * 0.5
        expected.step()
    near(mine, reference)


def test_steps_between_a_capture_and_its_first_replay():
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=True)
    both_steps(expected, reference, optimizer, mine, 0)
    graphs = []
    for _ in range(2):

        def step():
            for param in mine:
                param.grad = torch.empty_like(param)
            optimizer.step()

        graphs.append((captured(step), [param.grad for param in mine]))
        for number in (1, 2):
            set_gradients(reference, number)
            fill_gradients(mine, number)
            expected.step()
            optimizer.step()
        near(mine, reference)
    for graph, grads in graphs:
        set_gradients(reference, 3)
        for param, grad in zip(mine, grads, strict=True):
            param.grad = grad
        fill_gradients(mine, 3)
        expected.step()
        graph.replay()
        near(mine, reference)


def test_what_a_graph_reads_is_kept():
    """The rate that was a tensor, and tables that are exchanged; what is freed is taken again at once."""
    rate = torch.tensor(0.05, device=DEVICE)
    expected, reference, optimizer, mine = pair("SGD", lr=0.05, capturable=True)
    optimizer.param_groups[0]["lr"] = rate  # not in the constructor: the defaults would keep it
    both_steps(expected, reference, optimizer, mine, 0)
    graph = captured(optimizer.step)
    grads = [param.grad for param in mine]
    del rate
    optimizer.param_groups[0]["lr"] = expected.param_groups[0]["lr"] = 0.01
    both_steps(expected, reference, optimizer, mine, 1)
    gc.collect()
    scratch = [torch.full((64,), -1.0, device=DEVICE) for _ in range(100)]
    expected.param_groups[0]["lr"] = 0.05
    set_gradients(reference, 0)
    expected.step()
    graph.replay()
    near(mine, reference)
    del scratch, grads


def test_a_float_that_becomes_a_tensor_after_a_capture():
    expected, reference, optimizer, mine = pair("SGD", lr=0.5, capturable=True)
    both_steps(expected, reference, optimizer, mine, 0)
    graph = captured(optimizer.step)
    for dtype in (torch.float64, torch.float32):
        expected.param_groups[0]["lr"] = 0.125
        optimizer.param_groups[0]["lr"] = torch.tensor(0.125, dtype=dtype, device=DEVICE)
        optimizer.refresh()
        expected.step()
        graph.replay()
        expected.step()
        optimizer.step()
        near(mine, reference)


def test_captures_that_are_refused():
    def attempt(optimizer, words):
        with pytest.raises(RuntimeError, match=words):
            captured(optimizer.step)

    params = on_gpu(parameters(shapes=[(64,), (32,)]))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = compiledopt.AdamW(params)
    optimizer.step()
    attempt(optimizer, "capturable")
    attempt(compiledopt.AdamW(params, capturable=True), "run step\\(\\) once before")
    optimizer = compiledopt.AdamW(params, lr=torch.tensor(0.1, device=DEVICE), capturable=True)
    optimizer.step()
    for change, words in (
        ({"lr": torch.tensor(0.1, device=DEVICE)}, "tensors as numbers"),
        ({"lr": torch.tensor(0.1, device=DEVICE, dtype=torch.float64)}, "tensors as numbers"),
        ({"lr": 0.1}, "tensors as numbers"),
        ({"weight_decay": 0.3}, "refresh\\(\\)"),
    ):
        optimizer.param_groups[0].update(change)
        attempt(optimizer, words)
        optimizer.step()
        captured(optimizer.step)
    params[1].grad = None
    attempt(optimizer, "None")
    torch.cuda.synchronize()


@UNREHEARSED
@BOTH
def test_reduce_overhead_leaves_the_step_out_of_its_graph(capturable):
    """A float that changes is followed, with capturable or without."""
    expected, reference, optimizer, mine = pair(shapes=SHAPES[-2:], lr=0.01, capturable=capturable)

    def train(x):
        optimizer.zero_grad()
        with torch.no_grad():
            for param in mine:
                param.grad = param * x
        optimizer.step()

    both_steps(expected, reference, optimizer, mine, 0)
    compiled = torch.compile(train, mode="reduce-overhead", fullgraph=True)
    for step in range(6):
        expected.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
        x = torch.tensor(float(step + 1), device=DEVICE)
        compiled(x)
        for param in reference:
            param.grad = param.detach() * x
        expected.step()
    near(mine, reference)


# ---- streams and launches ----


@BOTH
def test_steps_on_one_stream_after_the_other(capturable):
    """The tables of a step are not given to others while a step on another stream reads them."""
    reference, mine = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    expected, optimizer = torch.optim.AdamW(reference, lr=0.05), compiledopt.AdamW(mine, lr=0.05, capturable=capturable)
    side, main, on_host = torch.cuda.Stream(), torch.cuda.current_stream(), parameters(shapes=SHAPES)
    for step in range(8):
        Gradients().set(on_host, step)
        for params in (reference, mine):
            for param, host in zip(params, on_host, strict=True):
                param.grad = host.grad.to(DEVICE)
        expected.step()
        side.wait_stream(main)
        with torch.cuda.stream(side if step % 2 else main):
            optimizer.step()
            scratch = [torch.full((64,), -1, device=DEVICE) for _ in range(50)]  # what was let go is taken again at once
        main.wait_stream(side)
        del scratch
    torch.cuda.synchronize()
    effect = rms(flat(p.cpu() for p in reference) - flat(parameters(shapes=SHAPES)))
    assert (flat(p.cpu() for p in mine) - flat(p.cpu() for p in reference)).abs().max() <= 1e-4 * effect


@UNREHEARSED
@BOTH
def test_launches(capturable):
    params = on_gpu(parameters(shapes=SHAPES * 10))
    optimizer = compiledopt.AdamW(params, capturable=capturable)
    for param in params:
        param.grad = torch.randn_like(param)
    for _ in range(3):
        optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if "Memcpy" not in event.name and event.device_type.name == "CUDA"]
    assert len(kernels) == (2 if capturable else 1), [event.name for event in kernels]
    assert optimizer._explanation().launches_per_step == len(kernels)


# ---- numbers and tables ----


def test_numbers_that_change_what_they_are():
    """Of a captured step's kernel they are read where they are, so it must know what it finds there."""
    expected, reference, optimizer, mine = pair(lr=0.5, capturable=True)
    there = [torch.tensor(0.25), torch.tensor([0.125], dtype=torch.float64), torch.tensor(1)]
    values = [0.5, *[value.to(DEVICE) for value in there], 0.5, torch.tensor(0.25), 0.5]
    for step, value in enumerate(values):
        expected.param_groups[0]["lr"], optimizer.param_groups[0]["lr"] = float(value), value
        both_steps(expected, reference, optimizer, mine, step)
        near(mine, reference)


@BOTH
def test_no_gradient_at_all(capturable):
    """In a first step with loaded states, and between others."""
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=capturable)
    both_steps(expected, reference, optimizer, mine, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    for step in range(1, 3):
        for param in mine:
            param.grad = None
        optimizer.step()
        both_steps(expected, reference, optimizer, mine, step)
        near(mine, reference)


@BOTH
def test_out_of_memory_in_any_upload(monkeypatch, capturable):
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=capturable)
    both_steps(expected, reference, optimizer, mine, 0)
    count, limit = [0], [0]

    def short(*given, upload=places.upload):
        count[0] += 1
        if count[0] > limit[0]:
            raise torch.OutOfMemoryError("no room")
        return upload(*given)

    for module in (devices, tables, capturables):
        monkeypatch.setattr(module, "upload", short)
    failures = 0
    for step in range(1, 7):
        for params in (reference, mine):
            set_gradients(params, step)
            params[step % 3].grad = None
        before, count[0], limit[0] = snapshot(optimizer), 0, step - 1
        try:
            optimizer.step()
        except torch.OutOfMemoryError:
            failures += 1
            assert same(to_host(before), to_host(snapshot(optimizer)))
            limit[0] = 1 << 30
            optimizer.step()
        expected.step()
        near(mine, reference)
    assert failures > 1


def to_host(value):
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: to_host(one) for name, one in value.items()}
    return [to_host(one) for one in value] if isinstance(value, (list, tuple)) else value


@BOTH
def test_nothing_synchronizes(capturable):
    params = on_gpu(parameters(shapes=SHAPES))
    there = {name: torch.tensor(0.1, device=DEVICE) for name in ("lr", "weight_decay")} if capturable else {}
    optimizer = compiledopt.AdamW(params, capturable=capturable, **there)
    momentum = compiledopt.SGD(
        params, capturable=capturable, **({**there, "momentum": torch.tensor(0.9, device=DEVICE)} if capturable else {})
    )
    set_gradients(params, 0)
    for _ in range(3):
        optimizer.step()
        momentum.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for one in (optimizer, momentum):
                lr = one.param_groups[0]["lr"]
                one.param_groups[0]["lr"] = lr.mul_(0.9) if capturable else lr * 0.9
                one.step()
            params[0].grad = None
    finally:
        torch.cuda.set_sync_debug_mode("default")


@BOTH
def test_a_first_step_where_waiting_is_refused(monkeypatch, tmp_path, capturable):
    """A kernel is tried all the same, which waits once; the mode stays, also for what brings pointers in a later step."""
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(readiness, "_ready", {})
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=capturable)
    for step in range(5):
        for params in (reference, mine):
            set_gradients(params, step)
        expected.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
            assert REHEARSED or torch.cuda.get_sync_debug_mode() == 2
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert optimizer.executor == "compiled"
    near(mine, reference)


# ---- modes ----


@BOTH
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 0.5, "ema_decay": 0.9}], ids=["plain", "around"])
def test_a_first_step_under_inference_mode(capturable, more):
    reference, mine = (on_gpu(parameters(shapes=SHAPES)) for _ in range(2))
    expected = compiledopt.AdamW(reference, foreach=False, lr=0.05, **more)
    optimizer = compiledopt.AdamW(mine, compiled=True, lr=0.05, capturable=capturable, **more)
    for step in range(4):
        for one, params in ((expected, reference), (optimizer, mine)):
            set_gradients(params, step)
            one.param_groups[0]["lr"] *= 0.9
            with torch.inference_mode(one is optimizer and step in (0, 2)):
                one.step()
    near(mine, reference)


def test_capturable_switched_on_under_inference_mode():
    expected, reference, optimizer, mine = pair(lr=0.05)
    for step in range(5):
        optimizer.param_groups[0]["capturable"] = step > 0
        for one, params in ((expected, reference), (optimizer, mine)):
            set_gradients(params, step)
            with torch.inference_mode(one is optimizer and step == 1):
                one.step()
    near(mine, reference)


@BOTH
def test_a_default_device(capturable):
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=capturable)
    for step in range(3):
        for one, params in ((expected, reference), (optimizer, mine)):
            set_gradients(params, step)
            with torch.device(DEVICE):
                one.step()
    near(mine, reference)


# ---- kernels ----


@UNREHEARSED
@BOTH
def test_a_kernel_that_the_device_refuses(monkeypatch, capturable):
    """More threads than a block can have: an eager executor, which says why."""
    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "config", lambda *_: (1024, 64))
    params = on_gpu(parameters(shapes=SHAPES))
    optimizer = compiledopt.AdamW(params, lr=0.05, capturable=capturable)
    set_gradients(params, 0)
    with pytest.warns(UserWarning, match="the kernel cannot run on cuda"):
        optimizer.step()
    assert optimizer.executor == "foreach"
    torch.cuda.synchronize()


def test_a_scalar_kernel_that_cannot_be_had(monkeypatch):
    from triton.runtime.errors import PTXASError

    def refuse(*_):
        raise PTXASError("no scalar part")

    monkeypatch.setattr(readiness, "_ready", {})
    with monkeypatch.context() as patch:
        patch.setattr(capturables.RowsLaunch, "__call__", refuse)
        expected, reference, _, mine = pair(lr=0.05)
        optimizer = compiledopt.AdamW(mine, lr=0.05, capturable=True)
        set_gradients(mine, 0)
        with pytest.warns(UserWarning, match="no scalar part"):
            optimizer.step()
    assert optimizer.executor == ("for-loop" if REHEARSED else "foreach")
    set_gradients(reference, 0)
    expected.step()
    near(mine, reference)


def test_more_tensors_than_a_launch_takes():
    names = ", ".join(f"s{i}" for i in range(15))
    exec(f"def Many(param, grad, {names}, *, lr=0.1):\n    return param - lr * grad, {names}\n", found := {})
    param = torch.nn.Parameter(torch.ones(4, device=DEVICE))
    param.grad = torch.ones_like(param)
    with pytest.warns(UserWarning, match="at most 16"):
        compiledopt.define(found["Many"])([param]).step()
    torch.testing.assert_close(param.detach().cpu(), torch.full((4,), 0.9))


@UNREHEARSED
def test_tuning(monkeypatch, tmp_path):
    """Every candidate is timed, more than once, and the choice is kept on disk."""
    monkeypatch.delenv("COMPILEDOPT_TUNE")
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", {})
    program = compiledopt.rules.traced.traced(
        compiledopt.SGD.rule, compiledopt.SGD([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    ).program
    kernel, place, times = triton.kernel(program, [torch.float32] * 2), torch.device("cuda", torch.cuda.current_device()), []

    def timer():
        once = readiness.timer(kernel, [torch.float32] * 2, place)
        return lambda candidate: times.append((candidate, once(candidate))) or times[-1][1]

    chosen = tuning.config(kernel.source, place, timer)
    assert chosen in tuning.CANDIDATES and len(times) == tuning.ROUNDS * len(tuning.CANDIDATES)
    assert all(milliseconds > 0.01 for _, milliseconds in times), "1.6e9 bytes"
    assert list(tmp_path.glob("*.json"))


# ---- around ----


def test_grad_scaler():
    params, plain = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    optimizer, reference = compiledopt.AdamW(params, capturable=True, fused=True), compiledopt.AdamW(plain, capturable=True)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**8)
    for step in range(4):
        for one in (params, plain):
            for index, param in enumerate(one):
                generator = torch.Generator(DEVICE).manual_seed(10 * step + index)
                param.grad = torch.randn(param.shape, generator=generator, device=DEVICE)
        for param in params:
            param.grad = scaler.scale(param.grad)
        if step == 2:
            params[0].grad[0, 0] = torch.inf
        else:
            reference.step()
        scaler.step(optimizer)
        scaler.update()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)
    assert all(optimizer.state[p]["step"] == 3 for p in params)


def test_parameters_on_cpu_and_gpu_in_one_optimizer():
    params = [torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(100, device=DEVICE))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = compiledopt.AdamW(params)
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), params[1].detach().cpu())


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
def test_the_rules_that_are_not_elementwise(executor):
    for one in one_per_kind(lambda one: one.rule.dense and not one.elementwise):
        reference = parameters(shapes=[(40, 50), (40, 50), *[(7,)] * one.takes_vectors])
        mine = on_gpu(reference)
        options = {"foreach": executor == "foreach"}
        expected, optimizer = one.counterpart(reference), one.ours(mine, **options)
        start = flat(reference)
        for step in range(5):
            Gradients().set(reference, step)
            expected.step()
            for p, q in zip(reference, mine, strict=True):
                q.grad = p.grad.to(DEVICE)
            optimizer.step()
        effect = rms(flat(reference) - start)
        assert rms(flat(p.cpu() for p in mine) - flat(reference)) <= (0.1 if one.multiplies else 1e-3) * effect
    params = [torch.nn.Parameter(torch.randn(20, 4, device=DEVICE))]
    optimizer = compiledopt.SparseAdam(params)
    params[0].grad = torch.ones(20, 4, device=DEVICE).to_sparse(1)
    optimizer.step()


@BOTH
@pytest.mark.parametrize("name", [name for name, one in {**CATALOG, **PUBLISHED}.items() if one.takes("ns_steps")])
def test_products_of_stacks(name, capturable, monkeypatch):
    """Kernels around torch's products, against the same on tensors; a steady step asks for no memory; with capturable a graph
    replays, and follows a float."""
    from compiledopt.algorithms import muon

    monkeypatch.setattr(muon, "product_dtype", lambda device: torch.float32)
    shapes = [(64, 128), (128, 64), (64, 128), (33, 70), (64, 64)]
    models = [on_gpu(parameters(shapes=shapes)) for _ in range(2)]
    made, start = getattr(compiledopt, name), flat(models[0])
    optimizers = made(models[0], lr=0.05, foreach=True), made(models[1], lr=0.05, compiled=True, capturable=capturable)
    for step in range(3):
        for optimizer, params in zip(optimizers, models, strict=True):
            set_gradients(params, step, skip=step == 1)
            optimizer.step()
    for optimizer, params in zip(optimizers, models, strict=True):
        set_gradients(params, 3)
        optimizer.step()
    before = 0 if REHEARSED else torch.cuda.memory_stats()["allocation.all.allocated"]
    optimizers[1].step()
    assert before == (0 if REHEARSED else torch.cuda.memory_stats()["allocation.all.allocated"])
    optimizers[0].step()
    if capturable:
        graph = captured(optimizers[1].step)
        for lr in (0.02, 0.01):
            optimizers[0].param_groups[0]["lr"] = optimizers[1].param_groups[0]["lr"] = lr
            optimizers[1].refresh()
            graph.replay()
            optimizers[0].step()
    effect = rms(flat(models[0]) - start)
    assert effect > 0.01 and rms(flat(models[1]) - flat(models[0])) <= 0.01 * effect


@BOTH
@pytest.mark.parametrize(
    "kept", [{"state_dtype": "int8"}, {"state_dtype": {"exp_avg": "int4", "exp_avg_sq": "uint8"}}], ids=str
)
@pytest.mark.parametrize("name", [name for name, one in {**CATALOG, **PUBLISHED}.items() if one.takes("trust_clip")])
def test_blocks_of_several_sizes(name, kept, capturable):
    """Two codes to a byte, and scales of two sizes, around the passes of a rule that reduces."""
    shapes = [(20, 256), (9, 7, 75), (128, 128)]
    models = [on_gpu(parameters(shapes=shapes)) for _ in range(2)]
    made, start = getattr(compiledopt, name), flat(models[0])
    optimizers = (
        made(models[0], lr=0.05, foreach=True, **kept),
        made(models[1], lr=0.05, compiled=True, capturable=capturable, **kept),
    )
    for step in range(3):
        for optimizer, params in zip(optimizers, models, strict=True):
            set_gradients(params, step)
            optimizer.step()
    effect = rms(flat(models[0]) - start)
    assert effect > 0.01 and rms(flat(models[1]) - flat(models[0])) <= 0.01 * effect


def test_fused_and_switching_capturable_between_steps():
    """fused=True keeps step on the device, as torch's; capturable moves it there, and off again it stays."""
    reference, fused, switched = (on_gpu(parameters(shapes=SHAPES)) for _ in range(3))
    optimizers = [compiledopt.AdamW(reference), compiledopt.AdamW(fused, fused=True), compiledopt.AdamW(switched)]
    for step in range(6):
        if step in (2, 4):
            optimizers[2].param_groups[0]["capturable"] = step == 2
        for optimizer, params in zip(optimizers, (reference, fused, switched), strict=True):
            for index, param in enumerate(params):
                generator = torch.Generator(DEVICE).manual_seed(10 * step + index)
                param.grad = torch.randn(param.shape, generator=generator, device=DEVICE)
            optimizer.step()
    for p, q, r in zip(reference, fused, switched, strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(p, r)
    assert optimizers[1].state[fused[0]]["step"].device.type == DEVICE
    assert optimizers[0].state[reference[0]]["step"].device.type == "cpu"
