"""What stands around an update: a schedule of the rate, clipping and an average inside the step, against torch's own."""

import collections
import copy
import gc
import io
import warnings
import weakref
from functools import partial

import pytest
import torch
from catalog import BASELINE, CASES, CATALOG, EXECUTORS, by_kind, in_every_dtype, one_per_kind
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot
from torch.optim import lr_scheduler as torchs
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import compiledopt
from compiledopt import around, schedules
from compiledopt.schedules import Schedule

DECAY, MOST, STEPS = 0.9, 1.5, 12
ELEMENTWISE = one_per_kind(lambda one: one.elementwise)
WITH_RATE = [case for case in CASES if case.label in ("default", "all", "capturable", "momentum", "amsgrad", "centered")]


def warmup_cosine(lr):
    return lr * schedules.sequential([schedules.linear(0.1, 1.0, 4), schedules.cosine_annealing(10)], [4])


def torchs_warmup_cosine(optimizer):
    parts = [torchs.LinearLR(optimizer, 0.1, 1.0, 4), torchs.CosineAnnealingLR(optimizer, 10)]
    return torchs.SequentialLR(optimizer, parts, [4])


def averaged(params):
    model = torch.nn.Module()
    model.params = torch.nn.ParameterList(params)
    return model, AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def reference(case, dtype=torch.float32, values=None):
    """Parameters, averages and norms of torch's step with what torch has around it, from numbers of dtype `values`."""
    params = copies(parameters(values or dtype), dtype)
    optimizer = case.torch(params, values or dtype, **BASELINE.get(case.label, {}))
    model, average = averaged(params)
    scheduler, norms = torchs_warmup_cosine(optimizer), []
    for step in range(STEPS):
        Gradients(values or dtype).set(params, step)
        norms.append(torch.nn.utils.clip_grad_norm_(params, MOST, foreach=False))
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
    return flat(params), flat(average.module.params), norms


@pytest.mark.parametrize(("case", "dtype"), in_every_dtype(WITH_RATE, [torch.bfloat16], slow=[torch.float64, torch.complex64]))
@pytest.mark.parametrize("executor", EXECUTORS)
def test_all_three_against_torch(case, executor, dtype):
    start, (expected, average, norms) = flat(parameters(dtype)), reference(case, dtype)
    mine = parameters(dtype)
    lr = warmup_cosine(float(case.kwargs()["lr"]))
    optimizer = case.ours(mine, executor, dtype, lr=lr, max_grad_norm=MOST, ema_decay=DECAY)
    for step in range(STEPS):
        Gradients(dtype).set(mine, step)
        before = [p.grad.clone() for p in mine]
        optimizer.step()
        assert same(before, [p.grad for p in mine]), "a gradient was modified"
        assert optimizer.grad_norm.item() == pytest.approx(norms[step].item(), rel=1e-2 if dtype is torch.bfloat16 else 1e-5)
        assert norms[step] > MOST, "nothing is clipped, so nothing is tested"
    assert optimizer.executor == executor
    effect, apart = rms(expected - start), rms(expected - average)
    assert effect > 1e-4 and apart > 1e-5
    pairs = [(flat(mine), expected, effect), (flat(optimizer.ema_parameters()), average, apart)]
    if dtype is torch.bfloat16:  # torch rounds gradients, parameters and averages one after the other
        for (found, torchs_own, _), exact in zip(pairs, reference(case, torch.float64, values=dtype)[:2], strict=True):
            assert rms(found - exact) <= 1.1 * rms(torchs_own - exact)
        return
    bound = 1e-9 if dtype is torch.float64 and case.algorithm != "NAdam" else 1e-4  # torch's mu_product is float32
    for found, torchs_own, scale in pairs:
        assert rms(found - torchs_own) <= bound * scale


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_absent_gradients(case, executor):
    """A parameter without a gradient stands still with its average and its place in the schedule."""
    mine = parameters()
    optimizer = case.ours(mine, executor, lr=warmup_cosine(0.1), max_grad_norm=MOST, ema_decay=DECAY)
    counts = [0] * len(mine)
    for step in range(8):
        Gradients(skip=True).set(mine, step)
        before = snapshot(optimizer)
        optimizer.step()
        for index, param in enumerate(mine):
            counts[index] += param.grad is not None
            if param.grad is None:
                assert same(before[index], snapshot(optimizer)[index])
    assert len(set(counts)) > 1
    assert (
        [optimizer.state[p]["step"].item() for p in mine] == [optimizer.state[p]["n_averaged"].item() for p in mine] == counts
    )
    assert optimizer.param_groups[0]["lr"] == warmup_cosine(0.1)(max(counts))


