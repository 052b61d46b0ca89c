"""What needs a GPU: parity, captures and replays, no synchronization, launches. Skipped where there is none."""

import copy

import pytest
import torch
from catalog import CASES, DTYPES
from helpers import Gradients, flat, parameters, rms

import compiledopt
from compiledopt import schedules

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)
SHAPES = [(40, 50), (3001,), (), (0,), (1, 7), (2048,), (1024, 1024)]
REPLAYED = [case for case in CASES if case.label in ("default", "all", "tensor_lr", "amsgrad", "momentum")]


def on_gpu(params):
    return [torch.nn.Parameter(p.detach().cuda()) for p in params]


def kwargs_of(case, dtype=torch.float32):
    kwargs = {k: v for k, v in case.kwargs(dtype).items() if k != "capturable"}
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in copy.deepcopy(kwargs).items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_cpu(case, capturable, dtype):
    reference = parameters(dtype, SHAPES)
    mine = on_gpu(reference)
    start = flat(reference)
    algorithm = getattr(compiledopt, case.algorithm)
    expected = algorithm(reference, **{k: v for k, v in case.kwargs(dtype).items() if k != "capturable"})
    optimizer = algorithm(mine, compiled=True, capturable=capturable, **kwargs_of(case, dtype))
    for step in range(20):
        Gradients(dtype, skip=True).set(reference, step)
        expected.step()
        for p, q in zip(reference, mine, strict=True):
            q.grad = None if p.grad is None else p.grad.cuda()
        optimizer.step()
    assert optimizer.executor == "compiled"
    effect = rms(flat(reference) - start)
    tolerance = 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    assert effect > 1e-3 and rms(flat(p.cpu() for p in mine) - flat(reference)) <= tolerance * effect


@pytest.mark.parametrize("case", REPLAYED, ids=str)
def test_capture_and_replay_under_a_schedule(case):
    reference, mine = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    algorithm = getattr(compiledopt, case.algorithm)
    pair = [algorithm(params, capturable=True, **kwargs_of(case)) for params in (reference, mine)]
    for params in (reference, mine):
        for index, param in enumerate(params):
            generator = torch.Generator("cuda").manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator, device="cuda")

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


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_schedule_clipping_and_average_under_replay(name):
    """The host does nothing between replays; rate, norm and averages are right when they are read."""
    reference, mine = on_gpu(parameters(shapes=SHAPES[-2:])), on_gpu(parameters(shapes=SHAPES[-2:]))
    lr = 0.1 * schedules.sequential([schedules.linear(0.1, 1.0, 3), schedules.cosine_annealing(6)], [3])
    options = {"lr": lr, "max_grad_norm": 5.0, **({} if name == "Adafactor" else {"ema_decay": 0.9})}
    expected, optimizer = (getattr(compiledopt, name)(p, capturable=True, **options) for p in (reference, mine))
    for params in (reference, mine):
        for index, param in enumerate(params):
            generator = torch.Generator("cuda").manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator, device="cuda")
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


@pytest.mark.parametrize("capturable", [False, True])
def test_steps_on_one_stream_after_the_other(capturable):
    """The tables of a step are not given to others while a step on another stream reads them."""
    reference, mine = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    expected, optimizer = torch.optim.AdamW(reference, lr=0.05), compiledopt.AdamW(mine, lr=0.05, capturable=capturable)
    side, main, on_host = torch.cuda.Stream(), torch.cuda.current_stream(), parameters(shapes=SHAPES)
    for step in range(8):
        Gradients().set(on_host, step)
        for params in (reference, mine):
            for param, host in zip(params, on_host, strict=True):
                param.grad = host.grad.cuda()
        expected.step()
        side.wait_stream(main)
        with torch.cuda.stream(side if step % 2 else main):
            optimizer.step()
            scratch = [torch.full((64,), -1, device="cuda") for _ in range(50)]  # what was let go is taken again at once
        main.wait_stream(side)
        del scratch
    torch.cuda.synchronize()
    effect = rms(flat(p.cpu() for p in reference) - flat(parameters(shapes=SHAPES)))
    assert (flat(p.cpu() for p in mine) - flat(p.cpu() for p in reference)).abs().max() <= 1e-4 * effect


