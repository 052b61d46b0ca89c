"""Captures, tables and numbers of the GPU executors on CPU tensors: run by test_triton.py in a process of its own."""

import copy
import gc
import pickle
import subprocess
import threading
import weakref

import pytest
import torch
from catalog import CATALOG, with_and_without_count
from helpers import Gradients, flat, parameters, run, same, snapshot
from simulated import Recording, capture, unwatched
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

import compiledopt
from compiledopt.around.clip import Clipping
from compiledopt.backends import devices
from compiledopt.backends.triton import batch as batch_module
from compiledopt.backends.triton import capturable, readiness, tables
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch
from compiledopt.step import steady as steadying

SHAPES = [(40,), (3, 7), (), (16,)]
BOTH = pytest.mark.parametrize("on_device", [False, True], ids=["host", "capturable"])


def pair(name="AdamW", shapes=SHAPES, **options):
    """The for-loop's optimizer with its parameters, and the GPU's with capturable=True."""
    reference, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    algorithm = getattr(compiledopt, name)
    flags = {"compiled": True, "capturable": True}
    return algorithm(reference, foreach=False, **options), reference, algorithm(mine, **{**flags, **options}), mine


def step_both(optimizers, models, step):
    for one, params in zip(optimizers, models, strict=True):
        run(one, params, Gradients(), [step])


def near(mine, reference):
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)


# ---- captures ----


SLOW = [with_and_without_count()[1], CATALOG["RAdam"]]  # the latter's numbers choose a branch as they come


@pytest.mark.parametrize(
    "algorithm", [with_and_without_count()[0], *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)], ids=str
)
def test_replays_follow_numbers_and_gradients(monkeypatch, algorithm):
    more = {**algorithm.promised, "capturable": True, "compiled": True}
    rate = torch.tensor(0.03)
    expected, reference, optimizer, mine = pair(algorithm.name, **algorithm.promised)
    tensor_lr = algorithm.ours(copied := parameters(shapes=SHAPES), **{**more, "lr": rate})
    step_both((expected, optimizer, tensor_lr), (reference, mine, copied), 0)
    graphs = []
    for one, params in ((optimizer, mine), (tensor_lr, copied)):
        before = flat(params)
        with capture(monkeypatch) as graph:
            for param in params:  # a backward inside the capture makes them anew
                param.grad = torch.empty_like(param)
            one.step()
        assert torch.equal(before, flat(params)), "a capture records and does nothing"
        graphs.append(graph)
    for step in range(1, 5):
        expected.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.05 / step
        Gradients().set(reference, step)
        expected.step()
        rate.fill_(0.05 / step)
        optimizer.refresh()
        for params, graph in zip((mine, copied), graphs, strict=True):
            for param, other in zip(params, reference, strict=True):
                param.grad.copy_(other.grad)
            graph.replay()
    near(mine, reference)
    # The first step of the other one was taken at another rate.
    assert (flat(copied) - flat(reference)).abs().max() < 0.1


def test_steps_between_a_capture_and_its_first_replay(monkeypatch):
    """The graph's table of pointers is filled by replays; steps outside have their own."""
    expected, reference, optimizer, mine = pair(lr=0.05)
    step_both((expected, optimizer), (reference, mine), 0)
    graphs = []
    for _ in range(2):  # the second capture finds memory for its pointers again, with and without a step between
        with capture(monkeypatch) as graph:
            for param in mine:
                param.grad = torch.empty_like(param)
            optimizer.step()
        graphs.append((graph, [param.grad for param in mine]))
        for step in (1, 2):
            Gradients().set(reference, step)
            for param, other in zip(mine, reference, strict=True):
                param.grad.copy_(other.grad)
            expected.step()
            optimizer.step()
            near(mine, reference)
    for graph, grads in graphs:
        Gradients().set(reference, 3)
        for grad, other in zip(grads, reference, strict=True):
            grad.copy_(other.grad)
        expected.step()
        graph.replay()
        near(mine, reference)
    with capture(monkeypatch):  # the same gradients again, and no step in between
        optimizer.step()


def test_two_steps_in_one_capture(monkeypatch):
    expected, reference, optimizer, mine = pair(lr=0.05)
    step_both((expected, optimizer), (reference, mine), 0)
    with capture(monkeypatch) as graph:
        for param in mine:
            param.grad = torch.empty_like(param)
        optimizer.step()
        optimizer.step()
    Gradients().set(reference, 1)
    for param, other in zip(mine, reference, strict=True):
        param.grad.copy_(other.grad)
    graph.replay()
    expected.step()
    expected.step()
    near(mine, reference)


