"""`skip_nonfinite`: a step whose gradients are not all finite changes nothing, and the next goes on as if it had not been."""

import copy
import io
import math
import re

import pytest
import torch
from catalog import CATALOG, EXECUTORS, one_per_algorithm, one_per_kind
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import schedules

BAD = (0, 3, 4)  # the first step among them: its states are made, and stay as they were made
SHAPES = [(6, 7), (301,), ()]
RUNS = [(case, executor) for case in one_per_algorithm() for executor in ("foreach", "for-loop") if case.of.in_torch]
QUICK = [next(one.name for one in CATALOG.values() if one.states_at_once is at_once) for at_once in (False, True)]
RUNS += [
    pytest.param(case, "compiled", marks=[] if case.algorithm in QUICK else [pytest.mark.slow])
    for case in one_per_algorithm()
    if case.of.in_torch
]


def spoil(params, value):
    params[1].grad.view(-1)[17] = value


def interrupted(optimizer, params, steps=range(7), bad=BAD):
    """Steps with gradients of their own, of which some are spoilt; those change nothing but the count."""
    for step in steps:
        if step in bad:
            before = snapshot(optimizer)
            Gradients(params[0].dtype).set(params, 100 + step)
            spoil(params, (math.inf, math.nan, -math.inf)[step % 3])
            optimizer.step()
            for (old, _, states), (new, _, now) in zip(before, snapshot(optimizer), strict=True):
                assert same(old, new)
                assert all(same(value, now[name]) for name, value in states.items() if name not in ("skipped", "first_waits"))
        run(optimizer, params, Gradients(params[0].dtype), range(step, step + 1))


@pytest.mark.parametrize(("case", "executor"), RUNS, ids=str)
def test_as_if_a_bad_step_had_not_been(case, executor):
    start = parameters(torch.float64, SHAPES)
    theirs, mine = copies(start), copies(start)
    run(case.torch(theirs, torch.float64), theirs, Gradients(torch.float64), range(7))
    optimizer = case.ours(mine, executor, torch.float64, skip_nonfinite=True)
    assert optimizer.skipped is None or case.of.states_at_once
    interrupted(optimizer, mine)
    assert optimizer.executor == executor and optimizer.skipped.item() == len(BAD)
    bound = 1e-4 if case.algorithm == "NAdam" else 1e-9  # torch's product is float32
    assert rms(flat(mine) - flat(theirs)) <= bound * rms(flat(theirs) - flat(start))
    assert all(state["step"].item() == 7 for state in optimizer.state.values() if "step" in state)


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
@pytest.mark.parametrize("algorithm", one_per_kind(lambda one: one.rule.dense and not one.elementwise), ids=str)
def test_rules_that_are_not_elementwise(algorithm, executor):
    shapes = [(6, 7), (5, 9)]
    plain, mine = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    reference = algorithm.ours(plain, **EXECUTORS[executor])
    run(reference, plain, Gradients(torch.float64), range(7))
    optimizer = algorithm.ours(mine, skip_nonfinite=True, **EXECUTORS[executor])
    interrupted(optimizer, mine)
    assert optimizer.skipped.item() == len(BAD)
    assert same([p.detach() for p in plain], [p.detach() for p in mine])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_with_all_that_may_stand_around(executor):
    """One norm for both; the average, the schedule and the count of the mask's optimizer all stand still."""
    options = {"max_grad_norm": 1.0, "ema_decay": 0.9, "cautious": True, "update_clipping": 1.0, "weight_decay": 0.1}
    options |= {"corrected_decay": 0.1, "gradient_centralization": True, **EXECUTORS[executor]}
    plain, mine = parameters(shapes=SHAPES[:2]), parameters(shapes=SHAPES[:2])
    lr = 0.1 * schedules.cosine_annealing(20)
    reference = compiledopt.AdamW(plain, lr=lr, **options)
    run(reference, plain, Gradients(), range(7))
    optimizer = compiledopt.AdamW(mine, lr=lr, skip_nonfinite=True, **options)
    interrupted(optimizer, mine)
    effect = rms(flat(plain) - flat(parameters(shapes=SHAPES[:2])))
    assert rms(flat(mine) - flat(plain)) <= 1e-4 * effect
    assert rms(flat(optimizer.ema_parameters()) - flat(reference.ema_parameters())) <= 1e-4 * effect
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    Gradients().set(mine, 0)
    spoil(mine, math.nan)
    optimizer.step()
    assert math.isnan(optimizer.grad_norm.item()) and optimizer.skipped.item() == len(BAD) + 1
    text = optimizer.explain()
    assert text.count("the norm over all gradients is measured first") == len(re.findall(r"tensors? of", text))
    assert ("n_skipped" in text) is (executor == "compiled")  # what stacks run is no program
    assert ("if N finite else" in text) is (executor == "compiled") and "isfinite(N)" not in re.sub("(?s)program.*", "", text)


