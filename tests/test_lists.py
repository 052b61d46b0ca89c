"""States that are lists: as many as an option or a parameter says, of shapes of their own; and branches on the first update."""

import copy
import io

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt

SHAPES = [(4, 6), (7,), (), (2, 3, 5)]
FIRST = []


@compiledopt.define(lists={"window": "length"}, static=("length",))
def Window(param, grad, window, *, lr=0.1, length=3):
    """Gradient descent along the sum of the last `length` gradients."""
    window = [*window[1:], grad]
    return param - lr * sum(window[1:], window[0]), window


def square(param, index):
    return param.new_zeros(param.shape[index], param.shape[index]) if param.shape[index] != 3 else None


@compiledopt.define(elementwise=False, lists={"gram": lambda param: param.ndim}, initial={"gram": square}, branches=("first",))
def Sided(param, grad, gram, *, lr=0.1, first):
    """Gradients times a matrix for each dimension that is not 3."""
    for index, each in enumerate(gram):
        if each is not None:
            rows = grad.movedim(index, 0).flatten(1) if grad.ndim > 1 else grad[:, None]
            gram[index] = each + rows @ rows.mT
            grad = torch.tensordot(gram[index], grad, dims=([1], [index])).movedim(0, index)
    if first:
        FIRST.append(tuple(param.shape))
        return param, gram
    return param - lr * grad / grad.norm(), gram


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_window_of_gradients_is_one_kernel(executor):
    mine, theirs = parameters(torch.float64, SHAPES), parameters(torch.float64, SHAPES)
    optimizer, gradients = Window(mine, length=4, **EXECUTORS[executor]), Gradients(torch.float64)
    run(optimizer, mine, gradients, range(9))
    assert optimizer.executor == executor
    for step in range(9):
        for before in range(max(0, step - 3), step + 1):
            gradients.set(theirs, before)
            for param in theirs:
                param.data.sub_(param.grad, alpha=0.1)
    effect = rms(flat(theirs) - flat(parameters(torch.float64, SHAPES)))
    assert effect > 0.1 and rms(flat(mine) - flat(theirs)) <= 1e-12 * effect
    assert set(optimizer.state[mine[0]]) == {f"window_{i}" for i in range(4)}
    assert torch.equal(optimizer.state[mine[0]]["window_3"], mine[0].grad)


def by_hand(params, steps):
    grams = [[torch.zeros(n, n, dtype=torch.float64) for n in p.shape] for p in params]
    for step in range(steps):
        Gradients(torch.float64).set(params, step)
        for param, each in zip(params, grams, strict=True):
            grad = param.grad.clone()
            for index, gram in enumerate(each):
                if len(gram) == 3:
                    continue
                rows = grad.transpose(0, index).reshape(len(gram), -1)
                gram += rows @ rows.T
                grad = (gram @ rows).reshape(grad.transpose(0, index).shape).transpose(0, index)
            if step:
                param.data.sub_(0.1 * grad / grad.norm())


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
def test_a_matrix_for_each_dimension(executor):
    shapes = [(4, 6), (7,), (2, 3, 5), (4, 6)]
    mine, theirs = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    optimizer = Sided(mine, **EXECUTORS[executor])
    FIRST.clear()
    run(optimizer, mine, Gradients(torch.float64), range(1))
    assert FIRST and same(flat(mine), flat(theirs))
    run(optimizer, mine, Gradients(torch.float64), range(1, 5))
    by_hand(theirs, 5)
    effect = rms(flat(theirs) - flat(parameters(torch.float64, shapes)))
    assert effect > 0.01 and rms(flat(mine) - flat(theirs)) <= 1e-12 * effect
    shapes_of = [{name: tuple(value.shape) for name, value in optimizer.state[param].items()} for param in mine]
    assert shapes_of[0] == {"gram_0": (4, 4), "gram_1": (6, 6)} and shapes_of[1] == {"gram_0": (7, 7)}
    assert shapes_of[2] == {"gram_0": (2, 2), "gram_2": (5, 5)}


@pytest.mark.parametrize("way", ["file", "deepcopy"])
@pytest.mark.parametrize("algorithm", [Window, Sided])
def test_lists_go_through_a_file(algorithm, way):
    params = parameters(torch.float64, SHAPES)
    optimizer = algorithm(params, compiled=False)
    run(optimizer, params, Gradients(torch.float64), range(2))
    if way == "file":
        buffer, others = io.BytesIO(), copies(params)
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other = algorithm(others, compiled=False)
        other.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        other = copy.deepcopy(optimizer)
        others = [p for group in other.param_groups for p in group["params"]]
    for one, its in ((optimizer, params), (other, others)):
        run(one, its, Gradients(torch.float64), range(2, 4))
    assert same(snapshot(optimizer), snapshot(other))


def test_what_lists_cannot_be():
    with pytest.raises(TypeError, match="lists names 'length', which is none of"):
        compiledopt.define(lists={"window": "length"})(lambda param, grad, window, *, length=3: (param, window))
    with pytest.raises(TypeError, match="branches names 'first'"):
        compiledopt.define(branches=("first",))(lambda param, grad, *, first: param)

    @compiledopt.define(lists={"window": 2})
    def Short(param, grad, window, *, lr=0.1):
        return param, window[1:]

    params = parameters(shapes=[(3,)])
    Gradients().set(params, 0)
    with pytest.raises(TypeError, match="must return a list of 2 for window, got one of 1"):
        Short(params).step()
    assert same(flat(params), flat(parameters(shapes=[(3,)])))