ON_TENSORS = [one for one in CATALOG.values() if one.rule is not None and one.rule.dense and not one.elementwise]


@pytest.mark.parametrize(
    ("of", "executor"), [(of, each) for of in ON_TENSORS for each in EXECUTORS if of.reduces or each != "compiled"], ids=str
)
def test_rules_that_are_not_elementwise(of, executor):
    shapes = [(8, 6), (8, 6), (5, 9)]
    theirs, mine = parameters(torch.float64, shapes), parameters(torch.float64, shapes)
    baseline = of.counterpart(theirs, lr=0.1)
    scheduler = torchs_warmup_cosine(baseline)
    optimizer = of.ours(mine, lr=warmup_cosine(0.1), max_grad_norm=MOST, **EXECUTORS[executor])
    for step in range(STEPS):
        Gradients(torch.float64).set(theirs, step)
        Gradients(torch.float64).set(mine, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, MOST)
        baseline.step()
        scheduler.step()
        optimizer.step()
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-9)
    effect = rms(flat(theirs) - flat(parameters(torch.float64, shapes)))
    assert effect > 1e-3
    # Products in bfloat16, of stacks or one by one, are chaotic in the last bits.
    assert rms(flat(mine) - flat(theirs)) <= (0.1 if of.multiplies else 1e-5) * effect
    with pytest.raises(ValueError, match=r"ema_decay is for rules that are elementwise, .* is not; use compiledopt\.swa_utils"):
        of.ours(mine, ema_decay=0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_differentiable(dtype):
    """Through the rule itself; the coefficient is a constant, as after torch's clip_grad_norm_."""
    leaf = torch.randn(5, dtype=dtype, requires_grad=True)
    param = leaf.clone()
    param.grad = torch.full((5,), 3.0, dtype=dtype)
    around = {"max_grad_norm": 1.0, "ema_decay": 0.5}
    optimizer = compiledopt.SGD([param], lr=0.5 * schedules.exponential(0.5), **around, differentiable=True)
    for _ in range(2):
        optimizer.step()
    coefficient = 1 / (45**0.5 + 1e-6)
    torch.testing.assert_close(param, leaf - (0.5 + 0.25) * 3.0 * coefficient)
    torch.testing.assert_close(optimizer.ema_parameters()[0], leaf - (0.5 + 0.125) * 3.0 * coefficient)
    param.sum().backward()
    assert leaf.grad.tolist() == [1.0] * 5


# ---- the norm ----


@pytest.mark.parametrize("executor", EXECUTORS)
def test_norms(executor):
    """Below the bound nothing changes; zeros, infinities and NaNs do what torch's clip_grad_norm_ and step do."""
    for scale in (1e-3, 0.0, 1e3, torch.inf, torch.nan):
        theirs, mine = parameters(shapes=[(100,), (7, 3)]), parameters(shapes=[(100,), (7, 3)])
        baseline = torch.optim.SGD(theirs, lr=0.1, foreach=False)
        optimizer = compiledopt.SGD(mine, lr=0.1, max_grad_norm=1.0, **EXECUTORS[executor])
        for params in (theirs, mine):
            Gradients().set(params, 0)
            params[0].grad[3] = scale
            params[0].grad[4:].mul_(1e-4)
            params[1].grad.mul_(1e-4)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0, foreach=False)
        baseline.step()
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm.float(), norm, equal_nan=True, rtol=1e-5, atol=0)
        for p, q in zip(theirs, mine, strict=True):
            torch.testing.assert_close(q, p, equal_nan=True)