def test_one_bad_gradient_stops_every_group():
    params = parameters(shapes=[(5,), (301,), (7,)])
    groups = [{"params": [param], "skip_nonfinite": which} for param, which in zip(params, (True, True, False), strict=True)]
    optimizer = compiledopt.SGD(groups, lr=0.1)
    Gradients().set(params, 0)
    spoil(params, math.inf)
    before = copies(params)
    optimizer.step()
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [True, True, False]
    assert optimizer.skipped.item() == 1


def test_a_count_goes_through_a_file_and_absent_gradients_do_not_count():
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params, skip_nonfinite=True)
    interrupted(optimizer, params)
    Gradients().set(params, 0)
    spoil(params, math.nan)
    params[0].grad = None
    optimizer.step()
    assert optimizer.skipped.item() == 4 and optimizer.state[params[0]]["skipped"].item() == 3
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = copies(params)
    resumed = compiledopt.AdamW(again, skip_nonfinite=True)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    twin, other = copy.deepcopy((optimizer, params))
    for one, its in ((optimizer, params), (resumed, again), (twin, other)):
        interrupted(one, its, range(7, 10), bad=(8,))
        assert one.skipped.item() == 5
    assert same(snapshot(optimizer), snapshot(resumed)) and same(snapshot(optimizer), snapshot(twin))
    # One that torch saved has no count, and begins at zero.
    theirs = copies(params)
    torchs = torch.optim.AdamW(theirs)
    run(torchs, theirs, Gradients(), range(2))
    resumed.load_state_dict(torchs.state_dict())
    run(resumed, again, Gradients(), range(1))
    assert resumed.skipped.item() == 0 and resumed.state[again[0]]["step"].item() == 3


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_first_momentum_that_had_to_wait(executor):
    """SGD's first momentum is the gradient, dampening or not: at the first step that counts."""
    params = [torch.nn.Parameter(torch.zeros(4))]
    optimizer = compiledopt.SGD(params, lr=1.0, momentum=0.9, dampening=0.5, skip_nonfinite=True, **EXECUTORS[executor])
    for value, expected in ((math.inf, 0.0), (math.nan, 0.0), (1.0, 1.0), (1.0, 0.9 + 0.5)):
        params[0].grad = torch.full((4,), value)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[params[0]]["momentum_buffer"], torch.full((4,), expected))
    assert optimizer.skipped.item() == 2


def test_no_average_before_the_first_update():
    params = [torch.nn.Parameter(torch.ones(4))]
    optimizer = compiledopt.SGD(params, lr=1.0, ema_decay=0.5, skip_nonfinite=True)
    params[0].grad = torch.full((4,), math.nan)
    optimizer.step()
    with optimizer.use_ema():
        assert params[0].tolist() == optimizer.ema_parameters()[0].tolist() == [1.0] * 4
    params[0].grad = torch.ones(4)
    optimizer.step()
    assert optimizer.ema_parameters()[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"capturable": True}], ids=str)
def test_with_grad_scaler(flags):
    """The scaler leaves out what it sees, which is not counted here; what is spoilt after it, the step does."""
    plain, mine = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    reference = compiledopt.AdamW(plain, max_grad_norm=1.0)
    optimizer = compiledopt.AdamW(mine, max_grad_norm=1.0, skip_nonfinite=True, **flags)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for step in range(6):
        if step % 3 == 1:
            Gradients().set(mine, step)
            for param in mine:
                param.grad.copy_(scaler.scale(param.grad))
            spoil(mine, math.inf)
            scaler.step(optimizer)
            scaler.update()
        if step % 3 == 2:
            Gradients().set(mine, step)
            spoil(mine, math.inf)
            optimizer.step()
        Gradients().set(mine, step)
        for param in mine:
            param.grad.copy_(scaler.scale(param.grad))
        scaler.step(optimizer)
        scaler.update()
        run(reference, plain, Gradients(), range(step, step + 1))
        torch.testing.assert_close(optimizer.grad_norm, reference.grad_norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(flat(mine), flat(plain), rtol=1e-5, atol=1e-6)
    assert optimizer.skipped.item() == 2


def test_nothing_compiles_again_when_a_step_is_left_out():
    params = parameters(shapes=SHAPES)
    optimizer = compiledopt.AdamW(params, skip_nonfinite=True, max_grad_norm=1.0)
    run(optimizer, params, Gradients(), range(2))
    before = compiledopt.compile_stats()
    interrupted(optimizer, params)
    assert compiledopt.compile_stats() == before


def test_who_is_refused():
    with pytest.raises(ValueError, match="Invalid skip_nonfinite value: 1; it is True or False"):
        compiledopt.AdamW(parameters(), skip_nonfinite=1)
    with pytest.raises(ValueError, match="skip_nonfinite is for rules that take dense gradients"):
        compiledopt.SparseAdam([{"params": parameters(), "skip_nonfinite": True}])
    params = parameters()
    optimizer = compiledopt.SGD(params, skip_nonfinite=True)
    params[0].grad = torch.ones(40, 50).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients with `skip_nonfinite`"):
        optimizer.step()