def test_two_steps_of_one_capture_with_gradients_of_their_own(monkeypatch):
    """As a graph of several training steps has them."""
    expected, reference, optimizer, mine = pair(lr=0.05)
    step_both((expected, optimizer), (reference, mine), 0)
    gradients = []
    with capture(monkeypatch) as graph:
        for _ in range(2):
            for param in mine:
                param.grad = torch.empty_like(param)
            gradients.append([param.grad for param in mine])
            optimizer.step()
    for number in (1, 3):
        for later, own in enumerate(gradients):
            one_step(expected, reference, 0.05, number + later)
            for param, gradient in zip(mine, own, strict=True):
                param.grad = gradient
            kept(mine, number + later)
        graph.replay()
        near(mine, reference)


def refused(monkeypatch, optimizer, words):
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=words), capture(monkeypatch) as graph:
        optimizer.step()
    assert graph.recorded == [] and same(before, snapshot(optimizer))


def test_captures_that_are_refused(monkeypatch):
    """Each before anything is recorded; after the step that the message asks for, it is taken."""
    optimizer = compiledopt.AdamW(params := parameters(shapes=SHAPES), lr=torch.tensor(0.1), capturable=True, compiled=True)
    Gradients().set(params, 0)
    refused(monkeypatch, optimizer, "run step\\(\\) once before")
    optimizer.step()
    group = optimizer.param_groups[0]
    for change, words in (
        ({"lr": torch.tensor(0.1)}, "tensors as numbers than in the last"),
        ({"lr": torch.tensor(0.1, dtype=torch.float64)}, "tensors as numbers than in the last"),
        ({"lr": 0.1}, "tensors as numbers than in the last"),
        ({"weight_decay": 0.3}, "call refresh\\(\\) first"),
        ({"amsgrad": True}, "run step\\(\\) once before"),
    ):
        group.update(change)
        refused(monkeypatch, optimizer, words)
        optimizer.step()
        with capture(monkeypatch) as graph:
            optimizer.step()
        assert graph.recorded
    params[1].grad = None
    refused(monkeypatch, optimizer, "1 gradients that are None")
    params[1].grad = torch.ones_like(params[1])
    optimizer.state[params[0]]["exp_avg"] = torch.zeros_like(params[0])
    optimizer.state[params[0]]["step"] = torch.tensor(3.0)
    refused(monkeypatch, optimizer, "with other parameters, states")
    host = compiledopt.AdamW(params, compiled=True)
    host.step()
    refused(monkeypatch, host, "capturable=True")
    optimizer.step()
    with pytest.raises(RuntimeError, match="refresh\\(\\) during"), capture(monkeypatch):
        optimizer.refresh()


def test_what_a_graph_reads_is_kept(monkeypatch):
    """The tensors that are numbers, and the tables of plans that are gone."""
    rate = torch.tensor(0.5)
    optimizer = compiledopt.SGD(params := parameters(shapes=SHAPES), capturable=True, compiled=True)
    optimizer.param_groups[0]["lr"] = rate  # not in the constructor: the defaults would keep it
    run(optimizer, params, Gradients(), [0])
    kept = weakref.ref(rate)
    with capture(monkeypatch) as graph:
        optimizer.step()
    del rate
    optimizer.param_groups[0]["lr"] = 0.25
    start, grads = flat(params), flat(param.grad for param in params)
    for param in params:
        param.grad = param.grad.clone()
    optimizer.step()
    optimizer.add_param_group({"params": (more := parameters(shapes=[(5,)], seed=7))})
    Gradients().set(more, 0)
    optimizer.step()
    optimizer.refresh()  # of a plan with more groups than the one that was captured
    gc.collect()
    assert kept() is not None
    assert not torch.equal(start, flat(params)) and grads.abs().max() > 0
    graph.replay()


