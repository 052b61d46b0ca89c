"""The steady step: that it is taken, that it computes what Python computes bit for bit, and that it sees whatever changes."""

import gc
import itertools
import math
import random
import struct
import threading
import weakref

import pytest
import torch
from catalog import CATALOG, PUBLISHED
from helpers import Gradients, flat, parameters, run, same, snapshot
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import compiledopt
from compiledopt import schedules
from compiledopt.backends.cpp.kernels import launcher
from compiledopt.rules.ops import OPS
from compiledopt.rules.rule import rule
from compiledopt.rules.scalars import scalar_lines
from compiledopt.rules.traced import traced
from compiledopt.step import steady as steadying


def steps(optimizer):
    """How many steps the steady step at work took; None where Python takes them."""
    taken = optimizer._stepper.steady
    return None if taken is steadying.never else taken.__self__.steps()


PYTHONS = weakref.WeakSet()


@pytest.fixture(autouse=True)
def some_are_pythons(monkeypatch):
    make = steadying.made
    monkeypatch.setattr(steadying, "made", lambda optimizer, plan: None if optimizer in PYTHONS else make(optimizer, plan))


def from_python(optimizer):
    """Keeps an optimizer from steady steps."""
    optimizer._stepper.steady = steadying.never
    PYTHONS.add(optimizer)
    return optimizer


# The elementwise ones; of those that reduce one with factors, one by a norm alone, and one that reads sizes.
REDUCING = [CATALOG["Adafactor"], PUBLISHED["LAMB"], PUBLISHED["AdamP"]]
STEADY = [case for one in (*CATALOG.values(), *REDUCING) if one.elementwise or one in REDUCING for case in one.cases]
STEADY = [case for case in dict.fromkeys(STEADY) if case.label in ("all", "tensor_lr")]


def bits(value):
    return "NaN" if value != value else struct.pack("d", value).hex()


# ---- the scalar part ----

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-310, -5e-324, 1e308, -1e308, 709.8, 0.999, math.inf, -math.inf, math.nan]


def native(op, *args):
    lines = (len(args), (), ((op, *(list(range(len(args))) * 3)[:3]),), (len(args),), ())
    return launcher().evaluate(lines, args)[0][0]


@pytest.mark.parametrize("op", sorted(OPS))
def test_operations_are_pythons_bit_for_bit(op):
    if op not in launcher().OPERATIONS:
        pytest.skip(f"{op} is Python's alone: a rule that computes it on numbers has no steady step")
    rng = random.Random(0)
    cases = list(itertools.product(SPECIAL, repeat=OPS[op].arity))
    cases += [tuple(math.ldexp(rng.uniform(-2, 2), rng.randint(-60, 60)) for _ in range(OPS[op].arity)) for _ in range(2000)]
    wrong = [
        (args, expected, found)
        for args in cases
        if bits(expected := float(OPS[op].number(*args))) != bits(found := native(op, *args))
    ]
    assert not wrong, wrong[:5]


def test_constants_are_told_apart():
    """0.0 and -0.0 are equal, and 1 / them are not."""

    @rule()
    def zeros(param, grad, *, lr):
        return param - 1.0 / (lr * 0.0) * grad - 1.0 / ((lr - lr) * -0.0) * grad

    known = launcher().OPERATIONS
    lines = scalar_lines(traced(zeros, {"lr": 1.0}).program, known)
    assert {bits(value) for value in launcher().evaluate(lines, [1.0])[0]} == {bits(math.inf), bits(-math.inf)}

    assert scalar_lines(traced(zeros, {"lr": 1.0}).program, frozenset()) is None


@pytest.mark.parametrize("case", STEADY, ids=str)
def test_every_algorithm_as_from_python(case):
    """Parameters and states bit for bit, while the rate, and betas where there are any, change now and then."""
    found = []
    for make in (lambda optimizer: optimizer, from_python):
        params = parameters()
        optimizer = make(case.ours(params))
        for step in range(12):
            group = optimizer.param_groups[0]
            if step in (4, 9) and isinstance(group["lr"], float):
                group["lr"] = group["lr"] * 0.7
            if step == 6 and isinstance(group.get("betas"), tuple) and isinstance(group["betas"][0], float):
                group["betas"] = (group["betas"][0] * 0.9, *group["betas"][1:])
            run(optimizer, params, Gradients(), range(step, step + 1))
        found.append(snapshot(optimizer))
        taken = steps(optimizer)
        assert (taken is None) == (make is from_python)
        assert taken is None or taken >= 8
    assert same(*found)


