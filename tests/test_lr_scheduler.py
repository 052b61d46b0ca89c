"""compiledopt.lr_scheduler against torch.optim.lr_scheduler: values, states, warnings, errors; and the pure functions."""

import copy
import inspect
import io
import math
import re
import warnings

import pytest
import torch
from catalog import CATALOG
from torch.optim import lr_scheduler as torchs

import compiledopt
from compiledopt import lr_scheduler as ours
from compiledopt import schedules
from compiledopt.rules.scalars import scalar_function
from compiledopt.schedules import Schedule

STEPS = 300
# name: (class, arguments), with two groups of other base rates.
SCHEDULES = {
    "lambda": ("LambdaLR", {"lr_lambda": lambda epoch: 0.97**epoch}),
    "lambdas": ("LambdaLR", {"lr_lambda": [lambda epoch: 1 / (1 + epoch // 30), lambda epoch: 0.95**epoch]}),
    "multiplicative": ("MultiplicativeLR", {"lr_lambda": lambda epoch: 0.99 if epoch % 3 else 1.01}),
    "step": ("StepLR", {"step_size": 30}),
    "step_gamma": ("StepLR", {"step_size": 7, "gamma": 0.9}),
    "multi_step": ("MultiStepLR", {"milestones": [30, 80]}),
    "multi_step_twice": ("MultiStepLR", {"milestones": [5, 5, 120], "gamma": 0.3}),
    "constant": ("ConstantLR", {}),
    "constant_long": ("ConstantLR", {"factor": 0.5, "total_iters": 40}),
    "linear": ("LinearLR", {}),
    "linear_down": ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 100}),
    "exponential": ("ExponentialLR", {"gamma": 0.97}),
    "polynomial": ("PolynomialLR", {}),
    "polynomial_power": ("PolynomialLR", {"total_iters": 200, "power": 1.7}),
    "cosine": ("CosineAnnealingLR", {"T_max": 50}),
    "cosine_min": ("CosineAnnealingLR", {"T_max": 70, "eta_min": 0.01}),
    "restarts": ("CosineAnnealingWarmRestarts", {"T_0": 13}),
    "restarts_longer": ("CosineAnnealingWarmRestarts", {"T_0": 7, "T_mult": 2, "eta_min": 0.001}),
    "restarts_triple": ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 3}),
    "cyclic": ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 20}),
    "cyclic_2": ("CyclicLR", {"base_lr": [0.01, 0.02], "max_lr": 0.3, "step_size_up": 9, "mode": "triangular2"}),
    "cyclic_exp": (
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "step_size_down": 13, "mode": "exp_range", "gamma": 0.99},
    ),
    "cyclic_own": ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 8, "scale_fn": lambda x: 1 / math.sqrt(x)}),
    "one_cycle": ("OneCycleLR", {"max_lr": 0.3, "total_steps": 301}),
    "one_cycle_linear": (
        "OneCycleLR",
        {"max_lr": [0.3, 0.1], "epochs": 10, "steps_per_epoch": 31, "anneal_strategy": "linear"},
    ),
    "one_cycle_three": ("OneCycleLR", {"max_lr": 0.3, "total_steps": 301, "three_phase": True, "div_factor": 10.0}),
}
# torch's own form is the closed one there, or the inherited one.
BIT_EQUAL = {n for n in SCHEDULES if n.startswith(("lambda", "multiplicative", "restarts", "cyclic", "one_cycle"))}
PURE = [name for name in SCHEDULES if name != "multiplicative"]
# What schedules cycle beside the rate: one with a momentum, one with betas.
CYCLED = [next(one.name for one in CATALOG.values() if one.takes(option)) for option in ("momentum", "betas")]


def make_optimizer(module=compiledopt, name="SGD", tensor_lr=False):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    rates = [torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr for lr in (0.1, 0.05)]
    groups = [{"params": [param], "lr": lr} for param, lr in zip(params, rates, strict=True)]
    return getattr(module, name)(groups, **{**CATALOG[name].promised, "lr": 0.1})


def make(module, label, optimizer, **more):
    name, options = SCHEDULES[label]
    return getattr(module, name)(optimizer, **copy.deepcopy(options), **more)


def rates(optimizer):
    found = []
    for group in optimizer.param_groups:
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        found.append((float(group["lr"]), float(momentum)))
    return found