def test_reduce_overhead_keeps_the_step_in_its_graph():
    params = on_gpu(parameters(shapes=SHAPES[-2:]))
    optimizer = compiledopt.AdamW(params, lr=0.01, capturable=True)
    twins = on_gpu(parameters(shapes=SHAPES[-2:]))
    reference = torch.optim.AdamW(twins, lr=0.01)

    def train(x):
        optimizer.zero_grad()
        with torch.no_grad():
            for param in params:
                param.grad = param * x
        optimizer.step()

    for param in params:  # states and kernels before the capture
        param.grad = torch.zeros_like(param)
    optimizer.step()
    compiled = torch.compile(train, mode="reduce-overhead", fullgraph=True)
    for param in twins:
        param.grad = torch.zeros_like(param)
    reference.step()
    for step in range(6):
        x = torch.tensor(float(step + 1), device="cuda")
        compiled(x)
        for param in twins:
            param.grad = param.detach() * x
        reference.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_whole_training_step_in_a_graph():
    """Gradients made inside the capture have addresses of their own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).cuda()
    twin = copy.deepcopy(model)
    optimizer = compiledopt.AdamW(model.parameters(), lr=1e-2, capturable=True)
    reference = torch.optim.AdamW(twin.parameters(), lr=1e-2, foreach=False)
    x, y = torch.randn(32, 64, device="cuda"), torch.randn(32, 8, device="cuda")

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


def test_captures_that_are_refused():
    def attempt(optimizer, words):
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match=words), torch.cuda.graph(graph):
            optimizer.step()

    params = on_gpu(parameters(shapes=[(64,), (32,)]))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = compiledopt.AdamW(params)
    optimizer.step()
    attempt(optimizer, "capturable")
    attempt(compiledopt.AdamW(params, capturable=True), "run step\\(\\) once before")
    optimizer = compiledopt.AdamW(params, capturable=True)
    optimizer.step()
    params[1].grad = None
    attempt(optimizer, "None")


@pytest.mark.parametrize("capturable", [False, True])
def test_nothing_synchronizes(capturable):
    params = on_gpu(parameters(shapes=SHAPES))
    optimizer = compiledopt.AdamW(params, capturable=capturable)
    for param in params:
        param.grad = torch.randn_like(param)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capturable", [False, True])
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
    assert 1 <= len(kernels) <= (3 if capturable else 2), [event.name for event in kernels]


def test_grad_scaler():
    params, plain = on_gpu(parameters(shapes=SHAPES)), on_gpu(parameters(shapes=SHAPES))
    optimizer, reference = compiledopt.AdamW(params, capturable=True, fused=True), compiledopt.AdamW(plain, capturable=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
    for step in range(4):
        for one in (params, plain):
            for index, param in enumerate(one):
                generator = torch.Generator("cuda").manual_seed(10 * step + index)
                param.grad = torch.randn(param.shape, generator=generator, device="cuda")
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
    params = [torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(100, device="cuda"))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = compiledopt.AdamW(params)
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), params[1].detach().cpu())


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
def test_the_rules_that_are_not_elementwise(executor):
    for name, shapes in (("Adafactor", [(40, 50), (40, 50), (7,)]), ("Muon", [(40, 50), (40, 50)])):
        reference = parameters(shapes=shapes)
        mine = on_gpu(reference)
        options = {"foreach": executor == "foreach"}
        expected, optimizer = getattr(torch.optim, name)(reference), getattr(compiledopt, name)(mine, **options)
        start = flat(reference)
        for step in range(5):
            Gradients().set(reference, step)
            expected.step()
            for p, q in zip(reference, mine, strict=True):
                q.grad = p.grad.cuda()
            optimizer.step()
        effect = rms(flat(reference) - start)
        assert rms(flat(p.cpu() for p in mine) - flat(reference)) <= (0.1 if name == "Muon" else 1e-3) * effect
    params = [torch.nn.Parameter(torch.randn(20, 4, device="cuda"))]
    optimizer = compiledopt.SparseAdam(params)
    params[0].grad = torch.ones(20, 4, device="cuda").to_sparse(1)
    optimizer.step()


def test_fused_and_switching_capturable_between_steps():
    """fused=True keeps step on the device, as torch's; capturable moves it there, and off again it stays."""
    reference, fused, switched = (on_gpu(parameters(shapes=SHAPES)) for _ in range(3))
    optimizers = [compiledopt.AdamW(reference), compiledopt.AdamW(fused, fused=True), compiledopt.AdamW(switched)]
    for step in range(6):
        if step in (2, 4):
            optimizers[2].param_groups[0]["capturable"] = step == 2
        for optimizer, params in zip(optimizers, (reference, fused, switched), strict=True):
            for index, param in enumerate(params):
                generator = torch.Generator("cuda").manual_seed(10 * step + index)
                param.grad = torch.randn(param.shape, generator=generator, device="cuda")
            optimizer.step()
    for p, q, r in zip(reference, fused, switched, strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(p, r)
    assert optimizers[1].state[fused[0]]["step"].is_cuda and not optimizers[0].state[reference[0]]["step"].is_cuda