def test_groups_dtypes_and_many_rows():
    """Several kernels, several groups, and parameters with steps of their own."""
    found = []
    for make in (lambda optimizer: optimizer, from_python):
        params = [*parameters(), *parameters(torch.float64), *parameters(torch.bfloat16)]
        groups = [{"params": params[:7], "lr": 0.1}, {"params": params[7:], "lr": torch.tensor(0.2), "betas": (0.8, 0.9)}]
        optimizer = make(compiledopt.AdamW(groups, compiled=True))
        for step in range(10):
            if step == 7:
                optimizer.param_groups[1]["lr"].mul_(0.5)
            Gradients().set(params, step)
            if step == 1:
                params[3].grad = params[8].grad = None
            optimizer.step()
        found.append(snapshot(optimizer))
        assert (steps(optimizer) or 0) == (0 if make is from_python else 6)
    assert same(*found)


CLIPPED = {
    "Adam": (compiledopt.Adam, {}),
    "a rule that reduces": (compiledopt.Adafactor, {}),
    "bad gradients left out": (compiledopt.AdamW, {"skip_nonfinite": True}),
}


@pytest.mark.parametrize("one", CLIPPED)
def test_clipped_as_from_python(one):
    """By one norm over three dtypes, of groups of which the last is not clipped: parameters, states and norms bit for bit."""
    kind, options = CLIPPED[one]
    found = []
    for make in (lambda optimizer: optimizer, from_python):
        params, norms = [*parameters(), *parameters(torch.float64), *parameters(torch.bfloat16)], []
        groups = [{"params": params[:7]}, {"params": params[7:-1], "lr": 0.2}, {"params": params[-1:], "max_grad_norm": None}]
        optimizer = make(kind(groups, lr=0.1, compiled=True, max_grad_norm=5.0, **options))
        for step in range(12):
            Gradients().set(params, step)
            for param in params:
                param.grad *= 0.01 if step % 3 == 0 else 10.0
            if step == 7 and options:
                params[2].grad.fill_(math.inf)
            optimizer.step()
            norms.append(optimizer.grad_norm.item())
        found.append((snapshot(optimizer), norms))
        assert (steps(optimizer) or 0) == (0 if make is from_python else 10)
    assert same(*(states for states, _ in found)) and found[0][1] == found[1][1]
    assert min(norms) < 5.0 < max(norms) and len(set(norms)) == 12


def test_a_schedule_goes_on():
    params, twins = parameters(), parameters()
    schedule = schedules.cosine_annealing(10)
    ours, python = (compiledopt.AdamW(p, lr=0.1 * schedule, compiled=True) for p in (params, twins))
    from_python(python)
    for step in range(10):
        for optimizer, own in ((ours, params), (python, twins)):
            run(optimizer, own, Gradients(), range(step, step + 1))
        assert ours.param_groups[0]["lr"] == python.param_groups[0]["lr"]
    assert same(flat(params), flat(twins)) and steps(ours) == 8


def test_a_scheduler_costs_no_plan():
    """Its new rate at each step is read natively."""
    params = parameters()
    optimizer = compiledopt.SGD(params, lr=0.1, momentum=0.9, compiled=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)
    for step in range(15):
        run(optimizer, params, Gradients(), range(step, step + 1))
        scheduler.step()
    assert steps(optimizer) == 13


# ---- what changes is seen ----


def ready(**options):
    """An optimizer at its fifth step, the steady step at work."""
    params = parameters(shapes=[(3, 4), (5,)])
    optimizer = compiledopt.Adam(params, **{"lr": 0.1, "compiled": True, **options})
    run(optimizer, params, Gradients(), range(4))
    assert steps(optimizer)
    return optimizer, params


def hooked(kind):
    def change(optimizer, params):
        seen = []
        handle = getattr(optimizer, f"register_step_{kind}_hook")(lambda *_: seen.append(kind))
        optimizer.step()
        assert seen == [kind]
        handle.remove()

    return change


def hooked_for_all(kind):
    def change(optimizer, params):
        seen = []
        registers = {"pre": register_optimizer_step_pre_hook, "post": register_optimizer_step_post_hook}
        handle = registers[kind](lambda *_: seen.append(kind))
        optimizer.step()
        handle.remove()
        assert seen == [kind]

    return change


def profiled(optimizer, params):
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def watched(optimizer, params):
    with Watching() as mode:
        optimizer.step()
    assert mode.seen


def averaged(optimizer, params):
    with pytest.raises(RuntimeError, match="use_ema"):
        optimizer._swapped = True
        optimizer.step()
    optimizer._swapped = False
    optimizer.step()