def walk(optimizer, scheduler, steps):
    found = [rates(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(rates(optimizer))
    return found


def assert_equal(mine, theirs, exact):
    assert len({values[0][0] for values in theirs}) > 1, "the rate never changes, so nothing is tested"
    for step, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        if exact:
            assert own == other, step
        else:
            for pair, expected in zip(own, other, strict=True):
                assert pair == pytest.approx(expected, rel=1e-12, abs=0), step


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", CYCLED)
@pytest.mark.parametrize("label", SCHEDULES)
def test_against_torch(label, name, tensor_lr):
    mine, theirs = make_optimizer(compiledopt, name, tensor_lr), make_optimizer(torch.optim, name, tensor_lr)
    scheduler, reference = make(ours, label, mine), make(torchs, label, theirs)
    exact = label in BIT_EQUAL
    assert_equal(walk(mine, scheduler, STEPS), walk(theirs, reference, STEPS), exact)
    last = [[float(lr) for lr in which.get_last_lr()] for which in (scheduler, reference)]
    assert last[0] == pytest.approx(last[1], rel=1e-12)
    assert all(isinstance(lr, torch.Tensor) is tensor_lr for lr in scheduler.get_last_lr())
    assert isinstance(scheduler, torchs.LRScheduler) and isinstance(scheduler, getattr(torchs, SCHEDULES[label][0]))


@pytest.mark.parametrize("label", SCHEDULES)
def test_each_others_optimizers(label):
    """torch's schedulers on our optimizers, ours on torch's."""
    mine, theirs = make_optimizer(compiledopt, "AdamW"), make_optimizer(torch.optim, "AdamW")
    assert_equal(walk(theirs, make(ours, label, theirs), 60), walk(mine, make(torchs, label, mine), 60), label in BIT_EQUAL)


@pytest.mark.parametrize("label", PURE)
def test_value_at_any_step_without_walking(label):
    optimizer = make_optimizer()
    scheduler = make(ours, label, optimizer)
    pure = [scheduler.schedule(index) for index in range(2)]
    walked = walk(optimizer, scheduler, STEPS)
    for step in (0, 1, 299, 4, 30, 80, 121):
        assert [schedule(step) for schedule in pure] == pytest.approx([lr for lr, _ in walked[step]], rel=1e-11), step


@pytest.mark.parametrize("label", [n for n in SCHEDULES if hasattr(getattr(torchs, SCHEDULES[n][0]), "_get_closed_form_lr")])
def test_closed_form(label):
    """step(epoch), deprecated in torch and still asked for, is torch's bit by bit."""
    mine, theirs = make_optimizer(), make_optimizer(torch.optim)
    scheduler, reference = make(ours, label, mine), make(torchs, label, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in (3, 50, 7, 299, 0, 120):
            scheduler.step(epoch)
            reference.step(epoch)
            assert rates(mine) == rates(theirs), epoch


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("label", SCHEDULES)
def test_resumes_at_each_step(label):
    """A new optimizer and scheduler that load the states of the middle go on as if nothing had happened; torch's states
    load into ours, and ours into torch's."""
    for at in (0, 1, 5, 6, 13, 21, 29, 30, 31, 50, 51):
        optimizer = make_optimizer(compiledopt, "AdamW")
        scheduler = make(ours, label, optimizer)
        walk(optimizer, scheduler, at)
        states = saved((optimizer.state_dict(), scheduler.state_dict()))
        expected = walk(optimizer, scheduler, 25)
        for module, factory in ((compiledopt, ours), (torch.optim, torchs)):
            again = make_optimizer(module, "AdamW")
            resumed = make(factory, label, again)
            for one, state in zip((again, resumed), copy.deepcopy(states), strict=True):
                one.load_state_dict(state)
            found = walk(again, resumed, 25)
            if module is compiledopt:
                assert found == expected, at
            else:
                for own, other in zip(found, expected, strict=True):
                    assert own[0] == pytest.approx(other[0], rel=1e-12) and own[1] == pytest.approx(other[1], rel=1e-12)


@pytest.mark.parametrize("label", SCHEDULES)
def test_last_epoch(label):
    """Constructed with last_epoch, from groups that carry initial_lr."""
    walked = []
    for module, factory in ((compiledopt, ours), (torch.optim, torchs)):
        found = []
        for at in (2, 29):
            optimizer = make_optimizer(module)
            walk(optimizer, make(factory, label, optimizer), at + 1)
            found += walk(optimizer, make(factory, label, optimizer, last_epoch=at), 60)
        walked.append(found)
    assert_equal(*walked, label in BIT_EQUAL)


@pytest.mark.parametrize("label", SCHEDULES)
def test_rates_changed_from_outside(label):
    """Recursive forms keep what was changed, closed ones overwrite it, as torch's."""
    walked = []
    for module, factory in ((compiledopt, ours), (torch.optim, torchs)):
        optimizer = make_optimizer(module)
        scheduler = make(factory, label, optimizer)
        found = walk(optimizer, scheduler, 20)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        walked.append(found + walk(optimizer, scheduler, 100))
    assert_equal(*walked, label in BIT_EQUAL)


COMPOSED = {
    "warmup_cosine": lambda m, o: m.SequentialLR(o, [m.LinearLR(o, 0.1, total_iters=10), m.CosineAnnealingLR(o, 90)], [10]),
    "three": lambda m, o: m.SequentialLR(o, [m.ConstantLR(o, 0.1, 20), m.ExponentialLR(o, 0.9), m.StepLR(o, 5, 0.5)], [20, 40]),
    "restarts": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, total_iters=5), m.CosineAnnealingWarmRestarts(o, 10, 2)], [5]
    ),
    "chained": lambda m, o: m.ChainedScheduler([m.ConstantLR(o, 0.1, 20), m.ExponentialLR(o, 0.98), m.StepLR(o, 30, 0.5)]),
    "chained_cosine": lambda m, o: m.ChainedScheduler([m.LinearLR(o, 0.5, total_iters=30), m.CosineAnnealingLR(o, 45, 0.001)]),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("label", COMPOSED)
def test_composed(label, tensor_lr):
    mine, theirs = make_optimizer(tensor_lr=tensor_lr), make_optimizer(torch.optim, tensor_lr=tensor_lr)
    scheduler, reference = COMPOSED[label](ours, mine), COMPOSED[label](torchs, theirs)
    pure = [scheduler.schedule(index) for index in range(2)] if label != "chained_cosine" else []
    walked = walk(mine, scheduler, 100)
    assert_equal(walked, walk(theirs, reference, 100), False)
    for step in (0, 4, 10, 11, 40, 41, 77) if pure else ():
        assert [schedule(step) for schedule in pure] == pytest.approx([lr for lr, _ in walked[step]], rel=1e-11), step
    mixed = make_optimizer(compiledopt)
    assert_equal(walk(mixed, COMPOSED[label](torchs, mixed), 100), walked, False)


@pytest.mark.parametrize("label", COMPOSED)
def test_composed_resume(label):
    for at in (0, 5, 9, 10, 11, 39, 40, 41):
        optimizer = make_optimizer()
        scheduler = COMPOSED[label](ours, optimizer)
        walk(optimizer, scheduler, at)
        states = saved((optimizer.state_dict(), scheduler.state_dict()))
        expected = walk(optimizer, scheduler, 30)
        again = make_optimizer()
        resumed = COMPOSED[label](ours, again)
        again.load_state_dict(states[0])
        resumed.load_state_dict(states[1])
        assert walk(again, resumed, 30) == expected


def test_plateau():
    pair = []
    for module, factory in ((compiledopt, ours), (torch.optim, torchs)):
        optimizer = make_optimizer(module)
        scheduler = factory.ReduceLROnPlateau(optimizer, patience=3, cooldown=2, min_lr=[1e-3, 1e-4])
        found = []
        for step in range(60):
            optimizer.step()
            scheduler.step(max(1.0, 10 - step))
            found.append(rates(optimizer))
        pair.append(found)
    assert_equal(*pair, True)


def test_names_and_signatures_are_torchs():
    assert set(ours.__all__) == set(torchs.__all__)
    for name in ours.__all__:
        assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(torchs, name)), name
        if not name.startswith(("Reduce", "Multiplicative", "LRScheduler")):
            assert (
                getattr(ours, name) is not getattr(torchs, name)
                and getattr(ours, name).__module__ == "compiledopt._lr_scheduler"
            )


