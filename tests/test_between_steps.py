"""What users do between two steps, against torch doing the same; and faults in the middle of one."""

import copy
import os
import pickle
import signal
import sys
import sysconfig
import threading
import time
import warnings
from itertools import chain

import pytest
import torch
from catalog import EXECUTORS, by_kind, one_per_kind
from helpers import Gradients, flat, parameters, rms, run, same, snapshot
from torch.multiprocessing.reductions import StorageWeakRef

import compiledopt

SHAPES = [(40, 50), (301,), (), (1, 7)]


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)]
    return torch.nn.Sequential(*layers)


def grown(net, optimizer):
    net.add_module("more", torch.nn.Linear(5, 4))
    torch.nn.init.constant_(net.more.weight, 0.1)
    torch.nn.init.constant_(net.more.bias, 0.1)
    optimizer.add_param_group({"params": net.more.parameters(), "lr": 0.02})


def swapped(net, optimizer):
    """A parameter exchanged for another object, in the model and in its group."""
    old, new = net[3].bias, torch.nn.Parameter(torch.full((5,), 0.3))
    net[3].bias = new
    params = optimizer.param_groups[0]["params"]
    params[next(i for i, p in enumerate(params) if p is old)] = new


def replaced_storage(net, optimizer):
    net[3].weight.data = net[3].weight.data.clone() * 0.5


def resized(net, optimizer):
    net[3].weight.data = torch.full((5, 128), 0.01)
    optimizer.state.pop(net[3].weight, None)


def channels_last(net, optimizer):
    net.to(memory_format=torch.channels_last)


def frozen(net, optimizer):
    net[0].weight.requires_grad_(False)


def thawed(net, optimizer):
    net[0].weight.requires_grad_(True)


def to_double(net, optimizer):
    net.double()
    for values in optimizer.state.values():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() and name != "step":
                values[name] = value.double()


def by_hand(net, optimizer):
    for values in optimizer.state.values():
        for name, value in values.items():
            if value.dim():
                values[name] = value * 0.5


def cleared(net, optimizer):
    optimizer.state.clear()


def accumulated(net, optimizer):
    """The next gradients come on top of these."""
    net._keep = True


def assigned(net, optimizer):
    """Another list of groups, as accelerate's wrapper hands one on."""
    group = optimizer.param_groups[0]
    optimizer.param_groups = [{**group, "params": group["params"][2:], "lr": 0.02}]


EVENTS = [grown, assigned, swapped, replaced_storage, resized, channels_last, frozen, to_double, by_hand, cleared, accumulated]


def train(net, optimizer, steps):
    for step in steps:
        dtype = next(net.parameters()).dtype
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        if not getattr(net, "_keep", False):
            optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