def refused(optimizer, params):
    before = snapshot(optimizer)
    right, wrong = params[1].grad, torch.ones(5)
    state = optimizer.state[params[1]]
    state["exp_avg"], kept = torch.ones(2), state["exp_avg"]
    with pytest.raises(RuntimeError):
        optimizer.step()
    state["exp_avg"] = kept
    params[0].grad, own = torch.ones(3, 4).to_sparse(), params[0].grad
    with pytest.raises(RuntimeError):
        optimizer.step()
    params[0].grad = own
    assert same(before, snapshot(optimizer)) and right is params[1].grad and wrong is not right
    optimizer.step()


def overflowed(optimizer, params):
    before = snapshot(optimizer)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    optimizer.step()
    assert same(before, snapshot(optimizer))
    del optimizer.found_inf, optimizer.grad_scale
    optimizer.step()


def grown(optimizer, params):
    params.append(torch.nn.Parameter(torch.ones(2)))
    params[-1].grad = torch.ones(2)
    optimizer.add_param_group({"params": [params[-1]]})
    optimizer.step()
    assert params[-1].tolist() != [1.0, 1.0]


def shrunk(optimizer, params):
    del optimizer.param_groups[0]["params"][1]
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)


def forgotten(optimizer, params):
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1


def replaced(optimizer, params):
    optimizer.state[params[0]] = {name: value.clone() for name, value in optimizer.state[params[0]].items()}
    optimizer.state[params[0]]["step"].fill_(100)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 101 and optimizer.state[params[1]]["step"] == 5


def counted(optimizer, params):
    optimizer.state[params[0]]["step"].fill_(50)
    optimizer.step()
    assert [optimizer.state[param]["step"].item() for param in params] == [51, 5]


def regrouped(optimizer, params):
    """Somebody else prepares the batch, which gives its parameters other rows."""
    optimizer.state[params[0]]["step"].fill_(50)
    assert optimizer._plan.batches[0].prepare()
    optimizer.step()
    assert [optimizer.state[param]["step"].item() for param in params] == [51, 5]


def absent(optimizer, params):
    params[0].grad = None
    optimizer.step()
    assert [optimizer.state[param]["step"].item() for param in params] == [4, 5]


def other_memory(optimizer, params):
    params[0].data = torch.zeros(3, 4)
    optimizer.step()
    assert params[0].abs().max() > 0


def flagged(optimizer, params):
    before = flat(params)
    optimizer.param_groups[0]["maximize"] = True
    for param in params:
        param.grad = optimizer.state[param]["exp_avg"] * 1e3
    optimizer.step()
    assert ((flat(params) - before) * flat([param.grad for param in params]) >= 0).all()


def decayed(optimizer, params):
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.step()
    assert "weight_decay" in optimizer._plan.batches[0].traced.program.text.split("\n", 1)[1]


def listed(optimizer, params):
    """A list may change in place, so its numbers are read at each step."""
    optimizer.param_groups[0]["betas"] = [0.9, 0.999]
    run(optimizer, params, Gradients(), range(4, 6))
    assert steps(optimizer) is None
    optimizer.param_groups[0]["betas"][0] = 0.0
    params[0].grad = torch.full((3, 4), 7.0)
    optimizer.step()
    assert optimizer.state[params[0]]["exp_avg"].eq(7.0).all()


def other_rate(optimizer, params):
    before = flat(params)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(before, flat(params))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(before, flat(params))


def other_groups(optimizer, params):
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.0}
    before = flat(params)
    optimizer.step()
    assert torch.equal(before, flat(params))


def made(optimizer, params):
    optimizer.make_states()
    optimizer.step()


CHANGES = [hooked("pre"), hooked("post"), hooked_for_all("pre"), hooked_for_all("post"), profiled, watched, averaged, refused]
CHANGES += [overflowed, grown, shrunk, forgotten, replaced, counted, absent, other_memory, flagged, decayed, listed, other_rate]
CHANGES += [other_groups, made, regrouped]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__qualname__.split(".")[0])
def test_a_change_is_seen(change):
    """In the middle of steady steps; afterwards steps go on as those of an optimizer from Python do."""
    found = []
    for make in (lambda optimizer: optimizer, from_python):
        optimizer, params = ready()
        make(optimizer)
        change(optimizer, params)
        run(optimizer, params, Gradients(), range(6, 12))
        found.append(snapshot(optimizer))
        assert change is listed or (steps(optimizer) is None) == (make is from_python)
    assert same(*found)


@compiledopt.define
def Sized(param, grad, *, lr=0.1):
    return param - lr * grad / grad.norm() * param.numel() / param.shape[0]


