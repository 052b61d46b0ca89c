"""Steps by Triton's own compiler and launcher, with a driver that does nothing: what is launched, and who takes the step."""

import os
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

import compiledopt
from compiledopt.backends.triton import (
    batch,
    files,
    forms,
    kernels,
    norm,
    passes_ready,
    prepared,
    proof,
    readiness,
    shaped,
    tables,
)
from compiledopt.errors import CompileError
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


def test_tables_are_brought_once(launches, driver, monkeypatch):
    """Nothing but the launch remains where nothing changed; other gradients are pointed to by the driver, in the same native
    step, and all is brought where a parameter moved."""
    optimizer, brought = compiledopt.AdamW(params := model(), compiled=True), []
    for name in ("update", "point"):
        plain = getattr(tables.Tables, name)
        monkeypatch.setattr(tables.Tables, name, lambda *given, n=name, plain=plain: brought.append(n) or plain(*given))

    def steps_and_brings(*names):
        steps = taken(optimizer)
        brought.clear()
        driver.copies()
        optimizer.step()
        assert taken(optimizer) == steps + 1 and brought + ["copy"] * driver.copies() == list(names)
        (batch,) = optimizer._stepper.plan.batches
        states = ([optimizer.state[param][name] for name in ("exp_avg", "exp_avg_sq")] for param in params)
        there = [tensor.data_ptr() for param, own in zip(params, states, strict=True) for tensor in (param, param.grad, *own)]
        assert batch.tables.pointers.tolist() == there

    for _ in range(5):
        optimizer.step()
    steps_and_brings()
    params[2].grad = torch.ones_like(params[2])
    steps_and_brings("copy")
    params[1].grad = torch.ones_like(params[1])
    params[2].data = torch.ones_like(params[2])
    steps_and_brings("update")
    steps_and_brings()
    params[0].grad = torch.ones_like(params[0])
    steps_and_brings("copy")
    optimizer.param_groups[0]["lr"] = 0.5
    steps_and_brings()  # the rate is an argument of the kernel


GROUPS = 2, kernels.FEW, kernels.FEW + 1


def grouped(params, count):
    return [{"params": [param], "lr": 0.1 * (number + 1)} for number, param in enumerate(params[:count])]


WAYS = [
    pytest.param("AdamW", {}, 1, id="plain"),
    pytest.param("AdamW", {"capturable": True}, 1, id="capturable"),
    pytest.param("AdamW", {"max_grad_norm": 1.0}, 1, id="clipped"),
    pytest.param("AdamW", {"max_grad_norm": 1.0}, 2, id="clipped groups"),
    pytest.param("AdamW", {"capturable": True, "max_grad_norm": 1.0}, 1, id="capturable and clipped"),
    *[pytest.param("AdamW", {}, count, id=f"{count} groups") for count in GROUPS],
    pytest.param("LAMB", {}, 1, id="passes"),
]


def steadied(optimizer, steps=4):
    for _ in range(steps):
        optimizer.step()
    assert taken(optimizer)
    return optimizer


def steps_of(optimizer):
    return {float(state["step"]) for state in optimizer.state.values()}


@pytest.mark.parametrize(("name", "options", "groups"), WAYS)
def test_the_driver_is_given_what_triton_gives_it(launches, driver, name, options, groups):
    """The same launches with the same parameters, at the same step, and Triton has no part in them."""
    given, tables_there = [], []
    for alone in (True, False):
        optimizer = steadied(getattr(compiledopt, name)(grouped(model(groups), groups), compiled=True, **options))
        optimizer.param_groups[0]["lr"] = 0.25
        optimizer.step()
        if not alone:
            optimizer._stepper.steady = steadying.never
        driver.seen()
        optimizer.step()
        given.append(driver.seen())
        tables_there.append(optimizer._stepper.plan.batches[0].tables.numbers.tolist())
        assert {one.alone for one in given[-1]} == {alone}
    addresses = {}
    for mine, triton in zip(*given, strict=True):
        for field in ("blocks", "threads", "shared", "stream", "count"):
            assert getattr(mine, field) == getattr(triton, field)
        assert mine.count > 3
        for one, other in zip(mine.given, triton.given, strict=True):
            if min(one, other) > 2**40 and max(one, other) < 2**48:  # addresses: two optimizers, each with its own
                assert addresses.setdefault(one, other) == other
            else:
                assert one == other
    assert tables_there[0] == tables_there[1]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"capturable": True}], ids=str)
