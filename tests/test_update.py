"""Transformations of what a rule does to its parameter, against torch's step with the same done to its result by hand."""

import copy
import io
import math

import pytest
import torch
from catalog import CATALOG, EXECUTORS
from helpers import Gradients, copies, flat, multiplying_in, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import around, schedules, storage
from compiledopt.arguments import Extras

STEPS, MOST, LARGEST, NORM = 5, 0.4, 0.05, 1.0
EACH = [
    {"cautious": True},
    {"update_clipping": MOST},
    {"corrected_decay": LARGEST},
    {"gradient_centralization": True},
    {"cautious": True, "update_clipping": MOST, "corrected_decay": LARGEST, "gradient_centralization": True},
]
ALL = {**EACH[-1], "max_grad_norm": NORM}
RICH = [case for one in CATALOG.values() for case in one.cases if case.label in ("default", "all", "decoupled")]
RICH = [case for case in RICH if case.of.rule is not None and case.of.rule.dense and case.of.in_torch]
QUICK = ("AdamW-all", "Adafactor-all")
RUNS = [(case, name) for case in RICH for name in ("foreach", "for-loop")]
for _case in RICH:
    if _case.algorithm != "Muon":
        RUNS.append(pytest.param(_case, "compiled", marks=[] if str(_case) in QUICK else [pytest.mark.slow]))


def shapes_of(case, executor):
    if case.algorithm == "Muon":
        return [(6, 7), (3, 5), (6, 7)]
    return [(6, 7), (301,), (3, 5)] if executor == "compiled" else [(6, 7), (301,), (), (3, 5)]


def torchs(case, params):
    return getattr(torch.optim, case.algorithm)(params, **case.kwargs())


def decay_of(optimizer, group, param):
    """γ·λ of what the algorithm decays apart from the gradient, as its paper has it, and λ where a state remembers it."""
    name, lr, decay = type(optimizer).__name__, float(group["lr"]), float(group.get("weight_decay", 0.0))
    if name == "ASGD":
        eta = float(optimizer.state[param]["eta"]) if param in optimizer.state else lr
        return eta * (group["lambd"] + decay), 0.0
    if CATALOG[name].decouples or group.get("decoupled_weight_decay"):
        return lr * decay, 0.0
    if name == "SGD" and not group["momentum"]:
        return lr * decay, 0.0
    return 0.0, decay


class ByHand:
    """torch's optimizer, and around its step what the options ask for."""

    def __init__(self, optimizer, options):
        self.optimizer, self.options = optimizer, options
        self.group = optimizer.param_groups[0]
        self.decay = self.group.get("weight_decay")
        self.left_out = self.clipped = 0

    @torch.no_grad()
    def step(self):
        params, group = self.group["params"], self.group
        if "max_grad_norm" in self.options:
            torch.nn.utils.clip_grad_norm_(params, self.options["max_grad_norm"], foreach=False)
        if "gradient_centralization" in self.options:
            for param in params:
                if param.dim() > 1:
                    param.grad -= param.grad.flatten(1).mean(1).view(-1, *[1] * (param.dim() - 1))
        if self.decay is not None and "corrected_decay" in self.options:
            group["weight_decay"] = self.decay * float(group["lr"]) / self.options["corrected_decay"]
        before = [(param.clone(), param.grad.clone(), *decay_of(self.optimizer, group, param)) for param in params]
        self.optimizer.step()
        for param, (old, grad, decoupled, decay) in zip(params, before, strict=True):
            param.copy_(self._changed(param - old * (1 - decoupled), (-grad if group.get("maximize") else grad) + decay * old))
            param += old * (1 - decoupled)

    def _changed(self, change, gradient):
        if "cautious" in self.options:
            mask = (change * gradient < 0).double()
            self.left_out += int((mask == 0).sum())
            change = change * mask / mask.mean().clamp_min(1e-3)
        if "update_clipping" in self.options:
            bound, size = self.options["update_clipping"] * float(self.group["lr"]), change.square().mean().sqrt()
            self.clipped += int(size > bound)
            change = change * min(1.0, bound / size) if size > 0 else change
        return change