def test_a_float_that_becomes_a_tensor_after_a_capture(monkeypatch):
    """A graph that reads the mirrored float is given the tensor's value there."""
    expected, reference, optimizer, mine = pair("SGD", lr=0.5)
    step_both((expected, optimizer), (reference, mine), 0)
    with capture(monkeypatch) as graph:
        optimizer.step()
    for dtype in (torch.float64, torch.float32):
        expected.param_groups[0]["lr"], optimizer.param_groups[0]["lr"] = 0.125, torch.tensor(0.125, dtype=dtype)
        optimizer.refresh()
        expected.step()
        graph.replay()
        near(mine, reference)
        expected.step()
        optimizer.step()
        near(mine, reference)


# ---- numbers ----


@pytest.mark.parametrize("algorithm", with_and_without_count(), ids=str)
def test_numbers_that_change_what_they_are(algorithm):
    """From a float to a tensor there, of either dtype, of no kernel's dtype, and back."""
    expected, reference, optimizer, mine = pair(algorithm.name, lr=0.5, weight_decay=0.1)
    values = [0.5, torch.tensor(0.25), torch.tensor([0.125], dtype=torch.float64), torch.tensor(1), 0.5, torch.tensor(0.25)]
    for step, value in enumerate(values):
        expected.param_groups[0]["lr"], optimizer.param_groups[0]["lr"] = float(value), value
        if step == 3:
            optimizer.param_groups[0]["weight_decay"] = torch.tensor(0.1)
        step_both((expected, optimizer), (reference, mine), step)
        near(mine, reference)
    assert type(optimizer._plan.batches[0]) is CapturableBatch


def test_nothing_is_read_on_the_host(monkeypatch):
    """A numeric option that decides on a branch too."""
    optimizer = compiledopt.AdamW(params := parameters(shapes=SHAPES), capturable=True, compiled=True, lr=torch.tensor(0.1))
    run(optimizer, params, Gradients(), range(2))

    class NoWaiting(Recording):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
            return function(*args, **(kwargs or {}))

    unwatched(monkeypatch)
    with NoWaiting(None):
        optimizer.step()
        params[0].grad = None
        optimizer.step()
    assert type(optimizer._plan.batches[0]) is CapturableBatch and optimizer.state[params[1]]["step"] == 4


def test_nan_is_a_number_like_others(monkeypatch):
    uploads = []
    optimizer = compiledopt.SGD(params := parameters(shapes=SHAPES), lr=0.1, capturable=True, compiled=True)
    run(optimizer, params, Gradients(), range(2))
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.step()
    original = capturable.upload
    monkeypatch.setattr(capturable, "upload", lambda *given: uploads.append(given) or original(*given))
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.step()
    assert uploads == [] and all(param.isnan().all() for param in params)
    with capture(monkeypatch) as graph:
        optimizer.step()
    assert graph.recorded


def test_a_first_step_is_forgotten_after_it():
    """`first` is 1 in the first step alone, with all gradients there from then on."""
    expected, reference, optimizer, mine = pair("SGD", lr=0.1, momentum=0.9, dampening=0.5)
    for step in range(4):
        step_both((expected, optimizer), (reference, mine), step)
        near(mine, reference)


def test_a_rule_without_numbers():
    @compiledopt.define
    def Plain(param, grad):
        return param - 0.125 * grad

    @compiledopt.define
    def Started(param, grad, momentum, *, first):
        momentum = first * grad + (1 - first) * (momentum + grad)
        return param - 0.125 * momentum, momentum

    for made in (Plain, Started):
        reference, mine = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
        optimizers = made(reference, foreach=False), made(mine, compiled=True, capturable=True)
        for step in range(3):
            step_both(optimizers, (reference, mine), step)
        near(mine, reference)


# ---- tables ----


@BOTH
def test_no_gradient_at_all(on_device):
    """In a first step with loaded states, and between others."""
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=on_device)
    step_both((expected, optimizer), (reference, mine), 0)
    for one, params in ((expected, reference), (optimizer, mine)):
        one.load_state_dict(one.state_dict())
        for param in params:
            param.grad = None
        one.step()
    assert type(optimizer._plan.batches[0]) is (CapturableBatch if on_device else TritonBatch)
    for step in range(1, 4):
        step_both((expected, optimizer), (reference, mine), step)
        for one, params in ((expected, reference), (optimizer, mine)):
            for param in params:
                param.grad = None
            one.step()
        near(mine, reference)


