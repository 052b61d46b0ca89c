"""Ctrl-C where something is being written: whoever catches KeyboardInterrupt and saves what there is saves whole steps."""

import signal
import threading

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, parameters, run, same, snapshot

import compiledopt
from compiledopt.around import average
from compiledopt.step import evaluating

SHAPES = [(6, 5), (7,)]


@pytest.fixture(autouse=True)
def handled():
    """As in a process of its own: workers of pytest-xdist ignore the signal."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("Python gives signals to the main thread alone, and this is none")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "put back as it was"


def interrupting(function, number=signal.SIGINT):
    """The same, and Ctrl-C or another signal right after it."""

    def interrupted(*arguments):
        function(*arguments)
        signal.raise_signal(number)

    return interrupted


def of_two_dtypes():
    """Which are two batches of a step."""
    return [*parameters(torch.float32, SHAPES), *parameters(torch.float64, SHAPES)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_is_finished(executor, monkeypatch):
    params, twins = of_two_dtypes(), of_two_dtypes()
    optimizer, twin = (compiledopt.AdamW(some, lr=0.01, **EXECUTORS[executor]) for some in (params, twins))
    run(optimizer, params, Gradients(), range(1))
    run(twin, twins, Gradients(), range(1))
    batches = optimizer._plan.batches
    kind, part = type(batches[0]), "launch" if executor == "compiled" else "update"  # between batches, or before counts
    assert len(batches) == 2 or executor != "compiled"
    with monkeypatch.context() as patch:
        patch.setattr(kind, part, interrupting(getattr(kind, part)))
        with pytest.raises(KeyboardInterrupt):
            run(optimizer, params, Gradients(), range(1, 2))
    run(twin, twins, Gradients(), range(1, 2))
    assert same(snapshot(optimizer), snapshot(twin))
    run(optimizer, params, Gradients(), range(2, 5))
    run(twin, twins, Gradients(), range(2, 5))
    assert same(snapshot(optimizer), snapshot(twin))


def test_averages_are_exchanged_back(monkeypatch):
    params = parameters(torch.float32, SHAPES)
    optimizer = compiledopt.AdamW(params, lr=0.01, ema_decay=0.9)
    run(optimizer, params, Gradients(), range(3))
    before = snapshot(optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(average, "exchange", interrupting(average.exchange))
        with pytest.raises(KeyboardInterrupt), optimizer.use_ema():
            pytest.fail("it was interrupted on the way in")
    assert same(before, snapshot(optimizer))
    run(optimizer, params, Gradients(), range(3, 4))


def test_the_mode_is_that_of_all_parameters(monkeypatch):
    params = parameters(torch.float32, SHAPES)
    optimizer = compiledopt.Lookahead(compiledopt.SGD(params, lr=0.1))
    run(optimizer, params, Gradients(), range(3))
    before = snapshot(optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "exchange", interrupting(evaluating.exchange))
        with pytest.raises(KeyboardInterrupt):
            optimizer.eval()
        with pytest.raises(RuntimeError, match="in eval mode"):
            optimizer.step()
        with pytest.raises(KeyboardInterrupt):
            optimizer.train()
        assert same(before, snapshot(optimizer))
        with pytest.raises(KeyboardInterrupt), optimizer.evaluating():
            pytest.fail("it was interrupted on the way in")
    if optimizer._evaluated:
        optimizer.train()
    assert same(before, snapshot(optimizer))


def test_sam_comes_back_from_uphill(monkeypatch):
    params = parameters(torch.float32, SHAPES)
    optimizer = compiledopt.SAM(compiledopt.SGD(params, lr=0.1), rho=0.5)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copies(params)
    ascent = optimizer._ascent
    with monkeypatch.context() as patch:
        patch.setattr(ascent, "step", interrupting(ascent.step))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
    assert same(before, copies(params))
    optimizer.step(closure)
    assert not same(before, copies(params))


def test_an_average_of_a_model_is_whole_and_counted(monkeypatch):
    model = torch.nn.ParameterList(of_two_dtypes())
    averaged = compiledopt.swa_utils.AveragedModel(model)
    for _ in range(2):
        averaged.update_parameters(model)
    kind = type(averaged._known.parts[0][1])
    with torch.no_grad():
        for param in model:
            param.add_(3.0)
    monkeypatch.setattr(kind, "launch", interrupting(kind.launch))
    with pytest.raises(KeyboardInterrupt):
        averaged.update_parameters(model)
    assert averaged.n_averaged == 3 and len(averaged._known.parts) == 2
    for one, param in zip(averaged.parameters(), model, strict=True):
        torch.testing.assert_close(one, param - 2.0)


def test_what_ends_jobs_waits_as_well(monkeypatch):
    """Each handler is called once, though the one before raises, and all are put back."""

    def ended(number, frame):
        called.append((number, float(optimizer.state[params[-1]]["step"])))
        raise SystemExit(number)

    params, called = of_two_dtypes(), []
    Gradients().set(params, 0)
    optimizer = compiledopt.AdamW(params, lr=0.01)
    optimizer.step()
    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        kind = type(optimizer._plan.batches[0])
        with monkeypatch.context() as patch:
            patch.setattr(kind, "launch", interrupting(interrupting(kind.launch, signal.SIGTERM), signal.SIGUSR1))
            with pytest.raises(SystemExit):
                optimizer.step()
        assert sorted(called) == [(signal.SIGUSR1, 2.0), (signal.SIGTERM, 2.0)]
        assert {signal.getsignal(number) for number in before} == {ended}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_other_threads_and_with_other_handlers():
    """Python runs handlers in the main thread alone, which another one cannot exchange; one of a user's own is called late."""
    params, called = parameters(torch.float32, SHAPES), []
    Gradients().set(params, 0)
    optimizer = compiledopt.AdamW(params, lr=0.01)
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    thread.join()
    assert optimizer.state[params[0]]["step"] == 1

    def own(number, frame):
        called.append((number, frame, float(optimizer.state[params[0]]["step"])))

    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    before = signal.signal(signal.SIGINT, own)
    with pytest.MonkeyPatch.context() as patch:
        kind = type(optimizer._plan.batches[0])
        patch.setattr(kind, "launch", interrupting(kind.launch))
        optimizer.step()
    signal.signal(signal.SIGINT, before)
    (number, frame, step), after = called
    assert number == signal.SIGINT and frame is not None and step == 2 and after == "after"