@pytest.mark.parametrize(("case", "executor"), RUNS, ids=str)
def test_against_torch(case, executor, monkeypatch):
    multiplying_in(monkeypatch, torch.bfloat16)  # as torch's Muon does everywhere
    dtype = torch.float64
    for options in [*EACH, ALL] if executor == "for-loop" else [ALL]:
        if "corrected_decay" in options and "weight_decay" not in case.of.rule.options:
            options = {name: value for name, value in options.items() if name != "corrected_decay"}
        start = parameters(dtype, shapes_of(case, executor))
        theirs, mine, without = copies(start), copies(start), copies(start)
        baseline = ByHand(torchs(case, theirs), options)
        optimizer = case.ours(mine, executor, dtype, **options)
        run(torchs(case, without), without, Gradients(dtype), range(STEPS))
        run(baseline, theirs, Gradients(dtype), range(STEPS))
        run(optimizer, mine, Gradients(dtype), range(STEPS))
        assert optimizer.executor == executor
        effect = rms(flat(theirs) - flat(without))
        if effect < 1e-9 * rms(flat(theirs) - flat(start)):  # nothing there to be changed
            assert not baseline.left_out and not baseline.clipped and "gradient_centralization" not in options
            effect = rms(flat(theirs) - flat(start))
        # Muon multiplies in bfloat16, in stacks or one by one; NAdam's product is float32 in torch.
        bound = {"Muon": 0.1, "NAdam": 1e-4, "Adafactor": 1e-4}.get(case.algorithm, 1e-7)
        assert rms(flat(mine) - flat(theirs)) <= bound * effect, options


def test_something_is_left_out_and_clipped():
    """What the comparison above rests on."""
    params = parameters(torch.float64)
    by_hand = ByHand(torch.optim.AdamW(params, lr=0.01), ALL)
    run(by_hand, params, Gradients(torch.float64), range(STEPS))
    assert by_hand.left_out > 1000 and by_hand.clipped > STEPS


# ---- rules of one's own ----


def lion(param, grad, exp_avg, *, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3):
    update = exp_avg.lerp(grad, 1 - betas[0]).sign()
    return param * (1 - lr * weight_decay) - lr * update, exp_avg.lerp(grad, 1 - betas[1])


def lion_in_brackets(param, grad, exp_avg, *, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3):
    update = exp_avg.lerp(grad, 1 - betas[0]).sign()
    return param - lr * (update + weight_decay * param), exp_avg.lerp(grad, 1 - betas[1])


def lion_by_functions(param, grad, exp_avg, *, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3):
    update = exp_avg.lerp(grad, 1 - betas[0]).sign()
    decayed = torch.sub(param, torch.mul(weight_decay, param).mul(lr))
    return torch.add(decayed, torch.neg(update) * lr), torch.lerp(exp_avg, grad, 1 - betas[1])


def lion_by_methods(param, grad, exp_avg, *, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3):
    update = exp_avg.lerp(grad, 1 - betas[0]).sign()
    decayed = param.sub(param.mul(lr * weight_decay))
    return decayed.addcmul(update, torch.ones_like(update), value=-lr), exp_avg.lerp(grad, 1 - betas[1])


LIONS = [lion, lion_in_brackets, lion_by_functions, lion_by_methods]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("function", LIONS, ids=lambda f: f.__name__)
def test_a_decay_is_found_however_it_is_written(function, executor):
    """All are decoupled: the mask is over the signs alone, and the decay is whole."""
    start = parameters(torch.float64)
    params = copies(start)
    optimizer = compiledopt.define(function)(params, cautious=True, **EXECUTORS[executor])
    expected, momenta = copies(start), [torch.zeros_like(p) for p in start]
    for step in range(STEPS):
        Gradients(torch.float64).set(expected, step)
        with torch.no_grad():
            for param, momentum in zip(expected, momenta, strict=True):
                update = (0.9 * momentum + 0.1 * param.grad).sign()
                momentum.mul_(0.99).add_(param.grad, alpha=0.01)
                mask = (update * param.grad > 0).double()
                param.mul_(1 - 0.01 * 0.3).sub_(0.01 * update * mask / mask.mean().clamp_min(1e-3))
    run(optimizer, params, Gradients(torch.float64), range(STEPS))
    assert optimizer.executor == executor
    assert rms(flat(params) - flat(expected)) <= 1e-12 * rms(flat(expected) - flat(start))