def test_a_driver_that_refuses(launches, driver, monkeypatch, options):
    """As in a thread without a context: Triton, which makes one, launches; and where it raises, the step did not happen."""
    optimizer = steadied(compiledopt.AdamW(model(), compiled=True, **options))
    count, before = taken(optimizer), steps_of(optimizer)
    launches(), driver.refuse(1)
    try:
        optimizer.step()
        assert taken(optimizer) == count + 1 and len(launches()) == optimizer._explanation().launches_per_step
        after = steps_of(optimizer)
        assert (before, after) == (({0.0}, {0.0}) if "capturable" in options else ({4.0}, {5.0}))
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no launch"):
            patch.setattr(tables.Tables, "run", mock.Mock(side_effect=RuntimeError("no launch")))
            optimizer.step()
        assert steps_of(optimizer) == after
    finally:
        driver.refuse(0)
    steadied(optimizer)
    driver.seen()
    optimizer.step()
    assert {one.alone for one in driver.seen()} == {True}


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(launches, monkeypatch, tmp_path):
    """Of Triton: a home that is read-only. Kernels go to a directory of the process, and somebody is told."""
    from triton import knobs

    (tmp_path / "file").write_text("no directory")
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path / "file" / "cache")
        monkeypatch.setattr(readiness, "_ready", {})
        monkeypatch.setattr(kernels, "_kernels", {})
        files.settle.cache_clear()
        optimizer = compiledopt.AdamW(model(), compiled=True)
        with pytest.warns(UserWarning, match=r"Triton cannot write to its cache .*file.cache \(.*TRITON_CACHE_DIR"):
            optimizer.step()
        assert launches() and os.listdir(knobs.cache.dir)
    files.settle.cache_clear()


@pytest.mark.slow
def test_each_launch_has_the_form_that_was_chosen(launches, driver, monkeypatch):
    """By Triton and by the driver alone."""
    for form in (forms.FORMS[2], forms.FORMS[1]):
        monkeypatch.setattr(shaped, "_ready", {})
        monkeypatch.setattr(shaped, "chosen", lambda compiled, form=form: compiled(form) and form)
        optimizer = compiledopt.Adafactor(model(), compiled=True)
        optimizer.step()
        made = [one for stage in optimizer._stepper.plan.batches[0].tables.compiled_stages for one in stage.values()]
        assert made and {".maxnreg" in one.asm["ptx"] for one in made} == {form.most is not None}
        for _ in range(3):
            driver.seen()
            optimizer.step()
            assert {one.threads for one in driver.seen()} == {32 * form.warps}


@pytest.mark.parametrize("options", [{}, {"capturable": True, "max_grad_norm": 1.0}], ids=str)
def test_the_driver_brings_pointers(launches, driver, options):
    """Where gradients lie elsewhere, without Python; what is where a kernel finds it is right after each kind of step, with
    gradients that lie where some did before too."""
    optimizer = steadied(compiledopt.AdamW(model(), compiled=True, **options))
    params, tables = optimizer.param_groups[0]["params"], optimizer._plan.batches[0].tables
    sets = [[torch.ones(64) for _ in params] for _ in range(3)]

    def step(which, refused=False):
        for param, grad in zip(params, sets[which], strict=True):
            param.grad = grad
        before, _ = taken(optimizer), driver.copies()
        driver.refuse_copies(refused)
        try:
            optimizer.step()
        finally:
            driver.refuse_copies(False)
        batch = optimizer._plan.batches[0]
        operands = batch.triton.operands
        assert batch.tables is tables and tables.pointers[1::operands].tolist() == [grad.data_ptr() for grad in sets[which]]
        assert tables.pointers[::operands].tolist() == [param.data_ptr() for param in params]
        return taken(optimizer) - before, driver.copies()

    update, brought = tables.update, []
    tables.update = lambda *contents: brought.append(contents[0]) or update(*contents)
    step(0)
    assert step(1) == (1, 1) and step(1) == (1, 0) and step(0) == (1, 1)
    assert step(1, refused=True) == (1, 0), "Python brings them"
    assert step(2) == (1, 1)
    optimizer._stepper.steady = steadying.never
    step(1)  # from Python, which had brought these itself
    optimizer.param_groups[0]["lr"] = 0.5
    for which in (0, 1, 0, 1):
        step(which)
    assert step(2) == (1, 1)
    (last,) = [which for which, grads in enumerate(sets) if grads[0].data_ptr() in memoryview(brought[-1]).cast("q").tolist()]
    optimizer._stepper.steady = steadying.never
    step(last)  # where gradients lie that Python brought last, and native code exchanged since


