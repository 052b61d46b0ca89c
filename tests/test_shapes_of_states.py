"""Reductions over all but the first dimensions, states of every reduced shape, and 0-dim states that follow from tensors."""

import copy
import io

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, rms, run

import compiledopt

SHAPES = [(6, 4, 3, 3), (5, 7), (9,), (), (3, 2, 5)]


def parameters(dtype=torch.float32, layout=torch.contiguous_format):
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in SHAPES]
    return [torch.nn.Parameter(p.contiguous(memory_format=layout) if p.dim() == 4 else p) for p in made]


def rest(tensor):
    return tuple(range(1, tensor.ndim))


@compiledopt.define
def Centralized(param, grad, exp_avg, *, lr=0.1, beta=0.9):
    """Yong et al. 2020, arXiv:2004.01461."""
    if grad.ndim > 1:
        grad = grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)
    exp_avg = exp_avg.lerp(grad, 1 - beta)
    return param - lr * exp_avg, exp_avg


def centralized(param, grad, state, lr=0.1, beta=0.9):
    grad = grad - grad.mean(dim=rest(grad), keepdim=True) if grad.ndim > 1 else grad
    state["exp_avg"] = beta * state.get("exp_avg", 0.0) + (1 - beta) * grad
    return param - lr * state["exp_avg"]


@compiledopt.define
def Clipped(param, grad, *, lr=0.1, clipping=0.05, eps=1e-3):
    """Brock et al. 2021, arXiv:2102.06171: each unit's gradient, against the unit."""
    dims = tuple(range(1, param.ndim))
    most = clipping * torch.linalg.vector_norm(param, dim=dims, keepdim=True).clamp_min(eps)
    size = torch.linalg.vector_norm(grad, dim=dims, keepdim=True)
    return param - lr * torch.where(size > most, grad * (most / size.clamp_min(1e-6)), grad)


def clipped(param, grad, state, lr=0.1, clipping=0.05, eps=1e-3):
    most = clipping * torch.linalg.vector_norm(param, dim=rest(param), keepdim=True).clamp_min(eps)
    size = torch.linalg.vector_norm(grad, dim=rest(grad), keepdim=True)
    return param - lr * torch.where(size > most, grad * (most / size.clamp_min(1e-6)), grad)


@compiledopt.define(scalars=("second",))
def Layerwise(param, grad, exp_avg, second, *, lr=0.1, betas=(0.9, 0.99), eps=1e-8):
    """NovoGrad's second moment: one for each tensor. Ginsburg et al. 2019, arXiv:1905.11286."""
    second = betas[1] * second + (1 - betas[1]) * (grad * grad).sum()
    exp_avg = betas[0] * exp_avg + grad / (second.sqrt() + eps)
    return param - lr * exp_avg, exp_avg, second


def layerwise(param, grad, state, lr=0.1, betas=(0.9, 0.99), eps=1e-8):
    state["second"] = betas[1] * state.get("second", 0.0) + (1 - betas[1]) * (grad * grad).sum()
    state["exp_avg"] = betas[0] * state.get("exp_avg", 0.0) + grad / (state["second"].sqrt() + eps)
    return param - lr * state["exp_avg"]


def _units(param):
    return param.new_zeros((len(param), *[1] * (param.dim() - 1)) if param.dim() else ())


@compiledopt.define(initial={"unit": _units})
def Units(param, grad, unit, *, lr=0.1, beta=0.9, eps=1e-6):
    """A second moment for each unit, in a state with one number for each."""
    unit = beta * unit + (1 - beta) * (grad * grad).mean(dim=tuple(range(1, grad.ndim)), keepdim=True)
    return param - lr * grad / (unit.sqrt() + eps), unit


def units(param, grad, state, lr=0.1, beta=0.9, eps=1e-6):
    mean = (grad * grad).mean(dim=rest(grad), keepdim=True) if grad.ndim > 1 else (grad * grad).mean()
    state["unit"] = beta * state.get("unit", 0.0) + (1 - beta) * mean
    return param - lr * grad / (state["unit"].sqrt() + eps)