def test_another_shape_and_other_threads_are_seen_by_a_rule_that_reduces():
    """What a row holds of sizes, and what passes keep, follow the parameters."""
    found, threads = [], torch.get_num_threads()
    try:
        for make in (lambda optimizer: optimizer, from_python):
            params = parameters(shapes=[(3, 4), (300, 400)])
            optimizer = make(Sized(params, compiled=True))
            for step, shape in enumerate([(3, 4)] * 5 + [(4, 3)] * 5 + [(6, 4, 2)] * 5):
                torch.set_num_threads(1 + step // 3 % 2)
                if params[0].shape != shape:
                    params[0].grad, params[0].data = None, torch.ones(shape)
                run(optimizer, params, Gradients(), range(step, step + 1))
            found.append(flat(params))
            assert (steps(optimizer) is None) == (make is from_python)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_rows_that_moved_are_seen():
    """Somebody else prepares the batch while a gradient is absent: the row of its group is now another group's."""
    ends = []
    for prepared in (True, False):
        params = parameters(shapes=[(3, 4), (5,)])
        optimizer = compiledopt.Adam(
            [{"params": [p], "lr": lr} for p, lr in zip(params, (0.5, 0.25), strict=True)], compiled=True
        )
        run(optimizer, params, Gradients(), range(4))
        assert steps(optimizer)
        params[0].grad, step = None, optimizer.state[params[1]]["step"]
        if prepared:
            step.fill_(50)
            assert optimizer._plan.batches[0].prepare()
            step.fill_(4)
        optimizer.step()
        ends.append(params[1])
    assert torch.equal(*ends)


def test_a_number_that_torch_would_refuse():
    """A rate of another kind is not taken for a number: Python says what it thinks of it."""
    optimizer, _ = ready()
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises((TypeError, ValueError)):
        optimizer.step()


def test_attempts_become_rare():
    """Where something is new at each step, the steady step is made ever more seldom."""
    optimizer, params = ready()
    tries = []
    make = steadying.made
    try:
        steadying.made = lambda *args: tries.append(1) or make(*args)
        for step in range(100):
            optimizer.param_groups[0]["weight_decay"] = (0.0, 0.1)[step % 2] if step % 3 else 0.1
            optimizer.param_groups[0]["betas"] = [0.9, 0.999] if step % 2 else (0.9, 0.999)
            run(optimizer, params, Gradients(), range(1))
    finally:
        steadying.made = make
    assert len(tries) < 60


def test_an_optimizer_goes_at_once():
    """Without waiting for the garbage collector, and its parameters with it."""
    gc.collect()
    gc.disable()
    try:
        optimizer, params = ready()
        seen = [weakref.ref(optimizer), *map(weakref.ref, params)]
        del optimizer, params
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e9}], ids=["plain", "clipped"])
def test_another_thread_in_a_step(options):
    """Of a long step the GIL is let go; a second step of the same optimizer meanwhile is refused, and others go on."""
    params = [torch.nn.Parameter(torch.ones(1 << 22))]
    optimizer = compiledopt.SGD(params, lr=0.1, compiled=True, **options)
    params[0].grad = torch.ones(1 << 22)
    for _ in range(4):
        optimizer.step()
    errors = []

    def work():
        for _ in range(20):
            try:
                optimizer.step()
            except RuntimeError as error:
                errors.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = round((1.0 - params[0][0].item()) / 0.1) - 4
    assert taken + len(errors) == 60 and all("another thread is in a step" in error for error in errors)


WRONG = {
    "attributes that are none": ({"attributes": [1]}, TypeError, "tuples and lists"),
    "names that are none": ({"attributes": [(1, 2)]}, TypeError, "attributes have names"),
    "modules that are none": ({"modules": [(1, [])]}, TypeError, "by their dicts"),
    "hooks that are none": ({"empty": [[]]}, TypeError, "hooks are kept in dicts"),
    "groups that are none": ({"groups": [(1, [])]}, TypeError, "a group is a dict"),
    "groups without parameters": ({"groups": [({"lr": 1.0}, [(True, False, [])])]}, TypeError, "parameters in a list"),
    "entries of another number": ({"groups": [({"params": []}, [])]}, ValueError, "another length"),
    "numbers that there are not": ({"groups": [({"params": []}, [(0, 0, [(-1, 7)])])]}, IndexError, "that there is not"),
    "parts that are none": ({"parts": [(1, 2, 3, 4, 5, None, 0)]}, TypeError, "made of plans"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_descriptions_are_refused(wrong):
    more, error, words = WRONG[wrong]
    lists = {name: [] for name in ("attributes", "modules", "empty", "param_groups", "params", "states", "waiting", "quiet")}
    with pytest.raises(error, match=words):
        others = {"state": {}, "threads": int, "numbers": 1, "groups": [], "parts": [], "measure": None, "norm": None}
        launcher().Steady(**{**lists, **others, **more})
    for lines in ((0, (), (("nothing", 0, 0, 0),), (), ()), (0, (), (("add", 0, 0, 0),), (), ())):
        with pytest.raises((LookupError, IndexError)):
            launcher().evaluate(lines, ())