def test_the_norm_does_not_depend_on_the_threads():
    params = parameters(shapes=[(300_001,), (700_000,), (5,)])
    norms = set()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        optimizer = compiledopt.SGD(params, lr=0.0, max_grad_norm=1.0, compiled=True)
        Gradients().set(params, 0)
        optimizer.step()
        norms.add(optimizer.grad_norm.item())
    exact = flat([p.grad for p in params]).norm().item()
    assert len(norms) == 1 and norms.pop() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_norm_as_small_as_its_epsilon(executor):
    """torch's 1e-6 beside the norm halves a gradient of that norm."""
    theirs, mine = (parameters(shapes=[(4,)], dtype=torch.float64) for _ in range(2))
    for param in (*theirs, *mine):
        param.grad = torch.full_like(param, 5e-7)
    before, norm = flat(theirs), torch.nn.utils.clip_grad_norm_(theirs, 1e-6)
    torch.optim.SGD(theirs, lr=1.0).step()
    compiledopt.SGD(mine, lr=1.0, max_grad_norm=1e-6, **EXECUTORS[executor]).step()
    change = (flat(theirs) - before).abs().max()
    assert abs(norm - 1e-6) < 1e-12 and abs(change - 2.5e-7) < 1e-12
    assert (flat(mine) - flat(theirs)).abs().max() < 1e-6 * change