def test_more_pointers_than_the_driver_takes_along(launches, driver, monkeypatch):
    """It may wait for all that is queued before it copies what is large and not pinned."""
    monkeypatch.setattr(tables, "INLINE", 8 * 4 * 5)
    for count, copied in ((5, 1), (6, 0)):
        optimizer = steadied(compiledopt.AdamW(model(count), compiled=True))
        params, before, _ = optimizer.param_groups[0]["params"], taken(optimizer), driver.copies()
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert (taken(optimizer) - before, driver.copies()) == (1, copied)
        there = optimizer._plan.batches[0].tables.pointers
        assert there[1::4].tolist() == [param.grad.data_ptr() for param in params]


def test_a_driver_that_refuses_in_the_midst(launches, driver):
    """Nothing is launched twice: a scalar part on the device would count the step twice."""
    optimizer = steadied(compiledopt.AdamW(model(), compiled=True, capturable=True))
    driver.seen(), driver.refuse(2)
    try:
        with pytest.raises(RuntimeError, match="refused a launch after others of the same step"):
            optimizer.step()
    finally:
        driver.refuse(0)
    assert [one.alone for one in driver.seen()] == [True]


def test_who_watches_launches_sees_them(launches, driver):
    """Triton's hooks are called as without us; after they are gone the driver is alone again."""
    from triton import knobs

    optimizer, seen = steadied(compiledopt.AdamW(model(), compiled=True)), []
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        driver.seen()
        optimizer.step()
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    assert len(seen) == 1 and [one.alone for one in driver.seen()] == [False]
    optimizer.step()
    assert len(seen) == 1 and [one.alone for one in driver.seen()] == [True]


@pytest.mark.parametrize("what", ["device", "stream"])
def test_another_device_or_stream(launches, driver, monkeypatch, what):
    """Triton launches there, where torch is told who reads the tables; and alone again where the stream is the same again."""
    optimizer = steadied(compiledopt.AdamW(model(), compiled=True))
    driver.seen()
    monkeypatch.setitem(driver.WHERE, what, 7)
    optimizer.step()
    (one,) = driver.seen()
    assert not one.alone and one.stream == (7 if what == "stream" else 0)
    steadied(optimizer)
    driver.seen()
    optimizer.step()
    (one,) = driver.seen()
    assert one.alone and one.stream == (7 if what == "stream" else 0)


@pytest.mark.parametrize("how", ["size", "count", "cluster"])
def test_a_kernel_of_other_parameters_is_left_to_triton(launches, driver, monkeypatch, how):
    """Where the compiled kernel does not take what is expected of it, or asks for more than a launch."""
    changes = {"count": ("SCRATCH", "P"), "size": ("TYPES", {"fp32": "d"}), "cluster": ("PLAIN", {"num_ctas": 2})}
    monkeypatch.setattr(prepared, *changes[how])
    optimizer = steadied(compiledopt.AdamW(model(), compiled=True))
    driver.seen()
    optimizer.step()
    assert [one.alone for one in driver.seen()] == [False]


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
    """While Triton launches, Python runs: what is gone then is not written to."""
    monkeypatch.setattr(
        batch.TritonBatch, "prepared_launches", lambda _: None
    )  # nothing of Python's runs where the driver launches
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
        for count in (4, 3):  # the second time what was found is on the disk
            launches()
            optimizer = compiledopt.AdamW(params := model())
            with pytest.warns(UserWarning, match="does not compute what it should: tensor 0 of 1040 elements"):
                optimizer.step()
            assert optimizer.executor == "for-loop" and float(params[0][0].detach()) != 1.0
            assert len(launches()) == count
            readiness._ready.clear()


@pytest.mark.parametrize("of", ["passes", "norm"])
def test_so_are_passes_and_norms(driver, monkeypatch, tmp_path, of):
    """Each with the reason, which is on the disk the second time."""
    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    module, options, words = {
        "passes": (passes_ready, {}, "a tensor of 1 × 1 × 1040: 1040 elements of param are not what the for-loop computes"),
        "norm": (norm, {"max_grad_norm": 1.0}, "2 elements of the norm are not what the for-loop computes"),
    }[of]
    name, plain = "LAMB" if of == "passes" else "AdamW", module.proved
    with driver.installed() as launches, mock.patch.object(module, "proved", plain):
        counts = []
        for _ in range(2):
            launches()
            optimizer = getattr(compiledopt, name)(params := model(), **options)
            with pytest.warns(UserWarning, match=f"the kernel cannot run on cpu: .*does not compute what it should: {words}"):
                optimizer.step()
            assert optimizer.executor == "for-loop" and float(params[0][0].detach()) != 1.0
            counts.append(len(launches()))
            readiness._ready.clear()
        assert counts[0] > counts[1]
        with pytest.raises(CompileError, match="does not compute what it should"):
            getattr(compiledopt, name)(model(), compiled=True, **options).step()