@BOTH
def test_out_of_memory_in_any_upload(monkeypatch, on_device):
    """Nothing is written, in no batch, and the next step trusts nothing that is not there."""
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=on_device)
    wide = [parameters(torch.float64, [(9,), (16,)]) for _ in range(2)]
    for one, params, more in ((expected, reference, wide[0]), (optimizer, mine, wide[1])):
        one.add_param_group({"params": more})
        params += more
    count, limit = [0], [1 << 30]

    def short(*given, upload=devices.upload):
        count[0] += 1
        if count[0] > limit[0]:
            raise torch.OutOfMemoryError("no room")
        return upload(*given)

    for module in (batch_module, tables, capturable):
        monkeypatch.setattr(module, "upload", short)
    step_both((expected, optimizer), (reference, mine), 0)
    failures = 0
    for step in range(1, 12):
        for params in (reference, mine):
            Gradients().set(params, step)
            for index, param in enumerate(params):
                if (index + step) % 3 == 0 or (step > 8 and index % 2):
                    param.grad = None
        before, count[0], limit[0] = snapshot(optimizer), 0, step % 6
        try:
            optimizer.step()
        except torch.OutOfMemoryError:
            failures += 1
            assert same(before, snapshot(optimizer))
            limit[0] = 1 << 30
            if step % 2:  # back to the gradients that the last tables were for
                kept = [param.grad for param in mine]
                for one, params in ((expected, reference), (optimizer, mine)):
                    run(one, params, Gradients(), [step - 1])
                near(mine, reference)
                Gradients().set(reference, step)
                for param, other, grad in zip(mine, reference, kept, strict=True):
                    param.grad = grad
                    other.grad = None if grad is None else grad.clone()
            optimizer.step()
        expected.step()
        near(mine, reference)
    assert failures > 4


def test_memory_that_is_short_is_not_a_kernel_that_cannot_run(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(readiness, "_ready", {})
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params)
    Gradients().set(params, 0)
    with monkeypatch.context() as patch:
        patch.setattr(readiness, "_run_on_nothing", full)
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    assert not optimizer.state
    optimizer.step()
    assert optimizer.executor == "compiled"


def test_which_blocks_are_aligned(monkeypatch):
    """The pointer of each operand counts, at each step; of a ragged tensor the whole blocks are, and the last one is not."""
    odd = torch.nn.Parameter(torch.randn(33)[1:17])
    even, ragged = (torch.nn.Parameter(torch.randn(length)) for length in (16, 2 * 1024 + 3))
    optimizer = compiledopt.SGD([odd, even, ragged], lr=0.1, momentum=0.9, compiled=True)
    for param in (odd, even, ragged):
        param.grad = torch.ones_like(param)
    optimizer.step()
    known, sizes = optimizer._plan.batches[0].triton.function.fn.__globals__, []

    def watched(*arguments, update=known["update"]):
        sizes.append(arguments[-1])
        update(*arguments)

    monkeypatch.setitem(known, "update", watched)
    parts = [triton.PART] * (1024 // triton.PART)
    optimizer.step()
    assert sizes == [*parts, 1024, 1024, 1024, *parts]
    even.grad = torch.ones(17)[1:]
    sizes.clear()
    optimizer.step()
    assert sizes == [*parts, *parts, 1024, 1024, *parts]


def test_one_row_of_numbers_needs_no_table(monkeypatch):
    """They are arguments of the kernel, and so are a few; of more, what changed is written to where the table is."""
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=False, shapes=[(5, 3)] * (triton.FEW + 1))
    uploads = []
    monkeypatch.setattr(tables, "upload", lambda *given: uploads.append(given[1]) or devices.upload(*given))
    for step in range(triton.FEW + 2):
        if step >= 2:  # one more falls behind
            for param, other in zip(mine[: step - 1], reference, strict=False):
                param.grad = other.grad = None
            expected.step()
            optimizer.step()
        step_both((expected, optimizer), (reference, mine), step)
        near(mine, reference)
        batch = optimizer._plan.batches[0]
        place = batch.tables.numbers.data_ptr()
        assert len(batch.rows) == max(1, step)
        assert isinstance(batch.columns, torch.Tensor) is (step > triton.FEW)
        assert step <= triton.FEW or batch.columns is batch.tables.numbers
        uploads.clear()
        expected.step()
        optimizer.step()
        assert uploads == [] and batch.tables.numbers.data_ptr() == place
    near(mine, reference)


