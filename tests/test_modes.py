"""Steps while somebody looks at every operator: dispatch modes, torch.func, tracers; and with another default device."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch
from catalog import CATALOG, by_kind
from helpers import copies, flat, parameters, rms, same
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import compiledopt
from compiledopt import schedules
from compiledopt.swa_utils import AveragedModel

DENSE = by_kind(one for one in CATALOG.values() if one.rule is not None and one.rule.dense)


class Watch(TorchDispatchMode):
    """Counts the operators that write, by the tensors they write to."""

    def __init__(self):
        super().__init__()
        self.written = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable:
            self.written.update(t.data_ptr() for t in args if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def with_gradients(shapes=((3, 4), (5, 2))):
    params = parameters(shapes=shapes)
    for param in params:
        param.grad = param.detach().sin()
    return params


@pytest.mark.filterwarnings("ignore:compiledopt")
@pytest.mark.parametrize("of", DENSE)
def test_a_mode_sees_every_write_and_the_numbers_are_the_same(of):
    start, outside, inside = (with_gradients() for _ in range(3))
    optimizers = [of.ours(params, max_grad_norm=1.0) for params in (outside, inside)]
    for _ in range(2):
        optimizers[0].step()
        with Watch() as watch:
            optimizers[1].step()
        assert {param.data_ptr() for param in inside} <= watch.written
    optimizers[0].step()
    optimizers[1].step()  # without the mode, the compiled executor goes on from there
    effect = rms(flat(start) - flat(outside))
    assert effect > 0
    # Products in bfloat16 are of stacks outside of the mode.
    assert rms(flat(outside) - flat(inside)) <= (1e-2 if of.multiplies else 1e-4) * effect
    assert optimizers[1].executor == optimizers[0].executor


def test_a_mode_is_told_of_once_and_kernels_asked_for_by_name_are_no_error():
    params = with_gradients()
    optimizer = compiledopt.AdamW(params, fused=True)
    with Watch(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    optimizer = compiledopt.AdamW(params)
    with pytest.warns(UserWarning, match="Watch is active and looks at every operator"), Watch():
        optimizer.step()
    with Watch(), warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize(
    "more", [{}, {"fused": True}, {"max_grad_norm": 1.0, "ema_decay": 0.9}, {"lr": schedules.linear()}], ids=str
)
def test_tensors_without_data(more):
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        params = with_gradients()
        optimizer = compiledopt.Adam(params, **more)
        for _ in range(2):
            optimizer.step()
        assert all(isinstance(value, FakeTensor) for value in optimizer.state[params[0]].values())
        assert optimizer.state[params[0]]["exp_avg"].shape == (3, 4)


def test_scaled_gradients_without_data():
    with FakeTensorMode():
        params = with_gradients()
        optimizer = compiledopt.Adam(params, fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0), torch.zeros(())
        optimizer.step()
        assert isinstance(optimizer.state[params[0]]["step"], FakeTensor)


def test_scaled_gradients_under_a_mode():
    """The scale is taken out and a step with an infinity left out, as without the mode."""
    for found in (0.0, 1.0):
        plain, watched = with_gradients(), with_gradients()
        start = copies(plain)
        for params, mode in ((plain, torch.no_grad()), (watched, Watch())):
            optimizer = compiledopt.SGD(params, lr=0.1, fused=True)
            optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0), torch.full((), found)
            with mode:
                optimizer.step()
        assert (rms(flat(plain) - flat(start)) > 0.01) == (found == 0.0)
        torch.testing.assert_close(flat(plain), flat(watched), rtol=1e-6, atol=0)


def stepped(weights):
    """Three steps of SGD on three ones, then a value that depends on `weights`."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = compiledopt.SGD([param], lr=0.1, momentum=0.5)
    for _ in range(3):
        param.grad = torch.ones(3)
        optimizer.step()
    return (param.detach() * weights).sum()