WRONG = [
    ("LambdaLR", {"lr_lambda": [lambda e: e]}),
    ("MultiplicativeLR", {"lr_lambda": 3.0}),
    ("ConstantLR", {"factor": 1.5}),
    ("LinearLR", {"start_factor": 0.0}),
    ("LinearLR", {"end_factor": 2.0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 0.5}),
    ("CyclicLR", {"base_lr": [0.1], "max_lr": 1.0}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0, "mode": "square"}),
    ("OneCycleLR", {"max_lr": 0.1}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": -1}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 10, "pct_start": 2.0}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 10, "anneal_strategy": "sin"}),
    ("ReduceLROnPlateau", {"factor": 1.5}),
    ("SequentialLR", {"schedulers": [], "milestones": []}),
]


@pytest.mark.parametrize(("name", "options"), WRONG, ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)))
def test_errors_are_torchs(name, options):
    raised = []
    for module in (ours, torchs):
        with pytest.raises(Exception) as info:
            getattr(module, name)(make_optimizer(), **options)
        raised.append(info)
    assert raised[0].type is raised[1].type and str(raised[0].value) == str(raised[1].value)
    with pytest.raises(TypeError, match="is not an Optimizer"):
        ours.StepLR(object(), 3)


def test_warnings_and_the_end_of_one_cycle():
    optimizer = make_optimizer()
    scheduler = ours.ExponentialLR(optimizer, 0.9)
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    for label in ("exponential", "restarts", "one_cycle"):
        with pytest.warns(UserWarning, match="please use `get_last_lr"):
            make(ours, label, make_optimizer()).get_lr()
    optimizer = make_optimizer()
    scheduler = ours.OneCycleLR(optimizer, 0.1, total_steps=3)
    walk(optimizer, scheduler, 3)
    with pytest.raises(ValueError, match=r"Tried to step 4 times\. The specified number of total steps is 3"):
        walk(optimizer, scheduler, 1)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle_of_an_older_torch(strategy):
    """torch before 2.0 kept the function of the annealing, and no name."""
    rates = []
    for module in (ours, torchs):
        optimizer = make_optimizer()
        scheduler = module.OneCycleLR(optimizer, 0.1, total_steps=10, anneal_strategy=strategy)
        del scheduler._anneal_func_type
        annealing = getattr(torchs.OneCycleLR, f"_annealing_{strategy}")
        scheduler.load_state_dict(scheduler.state_dict() | {"anneal_func": annealing})
        rates.append(walk(optimizer, scheduler, 9))
    assert_equal(*rates, exact=False)


