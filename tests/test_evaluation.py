"""Parameters that are evaluated otherwise than they are trained: against the authors' algorithms, in and out of eval mode."""

import copy
import io
import math
import pickle

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import AdamWScheduleFree, Combined, RAdamScheduleFree, SGDScheduleFree, schedules

STEPS = 50


class Written(torch.optim.Optimizer):
    """x, y and z as the paper has them, each kept; the parameter is y."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.k, self.lr_max, self.weights = 0, -1.0, 0.0

    def points(self, p):
        state = self.state[p]
        if not state:
            state.update(x=p.detach().clone(), z=p.detach().clone(), v=torch.zeros_like(p))
        return state

    @torch.no_grad()
    def step(self, closure=None):
        (group,) = self.param_groups
        lr, beta = self.rate(group), group["momentum"] if "momentum" in group else group["betas"][0]
        self.lr_max = max(self.lr_max, lr)
        weight = (self.k + 1) ** group["r"] * self.lr_max ** group["weight_lr_power"]
        self.weights += weight
        share = weight / self.weights if self.weights else 0.0
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.points(p)
            update = self.direction(group, p, state) + group["weight_decay"] * p
            state["z"] = state["z"] - lr * update
            state["x"] = (1 - share) * state["x"] + share * state["z"]
            p.copy_(beta * state["x"] + (1 - beta) * state["z"])
        self.k += 1

    def warmed_up(self, group):
        return group["lr"] * ((self.k + 1) / group["warmup_steps"] if self.k < group["warmup_steps"] else 1.0)


class WrittenSGD(Written):
    def rate(self, group):
        return self.warmed_up(group)

    def direction(self, group, p, state):
        return p.grad


class WrittenAdamW(Written):
    def rate(self, group):
        return self.warmed_up(group) * math.sqrt(1 - group["betas"][1] ** (self.k + 1))

    def direction(self, group, p, state):
        state["v"] = group["betas"][1] * state["v"] + (1 - group["betas"][1]) * p.grad**2
        return p.grad / (state["v"].sqrt() + group["eps"])


class WrittenRAdam(WrittenAdamW):
    def length(self, group):
        beta, t = group["betas"][1], self.k + 1
        longest = 2 / (1 - beta) - 1
        return longest, longest - 2 * t * beta**t / (1 - beta**t)

    def rate(self, group):
        longest, rho = self.length(group)
        if rho <= 4:
            return 0.0 if group["silent_sgd_phase"] else group["lr"]
        return group["lr"] * math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))

    def direction(self, group, p, state):
        super().direction(group, p, state)
        if self.length(group)[1] <= 4:
            return p.grad
        return p.grad / ((state["v"] / (1 - group["betas"][1] ** (self.k + 1))).sqrt() + group["eps"])


COMMON = {"r": 0.5, "weight_lr_power": 2.0, "weight_decay": 0.1}
ADAM = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, **COMMON}
CASES = {
    "SGD": (SGDScheduleFree, WrittenSGD, {"lr": 0.1, "momentum": 0.9, "warmup_steps": 8, **COMMON}),
    "AdamW": (AdamWScheduleFree, WrittenAdamW, {"warmup_steps": 8, **ADAM}),
    "RAdam": (RAdamScheduleFree, WrittenRAdam, {"silent_sgd_phase": True, **ADAM}),
    "RAdam-loud": (RAdamScheduleFree, WrittenRAdam, {"silent_sgd_phase": False, **ADAM}),
}


@pytest.mark.parametrize("name", [name if "-" not in name else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_and_evaluation_are_the_papers(name, executor):
    ours, written, options = CASES[name]
    mine, theirs = parameters(torch.float64), parameters(torch.float64)
    optimizer, reference = ours(mine, **options, **EXECUTORS[executor]), written(theirs, **options)
    run(optimizer, mine, Gradients(torch.float64), range(STEPS))
    run(reference, theirs, Gradients(torch.float64), range(STEPS))
    assert optimizer.executor == executor
    effect = rms(flat(theirs) - flat(parameters(torch.float64)))
    assert effect > 0.01 and rms(flat(mine) - flat(theirs)) <= 1e-8 * effect
    averages = flat([reference.state[p]["x"] for p in theirs])
    apart = rms(averages - flat(theirs))
    with optimizer.evaluating():
        assert apart > 1e-3 * effect and rms(flat(mine) - averages) <= 1e-8 * effect
    assert rms(flat(mine) - flat(theirs)) <= 1e-8 * effect


def test_eval_mode_refuses_steps_and_is_remembered():
    ours, _, options = CASES["AdamW"]
    params = parameters(torch.float64)
    optimizer = ours(params, **options)
    assert optimizer.param_groups[0]["train_mode"] is True
    optimizer.eval()  # nothing to exchange yet
    optimizer.train()
    run(optimizer, params, Gradients(torch.float64), range(4))
    trained = flat(params)
    optimizer.eval()
    evaluated = flat(params)
    optimizer.eval()
    assert same(flat(params), evaluated) and not same(trained, evaluated)

    def closure():
        raise AssertionError("called")

    for arguments in ((), (closure,)):
        with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.*call optimizer.train\(\)"):
            optimizer.step(*arguments)
    with pytest.raises(RuntimeError, match="use_ema"), optimizer.use_ema():
        pass
    assert same(flat(params), evaluated)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    held = copies(params)
    loaded = ours(held, **options)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    others = [(loaded, held)]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        others.append((other, [p for group in other.param_groups for p in group["params"]]))
    optimizer.train()
    assert rms(flat(params) - trained) <= 1e-12
    run(optimizer, params, Gradients(torch.float64), range(4, 7))
    for other, their in others:
        with pytest.raises(RuntimeError, match="in eval mode"):
            other.step()
        other.train()
        run(other, their, Gradients(torch.float64), range(4, 7))
        assert same(snapshot(optimizer), snapshot(other))


def test_evaluating_comes_back_whatever_happens_within():
    ours, _, options = CASES["SGD"]
    params = parameters()
    optimizer = ours(params, **options)
    run(optimizer, params, Gradients(), range(3))
    before = flat(params)
    with pytest.raises(KeyError), optimizer.evaluating():
        assert not same(before, flat(params))
        raise KeyError
    assert rms(flat(params) - before) <= 1e-6
    optimizer.eval()
    with optimizer.evaluating():
        pass
    assert optimizer.param_groups[0]["train_mode"] is False, "as it was"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes_and_layouts(dtype):
    ours, _, options = CASES["AdamW"]
    params = [torch.nn.Parameter(p.detach().mT.contiguous().mT if p.ndim == 2 else p.detach()) for p in parameters(dtype)]
    optimizer = ours(params, **options)
    run(optimizer, params, Gradients(dtype), range(5))
    before, bound = flat(params), 0.02 if dtype is torch.bfloat16 else 1e-5
    optimizer.eval()
    assert not same(before, flat(params)) and params[0].stride() == (1, 40)
    optimizer.train()
    assert rms(flat(params) - before) <= bound * rms(before)


@compiledopt.define(initial={"slow": lambda param: param.clone()}, every={"sync": "k"}, evaluated="slow")
def Lookahead(param, grad, slow, *, lr=0.1, k=3, alpha=0.5, sync):
    """Fast steps, and slow weights that follow them every k steps."""
    param = param - lr * grad
    if sync:
        param = slow = slow + alpha * (param - slow)
    return param, slow


def test_an_exchange_with_a_state():
    params = parameters()
    optimizer = Lookahead(params, lr=0.1 * schedules.linear(0.5, 1.0, 4))
    run(optimizer, params, Gradients(), range(5))
    fast, slow = flat(params), flat([optimizer.state[p]["slow"] for p in params])
    with optimizer.evaluating():
        assert same(flat(params), slow)
    assert same(flat(params), fast) and not same(fast, slow)
    assert same(flat([optimizer.state[p]["slow"] for p in params]), slow)


def test_one_of_several_algorithms():
    params = parameters()
    optimizer = Combined(SGDScheduleFree(params[:2]), compiledopt.AdamW(params[2:]))
    run(optimizer, params, Gradients(), range(3))
    before = [p.detach().clone() for p in params]
    with optimizer.evaluating():
        assert not same(flat(before[:2]), flat(params[:2])) and same(flat(before[2:]), flat(params[2:]))
    optimizer.eval()
    with pytest.raises(RuntimeError, match="in eval mode"):
        optimizer.step()
    added = compiledopt.AdamW(parameters())
    added.eval()
    run(added, added.param_groups[0]["params"], Gradients(), range(1))


def test_what_is_refused():
    with pytest.raises(TypeError, match="evaluated names 'slow'"):
        compiledopt.define(evaluated="slow")(lambda param, grad, *, lr=0.1: param)
    with pytest.raises(TypeError, match="evaluated names 'beta'"):
        compiledopt.define(evaluated=(lambda param, *, beta: param,) * 2)(lambda param, grad, *, lr=0.1: param)