@pytest.mark.parametrize("executor", EXECUTORS)
def test_groups_with_bounds_of_their_own(executor):
    """The norm is over the groups that are clipped; each is clipped to its own bound."""
    params = parameters(shapes=[(50,), (60,), (70,)])
    start = copies(params)
    bounds = [0.5, 2.0, None]
    groups = [{"params": [p], "max_grad_norm": bound} for p, bound in zip(params, bounds, strict=True)]
    optimizer = compiledopt.SGD(groups, lr=1.0, **EXECUTORS[executor])
    for changed in (1.0, 4.0):
        before = copies(params)
        Gradients().set(params, 0)
        optimizer.step()
        norm = flat([p.grad for p in params[:2]]).norm()
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        for p, old, bound in zip(params, before, (0.5 * changed, 2.0, None), strict=True):
            coefficient = 1.0 if bound is None else min(1.0, bound / (norm.item() + 1e-6))
            torch.testing.assert_close(p, old - coefficient * p.grad)
        optimizer.param_groups[0]["max_grad_norm"] = 2.0
    assert not torch.equal(params[0], start[0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_parameter_listed_twice(executor):
    """It is updated twice, and the norm is measured once: over all parameters, also while those listed twice go on alone."""
    params, twice = parameters(shapes=[(30,), (50,)]), parameters(shapes=[(30,), (50,)])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = compiledopt.SGD([params[0], params[1], params[0]], lr=0.1, max_grad_norm=0.5, **EXECUTORS[executor])
    run(optimizer, params, Gradients(), range(3))
    for step in range(3):
        Gradients().set(twice, step)
        norm = flat([p.grad for p in twice]).norm()
        for param, times in zip(twice, (2, 1), strict=True):
            param.data -= 0.1 * times * param.grad * min(1.0, 0.5 / (norm.item() + 1e-6))
    assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    for mine, expected in zip(params, twice, strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_norm_is_over_all_executors():
    """A parameter that is not dense runs on another one; its gradients count, and its bound is that of the others."""
    dense, odd = torch.nn.Parameter(torch.ones(50)), torch.nn.Parameter(torch.ones(6, 8)[:, ::2])
    dense.grad, odd.grad = torch.full((50,), 2.0), torch.full((6, 4), 3.0)
    optimizer = compiledopt.SGD([dense, odd], lr=1.0, max_grad_norm=1.0)
    with pytest.warns(UserWarning, match="not dense"):
        optimizer.step()
    norm = (50 * 4.0 + 24 * 9.0) ** 0.5
    assert optimizer.executor == "compiled + for-loop" and optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(dense.detach(), torch.full((50,), 1 - 2 / norm))
    torch.testing.assert_close(odd.detach(), torch.full((6, 4), 1 - 3 / norm))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_norm_of_half_gradients(executor, dtype):
    """Not rounded to their dtype, and beyond its largest number."""
    params = [torch.nn.Parameter(torch.zeros(1000, dtype=dtype)) for _ in range(3)]
    for index, param in enumerate(params):
        param.grad = torch.full((1000,), 3000.0 + 16 * index, dtype=dtype)
    optimizer = compiledopt.SGD(params, lr=0.0, max_grad_norm=1.0, **EXECUTORS[executor])
    optimizer.step()
    exact = flat([param.grad for param in params]).norm().item()
    assert exact > 65504 and optimizer.grad_norm.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_under_a_scaler(fused):
    """The norm is that of the gradients themselves."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    theirs, mine = parameters(), parameters()
    baseline = torch.optim.AdamW(theirs, lr=0.01)
    optimizer = compiledopt.AdamW(mine, lr=0.01, max_grad_norm=MOST, ema_decay=DECAY, fused=fused)
    for step in range(5):
        Gradients().set(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs, MOST)
        baseline.step()
        Gradients().set(mine, step)
        scaler.scale(torch.ones(()))
        for param in mine:
            param.grad.mul_(64.0)
        scaler.step(optimizer)
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        scaler.update(64.0)
    assert (flat(mine) - flat(theirs)).abs().max() <= 1e-6


# ---- the average ----


def test_evaluate_with_averages():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = compiledopt.AdamW(model.parameters(), lr=0.1, ema_decay=0.5)
    assert optimizer.ema_parameters()[0].data_ptr() == model.weight.data_ptr(), "before the first step"
    x = torch.randn(3, 4)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    kept, averages = copies(model.parameters()), [a.clone() for a in optimizer.ema_parameters()]
    addresses = [p.data_ptr() for p in model.parameters()]
    with optimizer.use_ema():
        assert same([p.detach() for p in model.parameters()], averages)
        assert addresses == [p.data_ptr() for p in model.parameters()]
        load = partial(optimizer.load_state_dict, {"state": {}, "param_groups": []})
        for refused in (optimizer.step, optimizer.state_dict, load, optimizer.use_ema().__enter__):
            with pytest.raises(RuntimeError, match="use_ema"):
                refused()
    assert same([p.detach() for p in model.parameters()], [p.detach() for p in kept])
    assert not same(averages, [p.detach() for p in kept])
    with pytest.raises(ZeroDivisionError), optimizer.use_ema():
        1 / 0  # noqa: B018
    assert same([p.detach() for p in model.parameters()], [p.detach() for p in kept])
    optimizer.step()


def test_averages_of_a_parameter_listed_twice():
    """Exchanged once."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = compiledopt.SGD([param, param], lr=0.25, ema_decay=0.5)
    for _ in range(2):
        optimizer.step()
    kept, average = param.detach().clone(), optimizer.ema_parameters()[0].clone()
    with optimizer.use_ema():
        assert torch.equal(param.detach(), average) and not torch.equal(average, kept)
    assert torch.equal(param.detach(), kept)


@pytest.mark.parametrize("of", ELEMENTWISE, ids=str)
def test_an_average_begun_later(of):
    """It starts at the parameter, and the states of the rule stay as they are (SGD's momentum most of all)."""
    theirs, mine = parameters(), parameters()
    baseline, optimizer = (of.ours(p, **{**of.promised, "lr": 0.1}) for p in (theirs, mine))
    run(baseline, theirs, Gradients(), range(3))
    run(optimizer, mine, Gradients(), range(3))
    optimizer.param_groups[0]["ema_decay"] = 0.9
    run(baseline, theirs, Gradients(), range(3, 6))
    run(optimizer, mine, Gradients(), range(3, 4))
    assert same([p.detach() for p in mine], [a.detach() for a in optimizer.ema_parameters()])
    run(optimizer, mine, Gradients(), range(4, 6))
    assert (flat(mine) - flat(theirs)).abs().max() <= 1e-6
    assert all(optimizer.state[p]["n_averaged"] == 3 for p in mine)


def test_bytes_of_the_average():
    """One read and one write of the average more; the parameter is not read again."""
    plain, more = (compiledopt.AdamW(parameters(), **kw)._explanation().parts[0] for kw in ({}, {"ema_decay": 0.9}))
    assert more.bytes_read_per_element - plain.bytes_read_per_element == 4
    assert more.bytes_written_per_element - plain.bytes_written_per_element == 4
    assert more.kernels == plain.kernels == 1


def test_explain_tells_of_the_norm():
    """Its pass over the gradients is one more read of them, and a call."""
    plain, clipped = (compiledopt.AdamW(parameters(), **kw)._explanation().parts[0] for kw in ({}, {"max_grad_norm": 1.0}))
    assert (
        clipped.bytes_read_per_element - plain.bytes_read_per_element == 4
        and clipped.calls_per_step == plain.calls_per_step + 1
    )
    told = compiledopt.AdamW(parameters(), max_grad_norm=1.0, lr=schedules.exponential(0.5)).explain()
    assert "the norm over all gradients is measured first" in told and "pow(0.5, step)" in told


# ---- the schedule ----


def test_the_rate_is_there_when_read_and_can_be_replaced():
    params = parameters()
    schedule = warmup_cosine(0.1)
    optimizer = compiledopt.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], lr=schedule)
    shown = []
    for step in range(6):
        shown.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]))
        run(optimizer, params, Gradients(), [step])
    assert shown == [(schedule(step), 0.5) for step in range(6)] and len(set(shown)) > 4
    assert f"lr: {schedule(6)}" in repr(optimizer)
    kept = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["lr"] = kept  # what was read brings the schedule back
    run(optimizer, params, Gradients(), [6])
    assert optimizer.param_groups[0]["lr"] == schedule(7)
    before = copies(params)
    optimizer.param_groups[0]["lr"] = 0.25
    with pytest.warns(UserWarning, match=r"the schedule .* of param_groups\[0\] ended, since test_around .* lr to 0.25"):
        run(optimizer, params, Gradients(), [6])
    assert optimizer.param_groups[0]["lr"] == 0.25
    torch.testing.assert_close(params[0], before[0] - 0.25 * params[0].grad)
    optimizer.param_groups[1]["lr"] = schedule  # into a plain group: from the next step on
    before = copies(params)
    run(optimizer, params, Gradients(), [7])
    torch.testing.assert_close(params[2], before[2] - schedule(0) * params[2].grad)
    assert optimizer.param_groups[1]["lr"] == schedule(1)