def test_more_rows_than_a_block():
    """One row of numbers for each parameter, over blocks of the scalar part's kernel, the last of them ragged."""
    shapes = [(3,)] * (capturable.ROWS + 2)
    expected, reference, optimizer, mine = pair(shapes=shapes, lr=0.05)
    for step in range(2):
        step_both((expected, optimizer), (reference, mine), step)
    near(mine, reference)
    assert all(optimizer.state[param]["step"] == 2 for param in mine)


# ---- modes ----


@BOTH
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 0.5, "ema_decay": 0.9}], ids=["plain", "around"])
def test_a_first_step_under_inference_mode(on_device, more):
    expected, reference, optimizer, mine = pair(lr=0.05, **more, capturable=on_device)
    for step in range(4):
        for one, params in ((expected, reference), (optimizer, mine)):
            Gradients().set(params, step)
            with torch.inference_mode(step in (0, 2)):
                one.param_groups[0]["lr"] *= 0.9
                one.step()
    near(mine, reference)
    batch = optimizer._plan.batches[0]
    tensors = [value for value in (*vars(batch).values(), *vars(batch.tables).values()) if isinstance(value, torch.Tensor)]
    if on_device:
        tensors.append(batch.mirror.table)
    assert tensors and not any(tensor.is_inference() for tensor in tensors)


def test_capturable_switched_on_under_inference_mode():
    expected, reference, optimizer, mine = pair(lr=0.05, capturable=False)
    for step in range(6):
        optimizer.param_groups[0]["capturable"] = step in (1, 2, 4)
        with torch.inference_mode(step in (1, 3)):
            step_both((expected, optimizer), (reference, mine), step) if step not in (1, 3) else None
        if step in (1, 3):
            for one, params in ((expected, reference), (optimizer, mine)):
                Gradients().set(params, step)
                with torch.inference_mode():
                    one.step()
        near(mine, reference)


@BOTH
def test_a_default_device(on_device):
    """set_default_device("cuda") is common; the tables are made on the host all the same."""
    expected, reference, optimizer, mine = pair(lr=0.05, max_grad_norm=0.5, capturable=on_device)
    readiness._ready.clear()
    for step in range(3):
        for one, params in ((expected, reference), (optimizer, mine)):
            Gradients().set(params, step)
            with torch.device("meta" if one is optimizer else "cpu"):
                one.step()
    near(mine, reference)


def test_what_changes_in_the_middle(monkeypatch):
    """Groups and states, after a capture too."""
    expected, reference, optimizer, mine = pair(lr=0.05)
    step_both((expected, optimizer), (reference, mine), 0)
    with capture(monkeypatch):
        optimizer.step()
    for one, params in ((expected, reference), (optimizer, mine)):
        one.add_param_group({"params": (more := parameters(shapes=[(7,), (32,)], seed=3)), "lr": 0.2})
        params += more
    step_both((expected, optimizer), (reference, mine), 1)
    near(mine, reference)
    for one in (expected, optimizer):
        one.load_state_dict(one.state_dict())
    optimizer.refresh()
    step_both((expected, optimizer), (reference, mine), 2)
    near(mine, reference)


# ---- kernels that cannot be had ----

ERRORS = {
    "resources": OutOfResources(300_000, 232_448, "shared memory"),
    "ptxas": PTXASError("ptxas died"),
    "compilation": CompilationError("x = 1", None, "no"),
    "gcc": subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    "assertion": AssertionError("no"),
}


@BOTH
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_whatever_a_compiler_says_means_another_executor(monkeypatch, error, on_device):
    def refuse(*_):
        raise error

    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "_run_on_nothing", refuse)
    optimizer = compiledopt.AdamW(params := parameters(shapes=SHAPES), capturable=on_device)
    Gradients().set(params, 0)
    with pytest.warns(UserWarning, match=f"the kernel cannot run on cpu: {type(error).__name__}"):
        optimizer.step()
    assert optimizer.executor == "for-loop"


@pytest.mark.parametrize("where", ["lowered", "run"])
def test_a_scalar_kernel_that_cannot_be_had(monkeypatch, where):
    """An eager executor, or an error before anything is made."""

    def refuse(*_):
        raise compiledopt.errors.CompileError("no scalar part") if where == "lowered" else PTXASError("no scalar part")

    monkeypatch.setattr(readiness, "_ready", {})
    place = (capturable, "_lowered") if where == "lowered" else (capturable.RowsLaunch, "__call__")
    monkeypatch.setattr(*place, refuse)
    for flags in ({"capturable": True}, {"capturable": True, "compiled": True}):
        optimizer = compiledopt.AdamW(params := parameters(shapes=SHAPES), **flags)
        Gradients().set(params, 0)
        if "compiled" in flags:
            before = flat(params)
            with pytest.raises(RuntimeError, match=r"compiled=True cannot be had: .*no scalar part"):
                optimizer.step()
            assert not optimizer.state and torch.equal(before, flat(params))
        else:
            with pytest.warns(UserWarning, match="no scalar part"):
                optimizer.step()
            assert optimizer.executor == "for-loop"