def test_what_torch_divides_by_zero():
    optimizer = make_optimizer()
    scheduler = ours.ConstantLR(optimizer, factor=0.0, total_iters=2)
    assert [lr[0][0] for lr in walk(optimizer, scheduler, 3)] == [0.0, 0.0, 0.1, 0.1]
    optimizer = make_optimizer()
    scheduler = ours.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.1)
    assert walk(optimizer, scheduler, 9)[0][0][0] == 1.0


def test_schedules_of_ones_own():
    def triangle(step):
        return torch.where(step < 10, step / 10, 2 - step / 10)

    schedule = 0.5 * Schedule(triangle)
    assert [schedule(step) for step in (0, 5, 10, 15)] == [0.0, 0.25, 0.5, 0.25]
    host = Schedule(lambda step: math.exp(-step))
    assert host(1) == math.exp(-1)
    with pytest.raises(TypeError, match=r"test_lr_scheduler.py:\d+: float\(\) and the functions of math read a value"):
        host.program  # noqa: B018
    again = copy.deepcopy(schedules.one_cycle(1.0, 20) * 2 - 0.5)
    # The peak at 0.3·20 − 1 steps, a quarter of the way down 3.5 steps later: cosines by hand.
    assert again(5) == 2 * 1.0 - 0.5 and again(8.5) == pytest.approx(
        2 * (4e-6 + (1 - 4e-6) / 2 * (1 + math.cos(math.pi / 4))) - 0.5
    )
    with pytest.raises(ValueError, match="2 schedules need 1 milestones between them, got 0"):
        schedules.sequential([schedules.linear(), schedules.linear()], [])


def rates_of(scheduler, steps):
    optimizer = scheduler.optimizer
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