def scheduled_steps(steps):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = compiledopt.AdamW([param], lr=schedules.linear(1.0, 0.0, 10))
    for _ in range(steps):
        optimizer.step()
    return optimizer, param


def test_however_the_group_is_read():
    readers = [
        dict,
        lambda g: {**g},
        lambda g: dict(g.items()),
        lambda g: dict(zip(g, g.values(), strict=True)),
        lambda g: g.copy(),
    ]
    readers += [lambda g: {name: g[name] for name in g}, copy.deepcopy, lambda g: {} | g, lambda g: {"lr": g.get("lr")}]
    readers += [lambda g: {"lr": next(value for value in g.values() if isinstance(value, float))}]
    for read in readers:
        optimizer, _ = scheduled_steps(2)  # one reading would refresh what the next one sees
        (group,) = optimizer.param_groups
        assert read(group)["lr"] == 0.8
    optimizer.step()
    assert "'lr': 0.7" in repr(group) and dict(group)["lr"] == group.get("lr") == 0.7


def test_a_schedule_follows_the_states_of_its_optimizer():
    """Another dict of states (fastai puts one there), and another optimizer that takes over the groups (torchrl)."""
    optimizer, _ = scheduled_steps(2)
    optimizer.state = collections.defaultdict(dict)
    assert optimizer.param_groups[0]["lr"] == 1.0
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.9
    other = type(optimizer)(optimizer.param_groups)
    assert other.param_groups[0]["lr"] == 1.0
    other.step()
    other.step()
    assert (other.param_groups[0]["lr"], optimizer.param_groups[0]["lr"]) == (0.8, 0.9)


