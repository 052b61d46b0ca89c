"""Whatever raises leaves parameters, gradients and states as they were, bit for bit."""

import gc
import inspect
import sys
import weakref

import pytest
import torch
from catalog import EXECUTORS, by_kind
from helpers import Gradients, parameters, run, same, snapshot

import compiledopt
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.errors import CompileError

MODES = {**EXECUTORS, "differentiable": {"differentiable": True}}


def sparse(params):
    params[1].grad = torch.zeros(params[1].shape).to_sparse()


def resized(params):
    params[1].data = torch.zeros(5)


def integer(params):
    params[1].requires_grad_(False)
    params[1].grad = None
    params[1].data = torch.ones(params[1].shape, dtype=torch.int64)
    params[1].grad = torch.ones(params[1].shape, dtype=torch.int64)


BAD_GRADIENTS = {
    "sparse": (sparse, RuntimeError, "sparse"),
    "resized": (resized, RuntimeError, "does not fit its parameter of shape"),
    "integer": (integer, TypeError, "must be floating point or complex, got torch.int64"),
}


@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
@pytest.mark.parametrize("case", by_kind())
def test_bad_gradients(case, bad, mode, warm):
    params = parameters()
    params = [p.detach() for p in params] if mode == "differentiable" else params
    optimizer = case.ours(params, "none", **MODES[mode])
    if warm:
        run(optimizer, params, Gradients(), range(2))
    Gradients().set(params, 5)
    spoil, error, words = BAD_GRADIENTS[bad]
    spoil(params)
    before = snapshot(optimizer)
    states = len(optimizer.state)
    with pytest.raises(error, match=words):
        optimizer.step()
    assert same(before, snapshot(optimizer))
    assert len(optimizer.state) == states


def wrong_shape(state):
    state["exp_avg"] = torch.zeros(3)


def not_a_tensor(state):
    state["exp_avg_sq"] = 3.0


def several_steps(state):
    state["step"] = torch.zeros(2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoil", [wrong_shape, not_a_tensor, several_steps])
def test_bad_states(spoil, mode):
    params = parameters()
    params = [p.detach() for p in params] if mode == "differentiable" else params
    optimizer = compiledopt.AdamW(params, **MODES[mode])
    run(optimizer, params, Gradients(), range(2))
    spoil(optimizer.state[params[1]])
    Gradients().set(params, 5)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"state '\w+' must be a tensor of"):
        optimizer.step()
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize("mode", EXECUTORS)
def test_a_failed_step_leaves_no_state_beside_others(mode):
    """A state that an option asks for between two steps is taken away again, and those there were stay."""
    params = parameters()
    optimizer = compiledopt.AdamW(params, **EXECUTORS[mode])
    run(optimizer, params, Gradients(), range(2))
    kept = optimizer.state[params[1]]["exp_avg"]
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(3)
    optimizer.param_groups[0]["amsgrad"] = True
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="state 'exp_avg' must be a tensor of shape"):
        optimizer.step()
    assert same(before, snapshot(optimizer))
    optimizer.state[params[1]]["exp_avg"] = kept
    optimizer.step()
    assert all("max_exp_avg_sq" in optimizer.state[param] for param in params)


@pytest.mark.parametrize("mode", EXECUTORS)
@pytest.mark.parametrize("value", ["fast", None, torch.ones(2)], ids=["text", "None", "two"])
def test_bad_options(value, mode):
    params = parameters()
    optimizer = compiledopt.AdamW(params, **EXECUTORS[mode])
    run(optimizer, params, Gradients(), range(2))
    optimizer.param_groups[0]["lr"] = value
    before = snapshot(optimizer)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        optimizer.step()
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize(
    "error", [CompileError("no"), KeyboardInterrupt(), MemoryError()], ids=["fails", "interrupted", "memory"]
)
def test_compilation_that_fails(monkeypatch, error):
    def fail(*args):
        raise error

    for name, options in (("kernel", {}), ("launcher", {})):
        params = parameters()
        optimizer = compiledopt.AdamW(params, compiled=True, **options)
        Gradients().set(params, 0)
        before = snapshot(optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(cpp, name, fail)
            with pytest.raises(type(error)):
                optimizer.step()
        assert same(before, snapshot(optimizer)) and not optimizer.state
        optimizer.step()
        assert optimizer.state[params[0]]["step"].item() == 1


def test_a_hook_that_raises():
    params = parameters()
    optimizer = compiledopt.SGD(params, momentum=0.9)
    Gradients().set(params, 0)

    def hook(*_):
        raise ValueError("no")

    optimizer.register_step_pre_hook(hook)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="no"):
        optimizer.step()
    assert same(before, snapshot(optimizer)) and not optimizer.state