def test_a_product_that_is_no_number_is_no_decay():
    """What goes through anything but sums and products with numbers belongs to the change."""

    def shrunk(param, grad, buffer, *, lr=0.1, weight_decay=0.5):
        buffer = 0.9 * buffer + grad + weight_decay * param
        return param - lr * buffer - lr * param.abs() * param, buffer

    start = parameters(torch.float64, [(200,)])
    found = []
    for flags in EXECUTORS.values():
        params = copies(start)
        optimizer = compiledopt.define(shrunk)(params, cautious=True, **flags)
        run(optimizer, params, Gradients(torch.float64), range(STEPS))
        found.append(flat(params))
    expected, buffer = start[0].detach().clone(), torch.zeros(200, dtype=torch.float64)
    for step in range(STEPS):
        Gradients(torch.float64).set(start, step)
        gradient = start[0].grad + 0.5 * expected  # a state remembers λ·θ, so it is part of what is followed
        buffer = 0.9 * buffer + gradient
        change = -0.1 * buffer - 0.1 * expected.abs() * expected
        mask = (change * gradient < 0).double()
        expected = expected + change * mask / mask.mean()
    for params in found:
        assert rms(params - expected) <= 1e-12 * rms(expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_smaller_than_the_parameters_precision(executor):
    """A mask is of the update itself: read off θ′ − θ, half of this one would be zero, and the other half doubled."""
    params = [torch.nn.Parameter(torch.cat([torch.full((500,), 1000.0), torch.zeros(500)]))]
    optimizer = compiledopt.AdamW(params, lr=1e-6, weight_decay=0.0, cautious=True, **EXECUTORS[executor])
    params[0].grad = torch.ones(1000)
    optimizer.step()
    assert params[0][:500].eq(1000.0).all()  # so small a step is lost
    torch.testing.assert_close(params[0][500:], torch.full((500,), -1e-6), rtol=1e-4, atol=0)


# ---- half types, what is absent, checkpoints ----


@pytest.mark.parametrize("executor", ["foreach", "for-loop", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype, executor):
    """Computed in float32, and as near to the same in float64 as the dtype allows."""
    start = parameters(dtype)
    wide, mine = copies(start, torch.float64), copies(start)
    run(ByHand(torch.optim.AdamW(wide, lr=0.05, eps=1e-3), EACH[-1]), wide, Gradients(dtype), range(3))
    run(compiledopt.AdamW(mine, lr=0.05, eps=1e-3, **EACH[-1], **EXECUTORS[executor]), mine, Gradients(dtype), range(3))
    effect = rms(flat(wide) - flat(start))
    assert rms(flat(mine) - flat(wide)) <= 0.01 * effect + 2 * torch.finfo(dtype).eps * rms(flat(start))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_absent_gradients_and_a_checkpoint(executor):
    params = parameters(shapes=[(6, 7), (31,), (3, 5)])
    options = {"lr": 0.05, **ALL, "ema_decay": 0.9, **EXECUTORS[executor]}
    options["lr"] = 0.05 * schedules.cosine_annealing(20)
    optimizer = compiledopt.AdamW(params, **options)
    run(optimizer, params, Gradients(skip=True), range(4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = copies(params)
    resumed = compiledopt.AdamW(again, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    twin, other = copy.deepcopy((optimizer, params))
    for one, its in ((optimizer, params), (resumed, again), (twin, other)):
        run(one, its, Gradients(skip=True), range(4, 8))
    assert same(snapshot(optimizer), snapshot(resumed)) and same(snapshot(optimizer), snapshot(twin))


def test_layouts_threads_and_capturable():
    """Columns after columns, and 0-dim states as a captured graph wants them; no number of threads changes a bit."""
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.randn(700, 900, generator=torch.Generator().manual_seed(0)).t())]
        optimizer = compiledopt.AdamW(params, lr=0.01, **ALL, compiled=True)
        run(optimizer, params, Gradients(), range(3))
        results.append(flat(params))
    assert torch.equal(*results)
    start = [torch.nn.Parameter(torch.randn(700, 900, generator=torch.Generator().manual_seed(0)).t())]
    for flags in ({"capturable": True, "compiled": False}, {"differentiable": False, "foreach": True}):
        params = copies(start)
        run(compiledopt.AdamW(params, lr=0.01, **ALL, **flags), params, Gradients(), range(3))
        assert rms(flat(params) - results[0]) <= 1e-4 * rms(flat(params) - flat(start))


def test_gradients_flow_through_the_step():
    leaf = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    param = leaf.clone()
    param.grad = torch.tensor([1.0, -1.0, 2.0])
    optimizer = compiledopt.SGD([param], lr=0.1, momentum=0.9, cautious=True, update_clipping=1.0, differentiable=True)
    optimizer.step()
    param.sum().backward()
    assert leaf.grad.tolist() == [1.0] * 3
    size = math.sqrt(6 / 3)
    torch.testing.assert_close(param, leaf - 0.1 * param.grad / size)


# ---- the largest rate ----


def test_corrected_decay_under_a_scheduler():
    """As timm's suffix c: decay in proportion to lr²/lr_max, where lr_max is the rate that the group began with."""
    start = parameters(torch.float64)
    theirs, mine = copies(start), copies(start)
    baseline = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2)
    optimizer = compiledopt.AdamW(mine, lr=0.1, weight_decay=0.2, corrected_decay=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    plain = copies(start)
    run(torch.optim.AdamW(plain, lr=0.1, weight_decay=0.2), plain, Gradients(torch.float64), range(1))
    for step in range(STEPS):
        baseline.param_groups[0]["lr"] = 0.1 * 0.5**step
        baseline.param_groups[0]["weight_decay"] = 0.2 * 0.5**step
        run(baseline, theirs, Gradients(torch.float64), range(step, step + 1))
        run(optimizer, mine, Gradients(torch.float64), range(step, step + 1))
        scheduler.step()
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-12, atol=1e-12)
    assert optimizer.param_groups[0]["corrected_decay"] == 0.1
    assert rms(flat(theirs) - flat(plain)) > 1e-3


def test_corrected_decay_of_groups_and_schedules():
    params = parameters(shapes=[(3,), (4,)])
    groups = [{"params": [params[0]], "lr": 0.5}, {"params": [params[1]], "lr": 0.25, "initial_lr": 0.75}]
    optimizer = compiledopt.AdamW(groups, corrected_decay=True)
    assert [group["corrected_decay"] for group in optimizer.param_groups] == [0.5, 0.75]
    with pytest.raises(ValueError, match=r"takes the group's first lr .* this one is a schedule.*corrected_decay=1e-3"):
        compiledopt.AdamW(params, lr=0.1 * schedules.exponential(0.5), corrected_decay=True)
    compiledopt.AdamW(params, lr=0.1 * schedules.exponential(0.5), corrected_decay=0.1)
    optimizer.param_groups[0]["corrected_decay"] = True
    with pytest.raises(ValueError, match="put into a group by hand"):
        optimizer.step()


# ---- who is refused ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cautious": 0.5}, "Invalid cautious value: 0.5; it is True or False"),
        ({"gradient_centralization": "rows"}, "Invalid gradient_centralization value: rows"),
        ({"update_clipping": 0.0}, "Invalid update_clipping value: 0.0; it must be a number > 0"),
        ({"update_clipping": True}, "Invalid update_clipping value: True"),
        ({"update_clipping": torch.ones(2)}, "Tensor update_clipping must be 1-element"),
        ({"corrected_decay": -1.0}, "Invalid corrected_decay value: -1.0; the largest lr must be > 0"),
        ({"corrected_decay": True, "lr": 0.0}, "Invalid corrected_decay value: 0.0"),
    ],
    ids=str,
)
def test_numbers_out_of_bounds(options, words):
    with pytest.raises(ValueError, match=words):
        compiledopt.AdamW(parameters(), **options)


