"""Several algorithms as one optimizer: the same as its parts side by side, with one norm, file, scheduler and step."""

import copy
import io
import pickle

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import SGD, AdamW, Combined, Muon, hidden_matrices, schedules
from compiledopt.step import steady

SHAPES = [(12, 8), (8, 6), (7,), (3, 5), (2,)]
EAGER = {"compiled": {}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def split(params):
    return params[:2], params[2:4], params[4:]


def parts(params, executor="compiled", **options):
    matrices, others, last = split(params)
    eager = EAGER[executor]
    return (
        Muon(matrices, lr=0.02, **eager, **options),
        AdamW([{"params": others}, {"params": last, "weight_decay": 0.0}], lr=0.003, **EXECUTORS[executor], **options),
    )


def params_of(dtype=torch.float32):
    return parameters(dtype, SHAPES)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_same_as_its_parts(executor):
    mine, theirs = params_of(), params_of()
    optimizer, apart = Combined(*parts(mine, executor)), parts(theirs, executor)
    for step in range(8):
        Gradients().set(mine, step)
        Gradients().set(theirs, step)
        optimizer.step()
        for one in apart:
            one.step()
    assert same(flat(mine), flat(theirs)) and rms(flat(mine) - flat(params_of())) > 1e-3
    assert [group["algorithm"] for group in optimizer.param_groups] == ["Muon", "AdamW", "AdamW"]
    assert set(optimizer.executor.split(" + ")) == {executor, "foreach" if executor == "compiled" else executor}
    assert optimizer.explain().startswith("Combined: ") and isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize(("matrices", "others"), [(True, True), (True, False), (False, True)])
def test_a_clipped_step_is_one_native_call_beside_the_matrices(matrices, others):
    """With the bits of steps that Python takes: other bounds, absent gradients and some that are not clipped among them."""
    found = []
    for native in (True, False):
        params = params_of()
        optimizer = Combined(*parts(params))
        for group in optimizer.param_groups:
            group["max_grad_norm"] = 1.5 if (matrices if group["algorithm"] == "Muon" else others) else None
        for step in range(10):
            Gradients().set(params, step)
            params[0].grad = None if step == 7 else params[0].grad
            for param in params if step == 8 else ():
                param.grad *= 1e-3
            if step == 6:
                for group in optimizer.param_groups:
                    group["max_grad_norm"] = 0.5 if group["max_grad_norm"] else None
            optimizer._stepper.steady = optimizer._stepper.steady if native else steady.never
            optimizer.step()
            found.append((flat(params), optimizer.grad_norm))
        if native:
            assert optimizer._stepper.steady.__self__.steps() == 3  # all since the bounds changed
    assert same(found[:10], found[10:]) and rms(found[9][0] - flat(params_of())) > 1e-3


@pytest.mark.parametrize("executor", EXECUTORS)
def test_one_norm_over_all(executor):
    mine, theirs = params_of(), params_of()
    optimizer, apart = Combined(*parts(mine, executor), max_grad_norm=1.5), parts(theirs, executor)
    for step in range(4):
        Gradients().set(mine, step)
        Gradients().set(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
        optimizer.step()
        assert norm > 3 and optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        for one in apart:
            one.step()
    effect = rms(flat(theirs) - flat(params_of()))
    assert rms(flat(mine) - flat(theirs)) <= 5e-3 * effect  # Muon's products round


def test_one_scheduler_and_schedules_of_the_parts():
    params = params_of()
    optimizer = Combined(*parts(params))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    run(optimizer, params, Gradients(), range(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0015, 0.0015])
    matrices, others, _ = split(params_of())
    scheduled = Combined(Muon(matrices, lr=0.02), AdamW(others, lr=0.1 * schedules.linear(0.0, 1.0, 4)))
    run(scheduled, [*matrices, *others], Gradients(), range(2))
    assert scheduled.param_groups[1]["lr"] == pytest.approx(0.05) and scheduled.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
def test_goes_on_from_a_copy(way):
    params = params_of()
    optimizer = Combined(*parts(params))
    run(optimizer, params, Gradients(), range(3))
    if way == "file":
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        others = copies(params)
        other = Combined(*parts(others))
        other.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        other = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        others = [param for group in other.param_groups for param in group["params"]]
    run(optimizer, params, Gradients(), range(3, 6))
    run(other, others, Gradients(), range(3, 6))
    assert same(snapshot(optimizer), snapshot(other))


def test_groups_that_come_later_and_states_that_were_there():
    params = params_of()
    adagrad = compiledopt.Adagrad(params[2:4], lr=0.1, initial_accumulator_value=0.5)
    optimizer = Combined(Muon(params[:2]), adagrad)
    assert optimizer.state[params[2]]["sum"] is adagrad.state[params[2]]["sum"]
    optimizer.add_param_group({"params": params[4:], "algorithm": "Adagrad", "lr": 0.2})
    assert optimizer.param_groups[2]["lr"] == 0.2 and optimizer.param_groups[2]["eps"] == 1e-10
    run(optimizer, params, Gradients(), range(2))
    assert optimizer.state[params[4]]["step"] == 2
    before = len(optimizer.param_groups)
    extra = torch.nn.Parameter(torch.ones(3))
    for group, match in (
        ({"params": [extra]}, "algorithm=None; it is one of"),
        ({"params": [extra], "algorithm": "Adam"}, "algorithm='Adam'"),
        ({"params": [extra], "algorithm": "Muon"}, "only supports 2D"),
        ({"params": [params[0]], "algorithm": "Muon"}, "more than one parameter group"),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == before and extra not in optimizer.state


def test_what_is_refused():
    params = params_of()
    muon, adamw = parts(params)
    with pytest.raises(TypeError, match="optimizers of compiledopt"):
        Combined(muon, torch.optim.AdamW(params[2:]))
    with pytest.raises(TypeError, match="LBFGS"):
        Combined(compiledopt.LBFGS(params))
    with pytest.raises(ValueError, match="more than one parameter group"):
        Combined(muon, SGD(params))
    with pytest.raises(ValueError, match="elementwise"):
        Combined(muon, adamw, ema_decay=0.9)
    saved = Combined(muon, adamw).state_dict()
    other = params_of()
    with pytest.raises(ValueError, match="its groups are of"):
        Combined(SGD(other[:2]), AdamW([{"params": other[2:4]}, {"params": other[4:]}])).load_state_dict(saved)
    named = compiledopt.define(name="AdamW")(lambda param, grad, *, lr=0.1: param - lr * grad)
    with pytest.raises(ValueError, match="two classes of the name AdamW"):
        Combined(AdamW(params[:2]), named(params[2:]))


def test_combined_of_combined_and_plans():
    mine, theirs = params_of(), params_of()
    muon, adamw = parts(mine)
    nested, plain = Combined(Combined(muon), adamw), Combined(*parts(theirs))
    run(nested, mine, Gradients(skip=True), range(6))
    run(plain, theirs, Gradients(skip=True), range(6))
    assert same(flat(mine), flat(theirs))


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 4)
        self.attention = torch.nn.Linear(4, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.out = torch.nn.Linear(8, 4)
        self.filters = torch.nn.Conv1d(2, 2, 3)
        self.lm_head = torch.nn.Linear(4, 11, bias=False)
        self.lm_head.weight = self.embedding.weight


def test_hidden_matrices():
    model = Tied()
    matrices, others = hidden_matrices(model)
    assert [id(p) for p in matrices] == [id(model.attention.weight), id(model.out.weight)]
    assert {id(p) for p in [*matrices, *others]} == {id(p) for p in model.parameters()}
    assert len(matrices) + len(others) == len(list(model.parameters()))
    matrices, _ = hidden_matrices(model, head=["out"])
    assert [id(p) for p in matrices] == [id(model.attention.weight)]
    with pytest.raises(ValueError, match="no module 'head'"):
        hidden_matrices(model, head="head")
    optimizer = Combined(Muon(matrices), AdamW(others))
    model.attention(torch.ones(2, 4)).sum().backward()
    optimizer.step()
