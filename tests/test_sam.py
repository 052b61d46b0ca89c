"""SAM: two gradients at each step, against the paper's update written out."""

import copy
import pickle

import pytest
import torch
from catalog import EXECUTORS
from helpers import copies, flat, parameters, rms, same

from compiledopt import SAM, SGD, AdamW, Muon

SHAPES = [(6, 5), (7,), (3, 4)]


def loss_of(params):
    return sum((p - index).sin().square().sum() + 0.1 * p.square().sum() for index, p in enumerate(params))


def closure_of(params, calls=None):
    def closure():
        for p in params:
            p.grad = None
        loss = loss_of(params)
        loss.backward()
        if calls is not None:
            calls.append(loss.item())
        return loss

    return closure


def written(params, base, rho, adaptive):
    """One step of the paper's, by torch's own optimizer."""
    closure_of(params)()
    weights = [p.detach().square() if adaptive else torch.ones_like(p) for p in params]
    norm = sum((w * p.grad.square()).sum() for w, p in zip(weights, params, strict=True)).sqrt()
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for w, p in zip(weights, params, strict=True):
            p.add_(w * p.grad * (rho / (norm + 1e-12)))
    closure_of(params)()
    with torch.no_grad():
        for p, old in zip(params, kept, strict=True):
            p.copy_(old)
    base.step()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_against_the_paper(executor, adaptive):
    mine, theirs = parameters(torch.float64, SHAPES), parameters(torch.float64, SHAPES)
    base = torch.optim.SGD(theirs, lr=0.05, momentum=0.9)
    optimizer = SAM(SGD(mine, lr=0.05, momentum=0.9, **EXECUTORS[executor]), rho=0.3, adaptive=adaptive)
    plain = copies(mine)
    calls = []
    for _ in range(20):
        loss = optimizer.step(closure_of(mine, calls))
        assert len(calls) == 2 and loss.item() == calls[0]
        calls.clear()
        written(theirs, base, 0.3, adaptive)
    without = SGD(plain, lr=0.05, momentum=0.9)
    for _ in range(20):
        without.step(closure_of(plain))
    effect = rms(flat(theirs) - flat(plain))  # of going uphill
    assert effect > 1e-3 and rms(flat(mine) - flat(theirs)) <= 1e-8 * effect
    assert not any("old" in state for state in optimizer.state.values())


def test_steps_of_ones_own_and_copies():
    mine, theirs = parameters(torch.float64, SHAPES), parameters(torch.float64, SHAPES)
    optimizer, other = SAM(AdamW(mine), rho=0.3), SAM(AdamW(theirs), rho=0.3)
    for _ in range(3):
        closure_of(mine)()
        optimizer.first_step()
        closure_of(mine)()
        optimizer.second_step()
        other.step(closure_of(theirs))
    assert same(flat(mine), flat(theirs))
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        params = [p for group in again.param_groups for p in group["params"]]
        again.step(closure_of(params))
        assert again.param_groups[0]["rho"] == 0.3
    other.step(closure_of(theirs))
    assert same(flat(params), flat(theirs))


def test_over_several_algorithms():
    mine = parameters(torch.float32, SHAPES)
    optimizer = SAM(Muon([mine[0], mine[2]]), AdamW(mine[1:2]), rho=0.1, max_grad_norm=1.0)
    before = loss_of(mine).item()
    for _ in range(10):
        optimizer.step(closure_of(mine))
    assert loss_of(mine).item() < before and optimizer.grad_norm > 0


def test_what_is_refused_and_what_fails():
    params = parameters(torch.float64, SHAPES)
    optimizer = SAM(SGD(params), rho=0.5)
    with pytest.raises(RuntimeError, match="SAM needs a closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="without a first_step"):
        optimizer.second_step()
    with pytest.raises(ValueError, match="Invalid rho, should be non-negative: -1"):
        SAM(SGD(params), rho=-1)
    before, calls = flat(params), []

    def closure():
        closure_of(params, calls)()
        if len(calls) == 2:
            assert not same(flat(params), before)
            raise KeyError

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert same(flat(params), before) and len(calls) == 2