def test_torch_func():
    """First in a process with nothing compiled yet, where the plan's own tensors are made inside of the level; then again."""
    code = inspect.getsource(stepped) + (
        "import torch, compiledopt\n"
        "ones, expected = torch.ones(3), torch.full((3,), 1 - 0.1 * (1 + 1.5 + 1.75))\n"
        "for _ in range(2):\n"
        "    torch.testing.assert_close(torch.func.grad(stepped)(ones), expected)\n"
        "    torch.testing.assert_close(torch.func.jvp(stepped, (ones,), (ones,))[1], expected.sum())\n"
        "    torch.testing.assert_close(torch.func.functionalize(stepped)(ones), expected.sum())\n"
        "    torch.testing.assert_close(torch.func.vmap(torch.func.grad(stepped))(torch.ones(2, 3)), expected.expand(2, 3))\n"
        "    torch.testing.assert_close(stepped(ones), expected.sum())\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_averages_inside_torch_func():
    def function(weights):
        model = torch.nn.Linear(3, 1)
        average = AveragedModel(model)
        for value in (1.0, 3.0):
            with torch.no_grad():
                model.weight.fill_(value)
            average.update_parameters(model)
        return (average.module.weight.detach() * weights).sum()

    torch.testing.assert_close(torch.func.grad(function)(torch.ones(1, 3)), torch.full((1, 3), 2.0))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_update(mode):
    """The graph does what the step does, to the parameter that is given to it."""

    def function(value, grad):
        param = value.clone()
        param.grad = grad
        optimizer = compiledopt.Adam([param], lr=0.1, weight_decay=0.1)
        optimizer.step()
        optimizer.step()
        return param

    value, grad = torch.linspace(1, 2, 6), torch.linspace(-1, 1, 6)
    expected = function(value, grad)
    graph = make_fx(function, tracing_mode=mode)(torch.ones(6), torch.ones(6))
    assert rms(expected - value) > 0.01
    torch.testing.assert_close(graph(value, grad), expected, rtol=1e-5, atol=1e-6)


def test_jit_trace_records_the_update():
    def function(value, grad):
        param = value.clone()
        param.grad = grad
        compiledopt.SGD([param], lr=0.1).step()
        return param

    traced = torch.jit.trace(function, (torch.ones(3), torch.ones(3)))
    torch.testing.assert_close(traced(torch.full((3,), 2.0), torch.full((3,), 5.0)), torch.full((3,), 1.5))


@pytest.mark.filterwarnings("ignore:.*such rules are not compiled with capturable=True:UserWarning")  # and are said so
@pytest.mark.parametrize("more", [{}, {"foreach": True}, {"foreach": False}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("of", DENSE)
def test_another_default_device(of, more):
    """What the library makes for itself is where it belongs, whatever torch.set_default_device says."""
    if not all(map(of.takes, more)):
        return
    here, there = with_gradients(), with_gradients()
    optimizer = of.ours(here, max_grad_norm=1.0, **more)
    optimizer.step()
    optimizer.step()
    with torch.device("meta"):
        other = of.ours(there, max_grad_norm=1.0, **more)
        other.step()
        saved = other.state_dict()
        loaded = of.ours(there, max_grad_norm=1.0, **more)
        loaded.load_state_dict(saved)
        loaded.step()
        assert loaded.explain()
        assert loaded.grad_norm.device.type == "cpu"
    assert same([p.detach() for p in here], [p.detach() for p in there])
    assert {value.device.type for value in loaded.state[there[0]].values()} <= {"cpu"}


@pytest.mark.slow
def test_a_first_compile_under_another_default_device(tmp_path):
    code = (
        "import torch, compiledopt\n"
        "params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]\n"
        "for param in params: param.grad = torch.ones(3, 4)\n"
        "with torch.device('meta'):\n"
        "    for make in (compiledopt.Adafactor, compiledopt.AdamW):\n"
        "        optimizer = make(params, lr=0.1, compiled=True, max_grad_norm=1.0)\n"
        "        optimizer.step()\n"
        "assert compiledopt.compile_stats()['kernels_compiled'] >= 3\n"
        "assert torch.isfinite(params[0]).all() and (params[0] != 1).all()\n"
    )
    environment = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_optimizer_made_inside_a_compiled_function():
    @torch.compile(backend="eager")
    def function(params, grad):
        optimizer = compiledopt.AdamW(params, lr=0.1, max_grad_norm=1.0)
        for param in params:
            param.grad = grad
        optimizer.step()
        optimizer.step()
        return params[0] * 1

    params, expected = parameters(shapes=[(3,), (3,)]), parameters(shapes=[(3,), (3,)])
    result = function(params, torch.ones(3))
    optimizer = compiledopt.AdamW(expected, lr=0.1, max_grad_norm=1.0)
    for param in expected:
        param.grad = torch.ones(3)
    optimizer.step()
    optimizer.step()
    assert torch.equal(result, expected[0])