def test_clipping_and_scaling_keep_what_the_scalar_kernel_expects():
    from compiledopt.around.loss_scale import Scaling
    from compiledopt.backends.triton.capturable import KEPT

    place = torch.device("cpu")
    with torch.inference_mode():
        kept = {**Clipping().on(place), **Scaling().on(place)}
    assert {name: value.dtype for name, value in kept.items()} == KEPT
    assert not any(value.is_inference() for value in kept.values())


# ---- the steady step ----


def taken(optimizer):
    """How many steps the steady step at work took."""
    step = optimizer._stepper.steady
    return 0 if step is steadying.never else step.__self__.steps()


HOW = {
    "host": {},
    "two groups": {},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 0.5},
    "capturable and clipped": {"capturable": True, "max_grad_norm": 0.5},
    "tensor lr": {"capturable": True},
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how in ("host", "capturable and clipped") else [pytest.mark.slow]) for how in HOW]
)
def test_a_steady_step_is_pythons(how, monkeypatch):
    """Bit for bit, while rates, gradients and who has one change; each of which is seen."""
    made, found = steadying.made, []
    for is_steady in (True, False):
        monkeypatch.setattr(steadying, "made", made if is_steady else lambda *_: None)
        params = parameters(shapes=SHAPES)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}] if how == "two groups" else params
        optimizer = compiledopt.AdamW(groups, lr=0.05, compiled=True, **HOW[how])
        if how == "tensor lr":
            optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
        Gradients().set(params, 0)
        steps = 0
        for step in range(14):
            if step in (6, 9):
                lr = optimizer.param_groups[0]["lr"]
                optimizer.param_groups[0]["lr"] = lr.mul_(0.5) if how == "tensor lr" else lr * 0.5
            if step == 8:
                Gradients().set(params, step)
            if step in (11, 12):
                params[1].grad = None if step == 11 else torch.ones_like(params[1])
            before = taken(optimizer)
            optimizer.step()
            steps += taken(optimizer) > before
        found.append(snapshot(optimizer))
        assert steps >= 7 if is_steady else steps == 0
    assert same(*found)


@BOTH
def test_what_fails_in_a_steady_step(on_device, monkeypatch):
    """Memory that is short, before anything is written, and a launch: in either case nothing is half done."""
    optimizer = compiledopt.AdamW(params := parameters(shapes=SHAPES), compiled=True, capturable=on_device, max_grad_norm=1.0)
    Gradients().set(params, 0)
    for _ in range(5):
        optimizer.step()
    assert taken(optimizer)
    for place, name in ((tables.Tables, "point"), (tables.Tables, "update"), (tables.Tables, "run"), (Clipping, "measure")):
        params[0].grad = params[0].grad.clone()
        if name == "update":
            params[0].data = params[0].data.clone()
        before = snapshot(optimizer)

        def short(*_, **__):
            raise torch.OutOfMemoryError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(place, name, short)
            with pytest.raises(torch.OutOfMemoryError):
                optimizer.step()
        # The scalar part ran then: after a launch that fails, the device has to say what is there.
        if on_device and name == "run":
            assert same([one[0] for one in before], [one[0] for one in snapshot(optimizer)])
        else:
            assert same(before, snapshot(optimizer))
        for _ in range(5):
            optimizer.step()
        assert taken(optimizer)


def test_a_capture_ends_steady_steps(monkeypatch):
    expected, reference, optimizer, mine = pair(lr=0.05)
    for params in (reference, mine):
        Gradients().set(params, 0)
    for _ in range(4):
        optimizer.step()
        expected.step()
    assert taken(optimizer)
    with capture(monkeypatch) as graph:
        optimizer.step()
    assert graph.recorded
    near(mine, reference)
    graph.replay()
    optimizer.step()
    expected.step()
    expected.step()
    near(mine, reference)