def test_an_ended_schedule_is_told_of_and_comes_back():
    optimizer, param = scheduled_steps(1)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 1e-3  # what a learning-rate finder does
    with pytest.warns(UserWarning, match="the schedule linear.* ended, since test_around .* set its lr to 0.001") as told:
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        optimizer.param_groups[0]["maximize"] = True  # another plan
        optimizer.step()
        optimizer.param_groups[0]["maximize"] = False
        optimizer.step()
    assert len(told) == 1
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.9
    before = param.detach().clone()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.8 and (param - before).abs().max() > 0.5


def test_a_torch_scheduler_on_a_scheduled_optimizer_is_named():
    optimizer, _ = scheduled_steps(1)
    scheduler = torchs.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    with pytest.warns(UserWarning, match="ended, since torch.optim.lr_scheduler "):
        optimizer.step()


def test_a_rate_of_zero_for_one_step_is_not_told_of():
    """Distributed checkpoints make the states so."""
    optimizer, _ = scheduled_steps(0)
    kept = optimizer.param_groups[0]["lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = kept
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_another_schedule_is_no_other_kernel():
    params = parameters()
    run(compiledopt.AdamW(params, lr=schedules.exponential(0.5), max_grad_norm=1.0), params, Gradients(), range(2))
    before = compiledopt.compile_stats()
    for lr in (schedules.cosine_annealing(9), 0.1 * schedules.linear(), Schedule(lambda step: 1 / (step + 1))):
        optimizer = compiledopt.AdamW(params, lr=lr, max_grad_norm=2.0)
        run(optimizer, params, Gradients(), range(5))
        optimizer.param_groups[0]["max_grad_norm"] = 0.5
        run(optimizer, params, Gradients(), range(5))
    after = compiledopt.compile_stats()
    assert all(after[key] == before[key] for key in ("kernels_compiled", "kernels_lowered"))
    plans = after["plans_built"]
    run(optimizer, params, Gradients(), range(20))
    assert compiledopt.compile_stats()["plans_built"] == plans


def test_what_cannot_be():
    params = parameters()
    with pytest.raises(TypeError, match=r"test_around.py:\d+: a rule must not branch on the value"):
        compiledopt.AdamW(params, lr=Schedule(lambda step: 1.0 if step < 3 else 0.1))
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        compiledopt.AdamW(params, lr=-1.0 * schedules.exponential(0.9))
    with pytest.raises(ValueError, match=r"Invalid max_grad_norm value: -1\.0"):
        compiledopt.AdamW(params, max_grad_norm=-1.0)
    with pytest.raises(ValueError, match=r"Invalid decay value 1\.5 provided"):
        compiledopt.AdamW(params, ema_decay=1.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_grad_nrom'"):
        compiledopt.AdamW(params, max_grad_nrom=1.0)
    with pytest.raises(ValueError, match="a schedule as lr is for optimizers that are one rule for each parameter"):
        compiledopt.LBFGS(params, lr=schedules.exponential(0.9))
    for more in ({"max_grad_norm": 1.0}, {"ema_decay": 0.5}):
        optimizer = compiledopt.SGD(params, **more)
        params[0].grad = torch.ones(40, 50).to_sparse()
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="does not support sparse gradients with `" + next(iter(more)) + "`"):
            optimizer.step()
        assert same(before, snapshot(optimizer))
    optimizer = compiledopt.SGD(params)
    with pytest.raises(ValueError, match="Invalid max_grad_norm value"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "max_grad_norm": -2.0})
    assert len(optimizer.param_groups) == 1