def test_rules_that_cannot_have_it():
    params = parameters()
    with pytest.raises(ValueError, match="corrected_decay is for rules with lr and weight_decay, rprop has no weight_decay"):
        compiledopt.Rprop(params, corrected_decay=True)
    for option in ({"cautious": True}, {"update_clipping": 1.0}, {"gradient_centralization": True}):
        (name,) = option
        with pytest.raises(ValueError, match=f"{name} is for rules that take dense gradients"):
            compiledopt.SparseAdam([{"params": params, **option}])
        with pytest.raises(ValueError, match=f"{name} is for optimizers that are one rule"):
            compiledopt.LBFGS([{"params": params, **option}])
        with pytest.raises(ValueError, match=f"{name} is not for rules whose parameters share a state, as prodigy"):
            compiledopt.Prodigy(params, **option)
        optimizer = compiledopt.SGD(params, **option)
        params[0].grad = torch.ones(40, 50).to_sparse()
        with pytest.raises(RuntimeError, match=f"does not support sparse gradients with `{name}`"):
            optimizer.step()
        whirl = [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]
        whirl[0].grad = torch.ones(3, dtype=torch.complex64)
        with pytest.raises(RuntimeError, match=f"does not support complex parameters with `{name}`"):
            compiledopt.SGD(whirl, **option).step()


