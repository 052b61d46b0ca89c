"""Steps by Triton's own compiler and launcher, with a driver that does nothing: what is launched, and who takes the step."""

import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

import compiledopt
from compiledopt.backends.triton import proof, readiness, tables
from compiledopt.step import steady as steadying


@pytest.fixture(scope="module")
def driver():
    """The module of that driver."""
    path = Path(__file__).parent.parent / "perf"
    if not path.exists():
        pytest.skip("the tests run without the repository around them")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        import fake_driver
    if (reason := fake_driver.missing()) is not None:
        pytest.skip(reason)
    return fake_driver


@pytest.fixture
def launches(driver):
    with driver.installed() as found:
        yield found


def model(count=5):
    params = [torch.nn.Parameter(torch.ones(64)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def taken(optimizer):
    step = optimizer._stepper.steady
    return 0 if step is steadying.never else step.__self__.steps()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"capturable": True}, 2), ({"max_grad_norm": 1.0}, 2), ({"capturable": True, "max_grad_norm": 1.0}, 3)],
    ids=str,
)
def test_launches_of_a_steady_step(launches, options, expected):
    """As `explain` tells; from Python they are the same."""
    optimizer = compiledopt.AdamW(model(), compiled=True, **options)
    for _ in range(4):
        optimizer.step()
    assert taken(optimizer)
    launches()
    optimizer.step()
    steady = launches()
    optimizer._stepper.steady = steadying.never
    optimizer.step()
    assert len(steady) == expected and steady == launches() and optimizer._explanation().launches_per_step == expected
    assert steady[-1] == (5, 128)


def test_tables_are_brought_once(launches, monkeypatch):
    """Nothing but the launch remains where nothing changed; other gradients are brought, in the same native step."""
    optimizer, brought, update = compiledopt.AdamW(params := model(), compiled=True), [], tables.Tables.update
    monkeypatch.setattr(tables.Tables, "update", lambda *given: brought.append(1) or update(*given))
    for _ in range(5):
        optimizer.step()
    steps = taken(optimizer)
    brought.clear()
    optimizer.step()
    assert brought == [] and taken(optimizer) == steps + 1
    params[2].grad = torch.ones_like(params[2])
    optimizer.step()
    assert brought == [1] and taken(optimizer) == steps + 2
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert brought == [1] and taken(optimizer) == steps + 3, "the rate is an argument of the kernel"


def test_threads_step_optimizers_of_their_own(launches):
    optimizers = [compiledopt.AdamW(model(), compiled=True, capturable=number % 2 > 0) for number in range(4)]
    for optimizer in optimizers:
        optimizer.step()
    launches()

    def work(optimizer):
        for _ in range(50):
            optimizer.step()

    threads = [threading.Thread(target=work, args=(one,)) for one in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(launches()) == 50 * (1 + 2 + 1 + 2)
    steps = [float(optimizer.state[param]["step"]) for optimizer in optimizers[::2] for param in optimizer.state]
    assert set(steps) == {51.0}


def test_a_state_that_another_thread_takes_away(launches, monkeypatch):
    """While the driver launches, Python runs: what is gone then is not written to."""
    optimizer = compiledopt.AdamW(params := model(), compiled=True)
    for _ in range(4):
        optimizer.step()
    run, gone = tables.Tables.run, [optimizer.state[param]["step"] for param in params[:2]]

    def taking(*given):
        run(*given)
        for param in params[:2]:
            optimizer.state[param]["step"] = torch.tensor(7.0)
            optimizer.state[param]["exp_avg"] = torch.zeros_like(param)

    monkeypatch.setattr(tables.Tables, "run", taking)
    optimizer.step()
    assert [float(optimizer.state[param]["step"]) for param in params] == [7.0, 7.0, 5.0, 5.0, 5.0]
    assert list(map(float, gone)) == [4.0, 4.0]


def test_profilers_and_hooks_see_every_step(launches):
    optimizer, seen = compiledopt.AdamW(model(), compiled=True), []
    for _ in range(4):
        optimizer.step()
    assert taken(optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert any("Optimizer.step#AdamW.step" in event.name for event in profile.events())
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    optimizer.step()
    optimizer.step()
    assert seen == [1, 1]


def test_a_driver_that_does_nothing_is_found_out(driver, monkeypatch, tmp_path):
    """A kernel proves itself before it is used; this one leaves everything as it was."""
    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    with driver.installed() as launches, mock.patch.object(readiness, "proved", proof.proved):
        for count in (3, 2):  # the second time what was found is on the disk
            launches()
            optimizer = compiledopt.AdamW(params := model())
            with pytest.warns(UserWarning, match="does not compute what it should: tensor 0 of 1040 elements"):
                optimizer.step()
            assert optimizer.executor == "for-loop" and float(params[0][0].detach()) != 1.0
            assert len(launches()) == count
            readiness._ready.clear()