# ---- states ----


@pytest.mark.parametrize("of", ELEMENTWISE, ids=str)
def test_resumes_in_the_middle(of):
    def make(params):
        return of.ours(params, lr=warmup_cosine(0.1), max_grad_norm=MOST, ema_decay=DECAY)

    mine = parameters()
    optimizer = make(mine)
    run(optimizer, mine, Gradients(), range(5))
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in mine]}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == warmup_cosine(0.1)(5)
    again = copies(saved["params"])
    resumed = make(again)
    resumed.load_state_dict(saved["optimizer"])
    twin = copy.deepcopy(optimizer)
    for one in (optimizer, resumed, twin):
        assert one.param_groups[0]["lr"] == warmup_cosine(0.1)(5)
        run(one, one.param_groups[0]["params"], Gradients(), range(5, 9))
    for other in (resumed, twin):
        assert same([p.detach() for p in mine], [p.detach() for p in other.param_groups[0]["params"]])
        assert same(optimizer.ema_parameters(), other.ema_parameters())
        assert other.param_groups[0]["lr"] == warmup_cosine(0.1)(9)
    torchs_own = of.counterpart(copies(mine), lr=0.1)
    torchs_own.load_state_dict(resumed.state_dict())
    run(torchs_own, torchs_own.param_groups[0]["params"], Gradients(), range(2))


def test_ones_own_rule_has_them_too():
    @compiledopt.define
    def Signed(param, grad, *, lr=0.1):
        return param - lr * grad.sign()

    params, start = parameters(shapes=[(5,)]), parameters(shapes=[(5,)])
    optimizer = Signed(params, lr=schedules.step(1, 0.5), ema_decay=0.5, max_grad_norm=1.0)
    run(optimizer, params, Gradients(), range(3))
    signs = []
    for step in range(3):
        Gradients().set(start, step)
        signs.append(start[0].grad.sign())
    torch.testing.assert_close(params[0].detach(), start[0].detach() - sum(s * 0.5**i for i, s in enumerate(signs)))
    assert optimizer.executor == "compiled" and "n_averaged" in optimizer.state[params[0]]


def test_an_expression_written_anew_is_the_same_schedule():
    """As for the optimizers of a search or of the folds of a cross-validation: nothing is traced or kept for each of them."""

    def make():
        return compiledopt.SGD(parameters(), lr=0.1 * (schedules.exponential(0.5) + 1) - 1e-3).param_groups[0]["lr_schedule"]

    first, before = make(), compiledopt.compile_stats()["programs_traced"]
    assert make() is first and compiledopt.compile_stats()["programs_traced"] == before
    assert isinstance((1 * schedules.exponential(1.0))(0), float) and (True * schedules.linear())(0) == schedules.linear()(0)
    rate = torch.tensor(0.5)
    assert (schedules.exponential(0.5) * rate)(1) == 0.25
    rate.fill_(4.0)
    assert (schedules.exponential(0.5) * rate)(1) == 2.0


@pytest.mark.parametrize("of", [ELEMENTWISE[0], *one_per_kind(lambda one: not one.elementwise and one.rule.dense)], ids=str)
def test_what_is_made_for_a_schedule_ends_with_it(of):
    """Another function for each of many optimizers, as in a search, kept a rule and its programs each."""
    params = parameters(shapes=[(4, 3)])
    optimizer = of.ours(params, lr=Schedule(lambda step: 0.1 / (step + 1)))
    run(optimizer, params, Gradients(), range(4))
    group = optimizer.param_groups[0]
    made = weakref.ref(around.derived(optimizer.rule_of(group), group))
    assert made().programs
    del optimizer, group
    gc.collect()
    assert made() is None