def test_off_is_off_and_on_comes_in_the_middle():
    params = parameters()
    twin = copies(params)
    optimizer = compiledopt.AdamW(params, lr=0.1, cautious=False, gradient_centralization=False, corrected_decay=False)
    plain = compiledopt.AdamW(twin, lr=0.1)
    for one, its in ((optimizer, params), (plain, twin)):
        run(one, its, Gradients(), range(2))
    assert same(snapshot(optimizer), snapshot(plain)) and "sign" not in optimizer.explain()
    optimizer.param_groups[0]["cautious"] = True
    assert "sign" in optimizer.explain()
    for one, its in ((optimizer, params), (plain, twin)):
        run(one, its, Gradients(), range(2, 3))
    assert not torch.equal(params[0], twin[0])


def test_an_option_of_ones_own_is_the_rules():
    def mine(param, grad, *, lr=0.1, cautious=2.0):
        return param - lr * cautious * grad

    params = [torch.nn.Parameter(torch.zeros(3))]
    params[0].grad = torch.ones(3)
    compiledopt.define(mine)(params).step()
    torch.testing.assert_close(params[0].detach(), torch.full((3,), -0.2))


# ---- what is said of it ----


def test_the_order_is_that_of_the_docs():
    """Clipping, centralization, the rule, its mask, its bound, the average: each in terms of the one before."""
    lines = compiledopt.AdamW(parameters(shapes=[(4, 5)]), lr=0.1, **ALL, ema_decay=0.9).explain().splitlines()
    text = "\n".join(lines)
    places = [text.index(part) for part in ("G/(N", "mean_row(", "m' =", "sign(", "mean(", "√(mean(", "θ' =", "a' =")]
    assert places == sorted(places) and "λ·γ²/γₘₐₓ" in text


def test_every_option_is_typed_and_described():
    described = {**around.described(), **storage.DESCRIBED}
    assert set(Extras.__annotations__) == set(around.options()) == set(described) and all(described.values())
    for name in described:
        assert f"{name}: " in compiledopt.AdamW.__doc__