RULES = {"centralized": (Centralized, centralized), "clipped": (Clipped, clipped), "layerwise": (Layerwise, layerwise)}


def by_hand(function, params, gradients, steps):
    """In float64, one parameter after the other."""
    states = [{} for _ in params]
    for step in steps:
        gradients.set(params, step)
        for param, state in zip(params, states, strict=True):
            param.data = function(param.detach(), param.grad, state)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("executor", ["compiled", "foreach"])
@pytest.mark.parametrize("name", RULES)
def test_against_the_rule_by_hand(name, executor, layout):
    kind, function = RULES[name]
    start = parameters(layout=layout)
    oracle, mine = copies(start, torch.float64), copies(start)
    by_hand(function, oracle, Gradients(torch.float32), range(6))
    optimizer = kind(mine, **EXECUTORS[executor])
    run(optimizer, mine, Gradients(torch.float32), range(6))
    assert optimizer.executor == executor
    for a, b, before in zip(mine, oracle, start, strict=True):
        effect = rms((b - before.double()).detach())
        assert effect > 1e-4 and rms((a.double() - b).detach()) <= 1e-4 * effect, tuple(a.shape)


def test_one_number_for_each_unit():
    start = [param for param in parameters() if param.dim() != 1]
    oracle, mine = copies(start, torch.float64), copies(start)
    by_hand(units, oracle, Gradients(torch.float32), range(5))
    optimizer = Units(mine)
    run(optimizer, mine, Gradients(torch.float32), range(5))
    assert optimizer.executor == "compiled"
    torch.testing.assert_close(flat(mine).double(), flat(oracle), rtol=1e-5, atol=1e-6)
    assert optimizer.state[mine[0]]["unit"].shape == (6, 1, 1, 1)


def test_a_0_dim_state_that_follows_from_tensors_is_saved_and_copied():
    params = parameters()
    optimizer = Layerwise(params)
    run(optimizer, params, Gradients(torch.float32), range(3))
    state = optimizer.state[params[0]]["second"]
    assert state.shape == () and state.dtype == torch.float32 and state > 0
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = copies(params)
    other = Layerwise(others)
    other.load_state_dict(torch.load(file))
    pair = copy.deepcopy((params, optimizer))
    for some, one in ((params, optimizer), (others, other), pair):
        run(one, some, Gradients(torch.float32), range(3, 6))
        assert one.executor == "compiled"
        torch.testing.assert_close(flat(some), flat(params), rtol=0, atol=0)
    again = Layerwise(copies(params), foreach=True)
    again.load_state_dict(optimizer.state_dict())
    assert again.state_dict()["state"][0]["second"] == optimizer.state[params[0]]["second"]


def test_large_parameters_are_reduced_by_all_threads():
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(512, 64, 5, 5))
    start = param.detach().clone()
    param.grad = torch.randn_like(param)
    for kind, function in ((Layerwise, layerwise), (Clipped, clipped)):
        param.data = start.clone()
        kind([param]).step()
        expected = function(start.double(), param.grad.double(), {})
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)


@compiledopt.define(initial={"size": lambda param: param.new_zeros((1,) * param.dim())})
def Even(param, grad, size, *, lr=0.1):
    """A mean of what rows have, over all of them, in a state of one number with the parameter's dimensions."""
    rows = (param * param).sum(-1, keepdim=True).sqrt()
    size = size.lerp(rows.mean(dim=tuple(range(param.ndim)), keepdim=True), 0.5)
    return param - lr * size * grad, size


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5)], ids=str)
def test_a_mean_of_rows_is_over_all_matrices(shape):
    generator = torch.Generator().manual_seed(0)
    start, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    mine, oracle = torch.nn.Parameter(start.clone()), start.double()
    mine.grad, size = grad, 0.0
    optimizer = Even([mine])
    for _ in range(2):
        optimizer.step()
        size = 0.5 * (size + oracle.square().sum(-1).sqrt().mean())
        oracle = oracle - 0.1 * size * grad
    assert optimizer.executor == "compiled"
    torch.testing.assert_close(mine.detach().double(), oracle, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[mine]["size"].double().reshape(()), size, rtol=1e-5, atol=1e-6)