# Those whose states are made with the optimizer have no way, in torch, to have them made again.
STATED_LATER = one_per_kind(lambda one: one.elementwise and not one.states_at_once)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("of", STATED_LATER, ids=str)
def test_as_torch_does(of, event, executor):
    found = []
    for made, flags in ((of.counterpart, {"foreach": False}), (of.ours, EXECUTORS[executor])):
        net = network()
        optimizer = made(net.parameters(), **{**of.promised, "lr": 0.01}, **flags)
        start = flat(net.parameters())
        train(net, optimizer, range(3))
        event(net, optimizer)
        train(net, optimizer, range(3, 6))
        if event is frozen:
            thawed(net, optimizer)
        train(net, optimizer, range(6, 8))
        found.append(net)
    theirs, mine = (flat(net.parameters()) for net in found)
    effect = rms(mine[: len(start)] - start)
    assert effect > 1e-4 and (mine - theirs).abs().max() <= 1e-3 * effect


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_tied_parameters(case, executor):
    """A tensor that two modules share is one parameter."""
    found = []
    for make in (case.torch, lambda params: case.ours(params, executor)):
        torch.manual_seed(0)
        first, second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        second.weight = first.weight
        net = torch.nn.Sequential(first, torch.nn.Tanh(), second)
        optimizer = make(net.parameters())
        for step in range(4):
            optimizer.zero_grad()
            net(torch.randn(3, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
        assert len(optimizer.param_groups[0]["params"]) == 3
        found.append(flat(net.parameters()))
    assert (found[0] - found[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_model_and_optimizer_copied_together_go_on_together(how):
    """The copy's optimizer works on the copy's parameters."""
    net = network()
    optimizer = compiledopt.AdamW(net.parameters(), lr=0.01)
    train(net, optimizer, range(2))
    twin, copied = (copy.deepcopy if how == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x)))((net, optimizer))
    train(net, optimizer, range(2, 4))
    before = flat(twin.parameters())
    train(twin, copied, range(2, 4))
    assert not torch.equal(before, flat(twin.parameters()))
    assert same([p.detach() for p in net.parameters()], [p.detach() for p in twin.parameters()])


def test_threads_stepping_two_optimizers():
    expected, found = parameters(shapes=SHAPES), [parameters(shapes=SHAPES) for _ in range(4)]
    run(compiledopt.AdamW(expected, lr=0.01), expected, Gradients(), range(40))
    errors = []

    def work(params):
        try:
            run(compiledopt.AdamW(params, lr=0.01), params, Gradients(), range(40))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(params,)) for params in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for params in found:
        assert same([p.detach() for p in expected], [p.detach() for p in params])


@pytest.mark.parametrize("foreach", [None, False])
def test_threads_stepping_one_optimizer(foreach):
    """Each step is taken whole or refused: updates got lost, and words were raised that named another fault."""
    param = torch.nn.Parameter(torch.zeros(70, 80))
    optimizer = compiledopt.Adafactor([param], lr=0.01, foreach=foreach)
    param.grad = torch.ones(70, 80)
    optimizer.step()
    refused, interval = [], sys.getswitchinterval()

    def work():
        for _ in range(30):
            try:
                optimizer.step()
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert optimizer.state[param]["step"].item() == 121 - len(refused)
    assert all("another thread is in a step of this optimizer" in words for words in refused)


def test_threads_stepping_one_combined_optimizer(monkeypatch):
    """Where one native call takes a part of the step, and Python the rest."""
    matrices, vectors = parameters(shapes=[(20, 30)] * 2), parameters(shapes=[(30,)] * 3)
    optimizer = compiledopt.Combined(compiledopt.Muon(matrices), compiledopt.AdamW(vectors))
    Gradients().set([*matrices, *vectors], 0)
    for _ in range(6):
        optimizer.step()
    inside, others, plain, refused = threading.Event(), [], optimizer._plan.batches, []
    batch = next(one for one in plain if one.steady is None)

    def slowly(prepare=batch.prepare):
        if not inside.is_set():
            inside.set()
            others[0].start()
            others[0].join()
        return prepare()

    def other():
        try:
            optimizer.step()
        except RuntimeError as error:
            refused.append(str(error))

    others.append(threading.Thread(target=other))
    monkeypatch.setattr(batch, "prepare", slowly)
    optimizer.step()
    assert len(refused) == 1 and "another thread is in a step of this optimizer" in refused[0]
    assert optimizer.state[vectors[0]]["step"].item() == 7


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_python_without_a_gil_stays_so():
    run(compiledopt.AdamW(params := parameters(shapes=SHAPES), lr=0.01, compiled=True), params, Gradients(), range(2))
    assert not sys._is_gil_enabled()


def test_gradients_taken_away_by_another_thread():
    """While native code lets the GIL go, it holds what it reads: a gradient dropped then is freed when the step is over."""
    param = torch.nn.Parameter(torch.zeros(1 << 21))
    optimizer = compiledopt.SGD([param], lr=0.5, compiled=True)
    run(optimizer, [param], Gradients(), range(1))
    main, freed, over = threading.get_ident(), [], threading.Event()

    def take_away():
        while not freed and not over.is_set():
            running = sys._current_frames()[main].f_code.co_filename
            native = f"backends{os.sep}cpp" in running or running.endswith("optimizer.py")  # which calls the steady step
            if native and param.grad is not None:
                kept = StorageWeakRef(param.grad.untyped_storage())
                param.grad = None
                freed.append(kept.expired())
            time.sleep(0)

    thread, interval = threading.Thread(target=take_away), sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # the other thread runs where this one lets the GIL go, and nowhere else
    try:
        thread.start()
        for _ in range(2000):
            param.grad = torch.ones(1 << 21)
            optimizer.step()
            if freed:
                break
    finally:
        over.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert freed == [False]


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((6,), float(index))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_parent_of_dataloader_workers(context):
    """Steps before, while and after workers live; the parent's threads and kernels are its own."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 2)
    optimizer = compiledopt.AdamW(net.parameters(), lr=0.01)
    alone = copy.deepcopy(net)
    reference = torch.optim.AdamW(alone.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=2, num_workers=1, multiprocessing_context=context)
        batches = [*loader]
        for one, which, more in ((net, optimizer, loader), (alone, reference, batches)):
            for batch in chain(batches[:2], more, batches[:1]):
                which.zero_grad()
                one(batch).square().mean().backward()
                which.step()
    assert optimizer.executor == "compiled"
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads
def test_a_fork_after_steps_by_several_threads():
    """The child has none of the threads that OpenMP had, and waited for them: here, and in torch's operators."""
    params, threads = parameters(shapes=[(50,)] * 300), torch.get_num_threads()
    optimizer = compiledopt.AdamW(params, compiled=True)
    torch.set_num_threads(2)
    try:
        run(optimizer, params, Gradients(), range(3))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            optimizer.step()
            torch.ones(1 << 20).exp_()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        optimizer.step()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_cast_between_steps(dtype, executor):
    """As `model.to(dtype)` does: states stay in float32, and torch's Adam refuses."""
    params, twins, refused = (parameters(shapes=SHAPES) for _ in range(3))
    optimizer = compiledopt.AdamW(params, lr=0.1, **EXECUTORS[executor])
    twin, other = torch.optim.AdamW(twins, lr=0.1, foreach=False), torch.optim.AdamW(refused, lr=0.1, foreach=False)
    for steps in (range(3), range(3, 6)):
        for step in steps:
            Gradients().set(params, step)
            Gradients().set(refused, step)
            for one, param in zip(twins, params, strict=True):
                one.grad = param.grad.float()
            optimizer.step()
            twin.step()
            if steps[0]:
                for one in twins:
                    one.data = one.data.to(dtype).float()
                with pytest.raises(RuntimeError, match="expected dtype"):
                    other.step()
            else:
                other.step()
        for param in (*params, *refused):
            param.data = param.data.to(dtype)
        for one in twins:
            one.data = one.data.to(dtype).float()
    moved = rms(flat(params) - flat(parameters(shapes=SHAPES)))
    assert moved > 0.1 and rms(flat(params) - flat(twins)) <= 0.01 * moved
    assert all(optimizer.state[param]["exp_avg"].dtype == torch.float32 for param in params)


def test_functional_call_loop():
    """Parameters outside of the module, used through torch.func."""
    net = torch.nn.Linear(4, 3)
    params = {name: torch.nn.Parameter(p.detach().clone()) for name, p in net.named_parameters()}
    optimizer = compiledopt.SGD(params.values(), lr=0.1)
    expected = {name: p.detach().clone() for name, p in params.items()}
    x = torch.randn(5, 4)

    def loss(values):
        return torch.func.functional_call(net, values, x).square().mean()

    for _ in range(3):
        grads = torch.func.grad(loss)({name: p.detach() for name, p in params.items()})
        for name, p in params.items():
            p.grad = grads[name]
        optimizer.step()
        expected = {name: p - 0.1 * torch.func.grad(loss)(expected)[name] for name, p in expected.items()}
    for name, p in params.items():
        torch.testing.assert_close(p.detach(), expected[name])


# ---- faults ----


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), KeyboardInterrupt(), MemoryError()], ids=["device", "interrupt", "host"]
)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_no_room_for_states_or_copies(executor, error, warm, monkeypatch):
    """Memory runs out, or the user interrupts, where a step allocates: nothing is half done."""
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params, lr=0.01, amsgrad=True, **EXECUTORS[executor])
    if warm:
        run(optimizer, params, Gradients(), range(2))
        params.append(torch.nn.Parameter(torch.ones(5)))
        optimizer.add_param_group({"params": params[-1:]})
    Gradients().set(params, 5)
    before, count, calls = snapshot(optimizer), len(optimizer.state), []

    def full_like(*args, original=torch.full_like, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "full_like", full_like)
        with pytest.raises(type(error)):
            optimizer.step()
    assert len(calls) == 3
    assert same(before, snapshot(optimizer)) and len(optimizer.state) == count
    optimizer.step()
    assert not same(before, snapshot(optimizer))


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_room_for_temporaries(executor, dtype, monkeypatch):
    """An eager executor asks for all that it will need at once before it writes; and it needs no more than that."""
    params = parameters(dtype, shapes=[(700, 1000), (3,), (900, 1000)])
    optimizer = compiledopt.AdamW(params, lr=0.01, amsgrad=True, **EXECUTORS[executor])
    run(optimizer, params, Gradients(dtype), range(2))
    Gradients(dtype).set(params, 2)
    before, asked = snapshot(optimizer), []

    def empty(size, *args, **kwargs):
        asked.append(size)
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    assert same(before, snapshot(optimizer))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    held = largest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    assert 0 < largest <= asked[0] + 2**16


def test_interrupted_while_the_kernel_compiles(monkeypatch, tmp_path):
    from compiledopt.backends.cpp import kernels as cpp

    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params, lr=0.01)
    Gradients().set(params, 0)
    before = snapshot(optimizer)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    cpp.forget()
    cpp.launcher()
    with monkeypatch.context() as patch:
        patch.setattr(cpp, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert same(before, snapshot(optimizer)) and not optimizer.state
    optimizer.step()
    assert optimizer.executor == "compiled", "an interruption is no reason to fall back later"


def test_a_bad_gradient_in_the_middle_leaves_a_clipped_averaged_step_undone():
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params, lr=0.01, max_grad_norm=1.0, ema_decay=0.9)
    run(optimizer, params, Gradients(), range(2))
    Gradients().set(params, 2)
    params[2].grad = torch.sparse_coo_tensor(size=(), check_invariants=True)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert same(before, snapshot(optimizer))