FUNCTIONS = [
    ("CyclicLR", schedules.cyclic, {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 4}),
    ("CyclicLR", schedules.cyclic, {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 4, "step_size_down": 9}),
    ("CyclicLR", schedules.cyclic, {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 3, "mode": "triangular2"}),
    ("CyclicLR", schedules.cyclic, {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 3, "mode": "exp_range", "gamma": 0.9}),
    ("CyclicLR", schedules.cyclic, {"base_lr": 0.0, "max_lr": 1.0, "step_size_up": 3, "scale_fn": lambda x: 1 / (x + 1)}),
    (
        "CyclicLR",
        schedules.cyclic,
        {"base_lr": 0.0, "max_lr": 1.0, "step_size_up": 3, "scale_fn": lambda x: 0.9**x, "scale_mode": "iterations"},
    ),
    ("OneCycleLR", schedules.one_cycle, {"max_lr": 0.3, "total_steps": 30}),
    ("OneCycleLR", schedules.one_cycle, {"max_lr": 0.3, "total_steps": 30, "anneal_strategy": "linear", "pct_start": 0.2}),
    ("OneCycleLR", schedules.one_cycle, {"max_lr": 0.3, "total_steps": 30, "three_phase": True, "pct_start": 0.4}),
    ("OneCycleLR", schedules.one_cycle, {"max_lr": 0.3, "total_steps": 30, "div_factor": 5.0, "final_div_factor": 10.0}),
    ("StepLR", schedules.step, {"step_size": 4, "gamma": 0.5}),
    ("StepLR", schedules.step, {"step_size": 4}),
    ("MultiStepLR", schedules.multi_step, {"milestones": [3, 7, 7], "gamma": 0.5}),
    ("ConstantLR", schedules.constant, {}),
    ("LinearLR", schedules.linear, {}),
    ("ExponentialLR", schedules.exponential, {"gamma": 0.9}),
    ("PolynomialLR", schedules.polynomial, {}),
    ("PolynomialLR", schedules.polynomial, {"total_iters": 20, "power": 2.0}),
    ("CosineAnnealingLR", schedules.cosine_annealing, {"T_max": 12}),
    ("CosineAnnealingWarmRestarts", schedules.cosine_annealing_warm_restarts, {"T_0": 5}),
    ("CosineAnnealingWarmRestarts", schedules.cosine_annealing_warm_restarts, {"T_0": 3, "T_mult": 2}),
]


@pytest.mark.parametrize(("name", "function", "options"), FUNCTIONS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(FUNCTIONS)])
def test_functions_give_what_the_classes_give(name, function, options):
    """Each with torch's own names and defaults: values, or factors of a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0, momentum=0.9)
    walked = rates_of(getattr(torchs, name)(optimizer, **options), 29)
    assert len(set(walked)) > 1
    assert [function(**options)(step) for step in range(30)] == pytest.approx(walked, rel=1e-9, abs=1e-12)


def test_combinations_of_schedules():
    schedule = schedules.exponential(0.5)
    combined = [
        1 - schedule,
        schedule - 0.25,
        2 + schedule,
        schedule + schedules.linear(0.0, 1.0, 4),
        3 * schedule,
        schedule * 3,
    ]
    expected = [0.75, 0.0, 2.25, 0.75, 0.75, 0.75]
    assert [one(2) for one in combined] == pytest.approx(expected, abs=1e-12)
    assert [scalar(2.0)[1][0] for scalar in map(traced_alone, combined)] == pytest.approx(expected, abs=1e-12)


def traced_alone(schedule):
    return scalar_function(schedule.program)


@pytest.mark.parametrize("module", [ours, torchs], ids=["ours", "torch"])
def test_a_step_is_seen_by_schedulers(module):
    """No warning of a scheduler that steps after its optimizer, however the optimizer got there; one where it steps before."""
    optimizer = make_optimizer()
    twin = copy.deepcopy(optimizer)
    for one in (optimizer, twin):
        for param in (group["params"][0] for group in one.param_groups):
            param.grad = torch.ones(3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = module.StepLR(one, 1)
            for _ in range(3):
                one.step()
                scheduler.step()
    late = make_optimizer()
    scheduler = module.StepLR(late, 1)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


@pytest.mark.parametrize("label", ["cyclic", "one_cycle"])
def test_the_second_beta_stays(label):
    """Of AdamW's betas the first one cycles."""
    found = []
    for module, factory in ((compiledopt, ours), (torch.optim, torchs)):
        optimizer = make_optimizer(module, "AdamW")
        scheduler = make(factory, label, optimizer)
        walk(optimizer, scheduler, 5)
        found.append([group["betas"] for group in optimizer.param_groups])
    assert found[0] == found[1] and found[0][0][1] == 0.999 and found[0][0][0] != 0.9


def test_chains_without_a_pure_form():
    """They step all the same; a function of the step they have none, and say so."""
    optimizer = make_optimizer()
    for parts in (
        [ours.LinearLR(optimizer), ours.CosineAnnealingLR(optimizer, 5, 0.001)],
        [ours.LinearLR(optimizer), ours.CosineAnnealingWarmRestarts(optimizer, 5)],
    ):
        with pytest.raises(
            TypeError, match=r"CosineAnnealing\w+ does more than multiply the rate, so a chain with it has no pure"
        ):
            ours.ChainedScheduler(parts).schedule()
    with pytest.raises(TypeError, match=r"StepLR has no closed form; use the schedulers of compiledopt\.lr_scheduler"):
        ours.SequentialLR(optimizer, [torchs.StepLR(optimizer, 1), ours.StepLR(optimizer, 1)], [3]).schedule()