def test_another_shape_is_no_other_kernel():
    param = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    param.grad = torch.randn_like(param)
    Clipped([param]).step()
    before = compiledopt.compile_stats()["kernels_lowered"]
    for shape in ((8, 3, 5, 5), (1, 1, 1, 1), (2, 3, 1, 7)):
        other = torch.nn.Parameter(torch.randn(shape))
        other.grad = torch.randn(shape)
        start = other.detach().clone()
        Clipped([other]).step()
        torch.testing.assert_close(other.detach(), clipped(start, other.grad, {}), rtol=1e-5, atol=1e-6)
    assert compiledopt.compile_stats()["kernels_lowered"] == before


@pytest.mark.parametrize("executor", EXECUTORS)
def test_states_made_of_the_parameter_and_the_options(executor):
    @compiledopt.define(initial={"anchor": lambda param, options: param * options["scale"], "count": lambda p: p.double() * 0})
    def Anchored(param, grad, anchor, count, *, lr=0.1, scale=0.5):
        return param - lr * (grad + param - anchor), anchor, count + 1

    param = torch.nn.Parameter(torch.full((3,), 2.0))
    param.grad = torch.ones(3)
    optimizer = Anchored([param], scale=0.25, **EXECUTORS[executor])
    optimizer.step()
    assert torch.equal(optimizer.state[param]["anchor"], torch.full((3,), 0.5)) and optimizer.executor == executor
    torch.testing.assert_close(param.detach(), torch.full((3,), 2.0 - 0.1 * 2.5))
    assert optimizer.state[param]["count"].dtype == torch.float64
    again = Anchored([torch.nn.Parameter(torch.ones(3))])
    again.load_state_dict(optimizer.state_dict())
    assert next(iter(again.state.values()))["count"].dtype == torch.float64


@compiledopt.define(initial={"extra": lambda param: torch.zeros_like(param) if param.dim() > 1 else None})
def SumsOfMatrices(param, grad, exp_avg, extra, *, lr=0.1):
    """Elementwise, with a state that vectors lack."""
    exp_avg = exp_avg.lerp(grad, 0.1)
    extra = None if extra is None else extra + grad
    return param - lr * (exp_avg if extra is None else exp_avg + extra), exp_avg, extra


@compiledopt.define(initial={"count": lambda param: param.new_zeros((1,) * param.dim())})
def Counted(param, grad, count, *, lr=0.1):
    """Elementwise, with a state of one number."""
    return param - lr * grad * (count + 1), count + 1


@pytest.mark.parametrize("executor", ["compiled", "foreach"])
def test_states_of_an_elementwise_rule_that_are_not_like_every_parameter(executor):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((5, 7), (9,))]
    start = copies(params)
    optimizers = [kind(params, lr=0.5, **EXECUTORS[executor]) for kind in (SumsOfMatrices, Counted)]
    for param in params:
        param.grad = torch.ones_like(param)
    for optimizer in optimizers * 2:
        optimizer.step()
        assert optimizer.executor == executor
    first, second = optimizers
    for param, before in zip(params, start, strict=True):
        has = param.dim() > 1
        moved = 0.5 * ((0.1 + 0.19) + (1 + 2) * has + (1 + 2))
        torch.testing.assert_close(param.detach(), before.detach() - moved)
        assert list(first.state[param]) == ["exp_avg", *["extra"] * has] and second.state[param]["count"] == 2


def test_why_states_that_some_lack_are_not_compiled_under_capture():
    param = torch.nn.Parameter(torch.ones(9))
    param.grad = torch.ones(9)
    reason = "SumsOfMatrices has states that are not like every parameter, and such rules are not compiled with capturable=True"
    with pytest.raises(RuntimeError, match=reason):
        SumsOfMatrices([param], compiled=True, capturable=True).step()