def test_a_number_that_turns_into_a_tensor_is_seen():
    expected, reference, optimizer, mine = pair(lr=0.05)
    Gradients().set(reference, 0)
    Gradients().set(mine, 0)
    for value in (0.05, 0.05, 0.05, 0.05, torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.25, dtype=torch.float64), 0.1):
        expected.param_groups[0]["lr"], optimizer.param_groups[0]["lr"] = float(value), value
        expected.step()
        optimizer.step()
        near(mine, reference)


# ---- several graphs, threads and copies ----


def kept(params, number):
    """The gradients of a step, where they were in the capture."""
    host = parameters(shapes=SHAPES)
    Gradients().set(host, number)
    for param, other in zip(params, host, strict=True):
        param.grad.copy_(other.grad)


def one_step(expected, reference, lr, number):
    expected.param_groups[0]["lr"] = lr
    Gradients().set(reference, number)
    expected.step()


def test_two_graphs_go_on_with_the_tensors_of_their_captures(monkeypatch):
    """As torch's; and a float, of which there is one for both, is the last that refresh() told."""
    rates = torch.tensor(0.05), torch.tensor(0.02)
    for values in (rates, (0.05, 0.02)):
        expected, reference, optimizer, mine = pair(lr=0.05)
        graphs = []
        for number, value in enumerate(values):
            optimizer.param_groups[0]["lr"] = value
            one_step(expected, reference, float(value), number)
            run(optimizer, mine, Gradients(), [number])
            with capture(monkeypatch) as graph:
                optimizer.step()
            graphs.append((graph, [param.grad for param in mine]))
        rates[0].fill_(0.03)
        optimizer.refresh()
        for number, (graph, gradients) in enumerate(graphs * 2):
            own = float(values[number % 2]) if values is rates else 0.02
            one_step(expected, reference, own, 2 + number)
            for param, gradient in zip(mine, gradients, strict=True):
                param.grad = gradient
            kept(mine, 2 + number)
            graph.replay()
            near(mine, reference)
        rates[0].fill_(0.05)


def test_a_capture_in_a_thread(monkeypatch):
    expected, reference, optimizer, mine = pair(lr=0.05)
    failed, graphs = [], []

    def work():
        try:
            step_both((expected, optimizer), (reference, mine), 0)
            with capture(monkeypatch) as graph:
                optimizer.step()
            graphs.append(graph)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    for number in (1, 2):
        one_step(expected, reference, 0.05, number)
        kept(mine, number)
        graphs[0].replay()
        near(mine, reference)
        one_step(expected, reference, 0.05, number)
        optimizer.step()
        near(mine, reference)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["deepcopy", "pickle"])
def test_copies_of_a_captured_optimizer(monkeypatch, copied):
    """A copy steps on its own parameters and states; the graph goes on with those that it was captured with."""
    expected, reference, optimizer, mine = pair(lr=0.05, max_grad_norm=0.5)
    step_both((expected, optimizer), (reference, mine), 0)
    with capture(monkeypatch) as graph:
        optimizer.step()
    twin = copied(optimizer)
    others = twin.param_groups[0]["params"]
    assert others[0] is not mine[0] and torch.equal(flat(others), flat(mine))
    before = flat(mine)
    for number in (1, 2):
        one_step(expected, reference, 0.05, number)
        run(twin, others, Gradients(), [number])
        near(others, reference)
    assert torch.equal(flat(mine), before)
    for number in (1, 2):
        kept(mine, number)
        graph.replay()
    near(mine, reference)


def test_a_load_after_a_capture(monkeypatch):
    """Steps, and a new capture, go on with what was loaded."""
    expected, reference, optimizer, mine = pair(lr=0.05)
    step_both((expected, optimizer), (reference, mine), 0)
    with capture(monkeypatch):
        optimizer.step()
    loaded = copy.deepcopy(expected.state_dict())
    optimizer.load_state_dict(loaded)
    optimizer.param_groups[0].update(capturable=True, compiled=True, foreach=None)
    for number in (1, 2):
        one_step(expected, reference, 0.05, number)
        run(optimizer, mine, Gradients(), [number])
        near(mine, reference)
    with capture(monkeypatch) as graph:
        optimizer.step()
    one_step(expected, reference, 0.05, 3)
    kept(mine, 3)
    graph.replay()
    near(mine, reference)