def test_failed_first_step_of_momentum_is_still_first():
    """The states that a failed step made are gone, so that dampening does not touch the first gradient later."""
    theirs, mine = parameters(), parameters()
    optimizer = compiledopt.SGD(mine, lr=0.1, momentum=0.9, dampening=0.5)
    Gradients().set(mine, 0)
    mine[1].grad = torch.zeros(mine[1].shape).to_sparse()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0
    reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.5)
    for o, params in ((reference, theirs), (optimizer, mine)):
        run(o, params, Gradients(), range(3))
    for p, q in zip(theirs, mine, strict=True):
        torch.testing.assert_close(p, q)


def test_differentiable_refuses_leaves():
    params = parameters()
    optimizer = compiledopt.AdamW(params, differentiable=True)
    Gradients().set(params, 0)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        optimizer.step()
    assert same(before, snapshot(optimizer))


@pytest.mark.parametrize("mode", EXECUTORS)
def test_nothing_keeps_an_optimizer_alive(mode):
    params = parameters()
    optimizer = compiledopt.AdamW(params, **EXECUTORS[mode])
    run(optimizer, params, Gradients(), range(3))
    watched = [weakref.ref(optimizer), *map(weakref.ref, params), weakref.ref(optimizer.state[params[0]]["exp_avg"])]
    watched.append(weakref.ref(params[0].grad))
    del optimizer, params
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_versions_tell_autograd_of_the_write():
    """A backward through a value that the step overwrote is refused, as with torch's; gradients are only read."""
    param = torch.nn.Parameter(torch.ones(4))
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    optimizer = compiledopt.AdamW([param], lr=0.1, compiled=True)
    optimizer.step()
    state, grad = optimizer.state[param], param.grad
    before = {name: value._version for name, value in state.items()}, grad._version
    optimizer.step()
    assert all(value._version > before[0][name] for name, value in state.items()) and grad._version == before[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_that_is_called_from_deep_down():
    """What is traced and lowered there takes more of Python's stack than a step."""

    def halves(param, grad, *, lr=0.1):
        return param - lr * grad * 0.5

    param = torch.nn.Parameter(torch.ones(3))
    optimizer = compiledopt.define(halves)([param], compiled=True)
    param.grad = torch.ones(3)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    try:
        optimizer.step()
        assert sys.getrecursionlimit() < before
    finally:
        sys.setrecursionlimit(before)
    assert param.tolist() == [0.949999988079071] * 3


@pytest.mark.parametrize("mode", ["foreach", "for-loop"])
def test_numbers_beyond_float32_are_infinite(mode):
    """As in kernels, and no error of torch's after some parameters were written."""
    for kind, options, grad in (("AdamW", {"lr": 1e39}, 1.0), ("AdaNorm", {"lr": 1e39}, 1.0), ("StableSPAM", {}, 1e30)):
        params = [torch.nn.Parameter(torch.full((3,), 2.0)) for _ in range(2)]
        optimizer = getattr(compiledopt, kind)(params, **options, **MODES[mode])
        for _ in range(2):
            for param in params:
                param.grad = torch.full((3,), grad)
            optimizer.step()
        assert kind == "StableSPAM" or not any(param.isfinite().any() for param in params)
    assert all(optimizer.state[param]["v_norm_t"] == torch.inf for param in params)


def test_rows_of_a_rule_that_is_not_elementwise_are_refused():
    """It had updated the states of all rows."""

    @compiledopt.define(sparse="rows")
    def Averaged(param, grad, total, *, lr=0.1):
        return param - lr * grad * (total + 1).mean(), total + 1

    param = torch.nn.Parameter(torch.ones(4, 3))
    param.grad = torch.eye(4, 3).to_sparse(1)
    with pytest.raises(RuntimeError, match=r"sparse='rows' updates the rows alone .* not a pointwise"):
        Averaged([param]).step()


LOST = ["parameter", "gradient", "transposed gradient", "exp_avg", "step"]
# A later step of the eager executors looks at parameters alone.
LOST_LATER = [({}, one, 3) for one in LOST] + [({"foreach": True}, "parameter", 3), ({"foreach": False}, "parameter", 3)]


@pytest.mark.parametrize(
    ("options", "which", "steps"),
    [*[({"foreach": foreach}, one, 0) for foreach in (None, True, False) for one in LOST[:3]], *LOST_LATER],
    ids=str,
)
def test_storage_that_was_resized_to_nothing(options, which, steps):
    """As sharding does between its steps: an error instead of a crash, from Python's step and from the native one."""
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = compiledopt.AdamW(params, **options)
    for _ in range(steps):
        Gradients().set(params, 0)
        optimizer.step()
    Gradients().set(params, 0)
    if which == "transposed gradient":
        params[1].grad = torch.ones(4, 4).t()
    given = params[1] if which == "parameter" else params[1].grad
    tensor = optimizer.state[params[1]][which] if which in LOST[3:] else given
    before = params[0].detach().clone()
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"was resized to 0 bytes, which do not hold its elements; give it its memory back"):
        optimizer.step()
    assert torch.equal(before, params[0])
