"""state_dict in and out, here and in torch, in the middle of a run; pickle and deepcopy; old checkpoints."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
from catalog import BASELINE, CASES, CATALOG, EXECUTORS, by_kind, one_per_algorithm, one_per_kind
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt.step import in_graph

EXCHANGED = [c for c in CASES if c.label in ("default", "momentum", "amsgrad", "all", "tensor_lr", "nesterov")]


def saved(optimizer):
    """Through a file, as users do, with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_who_has_a_state_is_as_in_torch(momentum, executor):
    """No empty dicts: neither for a rule without states nor for parameters without gradients."""
    keys = []
    for library, options in ((torch.optim, {"foreach": False}), (compiledopt, EXECUTORS[executor])):
        params = parameters(shapes=[(3, 4), (5,), (6,)])
        optimizer = library.SGD(params, lr=0.1, momentum=momentum, **options)
        for step in range(3):
            Gradients().set(params, step)
            params[1].grad = None
            optimizer.step()
        keys.append([index for index, param in enumerate(params) if param in optimizer.state])
        assert library is torch.optim or not torch.equal(params[0], parameters(shapes=[(3, 4)])[0])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", EXCHANGED, ids=str)
def test_from_torch_and_back(case, executor):
    """torch for 5 steps, ours for 5, torch for 5, against torch alone: as if nothing happened."""
    alone, mixed = parameters(), parameters()
    gradients = Gradients(skip=True)
    reference = case.torch(alone, **BASELINE.get(case.label, {}))
    run(reference, alone, gradients, range(15))
    first = case.torch(mixed, **BASELINE.get(case.label, {}))
    run(first, mixed, gradients, range(5))
    second = case.ours(mixed, executor)
    second.load_state_dict(saved(first))
    # torch's options come with its state: ask again for the executor under test.
    for group in second.param_groups:
        group.update({"foreach": None, "compiled": None} | EXECUTORS[executor])
    run(second, mixed, gradients, range(5, 10))
    assert second.executor == executor
    third = case.torch(mixed, **BASELINE.get(case.label, {}))
    third.load_state_dict(saved(second))
    for group in third.param_groups:
        group.update({"foreach": False, "fused": None})
    run(third, mixed, gradients, range(10, 15))
    assert (flat(alone) - flat(mixed)).abs().max() < 1e-5
    for p, q in zip(alone, mixed, strict=True):
        assert list(reference.state[p]) == list(third.state[q])
        assert all(reference.state[p][k].dtype == third.state[q][k].dtype for k in reference.state[p])


@pytest.mark.parametrize("into", EXECUTORS)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_between_executors(case, executor, into):
    params, straight = parameters(), parameters()
    first = case.ours(params, executor)
    run(first, params, Gradients(), range(5))
    second = case.ours(params, into)
    state = saved(first)
    for group in state["param_groups"]:
        group.update({"foreach": None, "compiled": None} | EXECUTORS[into])
    second.load_state_dict(state)
    run(second, params, Gradients(), range(5, 10))
    assert second.executor == into
    run(case.ours(straight, "for-loop"), straight, Gradients(), range(10))
    assert (flat(params) - flat(straight)).abs().max() < 1e-5


@pytest.mark.parametrize("case", by_kind())
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_clones_go_on_alone(case, clone):
    params = parameters()
    original = case.ours(params)
    run(original, params, Gradients(), range(3))
    twin = clone(original)
    twin_params = [p for group in twin.param_groups for p in group["params"]]
    assert not any(a is b for a, b in zip(params, twin_params, strict=True))
    before = snapshot(original)
    run(twin, twin_params, Gradients(), range(3, 6))
    assert same([b[0] for b in before], [p.detach() for p in params])
    run(original, params, Gradients(), range(3, 6))
    assert same(snapshot(original), snapshot(twin))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("of", one_per_kind(lambda one: one.elementwise and one.counts), ids=str)
def test_old_checkpoints_with_a_number_as_step(of, executor):
    case = of.cases[0]
    params, straight = parameters(), parameters()
    first = case.ours(params, executor)
    run(first, params, Gradients(), range(4))
    state = first.state_dict()
    state["state"] = {k: {**v, "step": int(v["step"])} for k, v in state["state"].items()}
    for group in state["param_groups"]:
        for name in {"maximize", "capturable", "differentiable", "fused", "amsgrad", "compiled"} & set(group):
            del group[name]
    second = case.ours(params, executor)
    second.load_state_dict(state)
    assert second.param_groups[0]["compiled"] is EXECUTORS[executor].get("compiled"), "as it was constructed"
    assert all(isinstance(second.state[p]["step"], torch.Tensor) for p in params)
    run(second, params, Gradients(), range(4, 8))
    run(case.ours(straight, executor), straight, Gradients(), range(8))
    assert (flat(params) - flat(straight)).abs().max() < 1e-6


def test_state_is_torchs():
    """Names, order, shapes and dtypes, and step as a 0-dim tensor of its own for each parameter."""
    params = parameters()
    optimizer = compiledopt.Adam(params, amsgrad=True)
    run(optimizer, params, Gradients(), range(1))
    assert list(optimizer.state[params[0]]) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    steps = [optimizer.state[p]["step"] for p in params]
    assert all(s.dim() == 0 and s.dtype == torch.float32 and s.item() == 1 for s in steps)
    steps[0].fill_(7)
    assert [s.item() for s in steps] == [7, 1, 1, 1, 1]


def test_adagrads_states_are_there_at_once():
    """As torch's: made with the optimizer, of the value that was asked for."""
    for library in (torch.optim, compiledopt):
        params = parameters(shapes=[(3,), (2, 2)])
        optimizer = library.Adagrad(params, initial_accumulator_value=0.5)
        assert [optimizer.state[p]["sum"].tolist() for p in params] == [[0.5] * 3, [[0.5] * 2] * 2]
        assert [float(optimizer.state[p]["step"]) for p in params] == [0.0, 0.0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_number_that_is_nan_stays_nan(executor):
    """It is equal to itself here: else each step would find that the rows differ, and end in an error."""
    params = parameters()
    optimizer = compiledopt.AdamW(params, **EXECUTORS[executor])
    run(optimizer, params, Gradients(), range(2))
    optimizer.state[params[1]]["step"].fill_(torch.nan)
    run(optimizer, params, Gradients(), range(2, 5))
    assert optimizer.state[params[1]]["step"].isnan() and params[1].isnan().all()
    assert optimizer.state[params[0]]["step"] == 5 and params[0].isfinite().all() and optimizer.executor == executor


def count_changed(state, params):
    state[params[0]]["step"].fill_(100)


def tensor_exchanged(state, params):
    state[params[1]]["exp_avg"] = torch.ones_like(params[1])


def dict_exchanged(state, params):
    state[params[4]] = {k: v * 2 for k, v in state[params[4]].items()}


@pytest.mark.parametrize("change", [count_changed, tensor_exchanged, dict_exchanged])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_state_changed_by_hand_is_seen(executor, change):
    """One at a time: what one makes an executor look at again must not hide another."""
    case = next(c for c in CASES if str(c) == "AdamW-default")
    theirs, mine = parameters(), parameters()
    baseline, optimizer = case.torch(theirs), case.ours(mine, executor)
    for o, params in ((baseline, theirs), (optimizer, mine)):
        run(o, params, Gradients(), range(3))
        change(o.state, params)
        run(o, params, Gradients(), range(3, 6))
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-6
    assert [baseline.state[p]["step"] for p in theirs] == [optimizer.state[p]["step"] for p in mine]


@pytest.mark.parametrize("of", one_per_kind(lambda one: one.elementwise), ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_gradient_that_comes_back(executor, of):
    """After a step without it, in which nothing else changed; absent in the first step too; with states and without."""
    theirs, mine = parameters(), parameters()
    baseline, optimizer = of.counterpart(theirs, lr=0.1), of.ours(mine, lr=0.1, **EXECUTORS[executor])
    for absent in (2, None, 1, None, 4, 4, None):
        for one, params in ((baseline, theirs), (optimizer, mine)):
            Gradients().set(params, 0)
            if absent is not None:
                params[absent].grad = None
            one.step()
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5
    if of.counts:
        assert [optimizer.state[param]["step"].item() for param in mine] == [7, 6, 6, 7, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("of", one_per_kind(lambda one: one.rule.dense and not one.multiplies), ids=str)
def test_half_types_are_computed_in_float32(of, executor, dtype):
    """And rounded once, where torch's for-loop rounds each operation: a step is that of float32, rounded."""
    shapes = [(40, 50), (3001,)]
    options = {**of.cases[0].kwargs(dtype), **of.promised, "lr": 0.1, "weight_decay": 0.1, **EXECUTORS[executor]}
    half, wide = parameters(dtype, shapes), copies(parameters(dtype, shapes), torch.float32)
    optimizer, exact = (of.ours(p, **options) for p in (half, wide))
    run(optimizer, half, Gradients(dtype), range(1))
    run(exact, wide, Gradients(dtype), range(1))
    for p, q in zip(half, wide, strict=True):
        pairs = [(p, q), *((v, exact.state[q][k]) for k, v in optimizer.state[p].items())]
        for rounded, value in pairs:
            assert (rounded == value.to(rounded.dtype)).float().mean() > 0.998


@pytest.mark.parametrize("fused", [None, True])
def test_default_dtype_float64_makes_wide_steps(fused):
    """But for fused=True, whose steps are float32 in torch; counts that are no float32 numbers come back as they are."""
    torch.set_default_dtype(torch.float64)
    try:
        params, theirs = parameters(torch.float64), parameters(torch.float64)
        optimizer, reference = compiledopt.Adam(params, fused=fused), torch.optim.Adam(theirs, fused=fused)
        for each, of in ((optimizer, params), (reference, theirs)):
            run(each, of, Gradients(torch.float64), range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    steps = [each.state[of[0]]["step"] for each, of in ((optimizer, params), (reference, theirs))]
    assert steps[0].dtype == steps[1].dtype == (torch.float32 if fused else torch.float64) and steps[0] == steps[1] == 2
    assert (flat(params) - flat(theirs)).abs().max() <= 1e-12


def test_loading_casts_as_torch():
    """A float32 state into a bfloat16 model becomes bfloat16, step stays."""
    case = next(c for c in CASES if str(c) == "AdamW-all")
    wide = parameters()
    first = case.ours(wide)
    run(first, wide, Gradients(), range(3))
    narrow = copies(wide, torch.bfloat16)
    second, reference = case.ours(narrow), case.torch(copies(wide, torch.bfloat16))
    second.load_state_dict(first.state_dict())
    reference.load_state_dict(first.state_dict())
    for mine, theirs in zip(second.state.values(), reference.state.values(), strict=True):
        assert {k: v.dtype for k, v in mine.items()} == {k: v.dtype for k, v in theirs.items()}
    run(second, narrow, Gradients(torch.bfloat16), range(3, 5))
    assert second.state[narrow[0]]["step"].item() == 5


# ---- what does not fit ----


def trained(name, **options):
    params = parameters(shapes=[(4, 3), (7,)])
    optimizer = getattr(compiledopt, name)([("first", params[0]), ("second", params[1])], **options)
    run(optimizer, params, Gradients(), range(2))
    return optimizer


def shaped_otherwise(state):
    state["state"][1]["exp_avg"] = torch.zeros(8)


def without_a_state(state):
    del state["state"][0]["exp_avg_sq"]


def with_two_steps(state):
    state["state"][0]["step"] = torch.ones(2)


def without_an_option(state):
    del state["param_groups"][0]["betas"]


def with_a_group_more(state):
    state["param_groups"].append({**state["param_groups"][0], "params": []})


def with_a_parameter_less(state):
    state["param_groups"][0]["params"] = [0]


MISFITS = [
    (
        shaped_otherwise,
        r"of parameter 'second' has 'exp_avg' of shape \(8,\), and the parameter, of shape \(7,\), wants \(7,\)\. Load it",
    ),
    (without_a_state, "the state of parameter 'first' has no 'exp_avg_sq'"),
    (with_two_steps, "the state of parameter 'first' has 'step' with 2 elements"),
    (without_an_option, r"param_groups\[0\] has no 'betas'; it has .*Was it saved by another optimizer\?"),
    (with_a_group_more, "loaded state dict has a different number of parameter groups"),
    (with_a_parameter_less, "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"),
]


@pytest.mark.parametrize(("spoil", "words"), MISFITS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_state_that_does_not_fit_changes_nothing(spoil, words):
    optimizer = trained("AdamW")
    state = copy.deepcopy(trained("AdamW", lr=0.5).state_dict())
    spoil(state)
    before, groups = snapshot(optimizer), [{**group} for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    assert same(before, snapshot(optimizer)) and optimizer.param_groups[0]["lr"] == groups[0]["lr"] == 1e-3
    run(optimizer, optimizer.param_groups[0]["params"], Gradients(), range(2, 3))
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 3


def lacks(saved, into):
    """Whether what one saves has not all that the other wants: an option, or a state."""
    first, second = (one.ours(parameters(shapes=[(4, 3)])).param_groups[0] for one in (saved, into))
    return set(second) - set(first) or set(into.rule.states_for(second)) - set(saved.rule.states_for(first))


STATED = [one for one in CATALOG.values() if one.rule is not None and one.rule.dense and not one.multiplies]
NEXT = [*pairwise([*STATED, STATED[0]])]
OTHERS = [(a.name, b.name) for a, b in (*NEXT, *(pair[::-1] for pair in NEXT)) if lacks(a, b)]


@pytest.mark.parametrize(("saved", "into"), OTHERS)
def test_a_state_of_another_optimizer_is_refused(saved, into):
    optimizer = trained(into)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"loaded state dict does not fit {into}: .*Was it saved by another optimizer"):
        optimizer.load_state_dict(trained(saved).state_dict())
    assert same(before, snapshot(optimizer))


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [leaf for part in parts for leaf in leaves(part)]


WITHOUT_RULE = [one for one in CATALOG.values() if one.rule is None]


@pytest.mark.parametrize("of", [*one_per_kind(STATED.__contains__), *WITHOUT_RULE], ids=str)
def test_loading_shares_no_memory(of):
    if of.rule is None:
        first, second = (of.ours(parameters(shapes=[(5,)])) for _ in range(2))
        losses = iter(range(100, 0, -1))
        for step in range(2):
            Gradients().set(first.param_groups[0]["params"], step)
            first.step(lambda: float(next(losses)))
        assert first.state_dict()["state"][0]["old_dirs"]
    else:
        first, second = trained(of.name, **of.promised), trained(of.name, **of.promised)
    state = first.state_dict()
    kept = copy.deepcopy(state["state"])
    second.load_state_dict(state)
    theirs, ours = ({t.data_ptr() for t in leaves(values)} for values in (state["state"], dict(second.state)))
    assert theirs and not (theirs & ours) - {0}
    if of.rule is not None:
        run(second, second.param_groups[0]["params"], Gradients(), range(2, 4))
        assert same(kept, state["state"]), "a step of the one changed the states of the other"


def test_a_hook_may_mend_a_state_before_it_is_checked():
    optimizer, state = trained("AdamW"), copy.deepcopy(trained("AdamW").state_dict())
    shaped_otherwise(state)

    def mend(_, state):
        state["state"][1]["exp_avg"] = torch.zeros(7)
        return state

    optimizer.register_load_state_dict_pre_hook(mend)
    optimizer.load_state_dict(state)
    assert optimizer.state[optimizer.param_groups[0]["params"][1]]["exp_avg"].abs().max() == 0
    assert optimizer.param_groups[0]["param_names"] == ["first", "second"]


CAPTURABLE = [case for case in one_per_algorithm() if case.of.rule.scalars]


@pytest.mark.parametrize("case", CAPTURABLE, ids=str)
def test_between_capturable_and_not_and_torch(case):
    """Saved with weights_only in mind, under each setting, into every other and into torch.optim, and back."""
    straight = parameters()
    reference = case.ours(straight, "for-loop", capturable=False)
    run(reference, straight, Gradients(), range(6))
    settings = [("compiled", True), ("for-loop", False), ("foreach", True), ("compiled", False)]
    params = parameters()
    optimizer = case.ours(params, "foreach", capturable=False)
    run(optimizer, params, Gradients(), range(1))
    for step, (executor, capturable) in enumerate(settings, 1):
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        params = copies(params)
        optimizer = case.ours(params, executor, capturable=capturable)
        state["param_groups"][0] |= {key: optimizer.param_groups[0][key] for key in ("capturable", "foreach", "compiled")}
        optimizer.load_state_dict(state)
        run(optimizer, params, Gradients(), range(step, step + 1))
    theirs = copies(params)
    baseline = case.torch(theirs)
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"capturable": False, "foreach": False}
    baseline.load_state_dict(state)
    run(baseline, theirs, Gradients(), range(5, 6))
    assert rms(flat(straight) - flat(parameters())) > 1e-3
    assert (flat(theirs) - flat(straight)).abs().max() < 2e-6


def test_what_a_checkpoint_of_torch_does_not_know_stays():
    """Clipping, averages and the wish for an executor survive loading; what a checkpoint has, it decides."""
    params, theirs = parameters(), parameters()
    baseline = torch.optim.AdamW(theirs, lr=0.5)
    run(baseline, theirs, Gradients(), range(2))
    optimizer = compiledopt.AdamW(params, max_grad_norm=1.0, ema_decay=0.9, compiled=True)
    optimizer.load_state_dict(baseline.state_dict())
    group = optimizer.param_groups[0]
    assert (group["max_grad_norm"], group["ema_decay"], group["compiled"], group["lr"]) == (1.0, 0.9, True, 0.5)
    run(optimizer, params, Gradients(), range(2, 4))
    assert optimizer.state[params[0]]["n_averaged"] == 2 and optimizer.state[params[0]]["step"] == 4
    other = compiledopt.AdamW(copies(params), max_grad_norm=7.0)
    other.load_state_dict(optimizer.state_dict())
    assert (other.param_groups[0]["max_grad_norm"], other.param_groups[0]["ema_decay"]) == (1.0, 0.9)


def _master(param):
    return param.detach().to(torch.float32, copy=True)


def _mask(param):
    return torch.zeros_like(param, dtype=torch.bool)


def _code(param):
    return torch.zeros_like(param, dtype=torch.int8)


def test_states_keep_the_dtype_that_their_rule_makes():
    """torch's load_state_dict casts them to their parameter's: a float32 master, a mask, a code of 8 bits."""

    @compiledopt.define(initial={"master": _master, "mask": _mask, "code": _code}, elementwise=False)
    def Kept(param, grad, master, mask, code, *, lr=0.1):
        master = master - lr * grad
        return master.to(param.dtype), master, ~mask, code + 1

    params = [torch.nn.Parameter(torch.linspace(1, 2, 5).bfloat16())]
    optimizer = Kept(params)
    params[0].grad = torch.full((5,), 0.001, dtype=torch.bfloat16)
    for _ in range(3):
        optimizer.step()
    assert [value.dtype for value in optimizer.state[params[0]].values()] == [torch.float32, torch.bool, torch.int8]
    loaded = Kept(copies(params))
    loaded.load_state_dict(saved(optimizer))
    assert same(list(loaded.state.values()), list(optimizer.state.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numbers_of_a_parameter_are_not_rounded_to_its_dtype(dtype):
    """NAdam's mu_product, which torch rounds to bfloat16 when it loads."""
    params = parameters(dtype)
    optimizer = compiledopt.NAdam(params, lr=0.01)
    run(optimizer, params, Gradients(dtype), range(3))
    mine = copies(params)
    loaded = compiledopt.NAdam(mine, lr=0.01)
    loaded.load_state_dict(saved(optimizer))
    assert same(list(loaded.state.values()), list(optimizer.state.values()))
    for each, of in ((optimizer, params), (loaded, mine)):
        run(each, of, Gradients(dtype), range(3, 5))
    assert same([p.detach() for p in params], [p.detach() for p in mine])


def test_loads_pile_nothing_up():
    params = parameters()
    optimizer = compiledopt.SGD(params, momentum=0.9)
    run(optimizer, params, Gradients(), range(2))
    saved, before = optimizer.state_dict(), len(in_graph._known.data)
    for _ in range(3):
        optimizer.load_state_dict(saved)
    assert len(in_graph._known.data) == before
    other = copy.deepcopy(optimizer)
    assert len(in_graph._known.data) == before + 1 and other._number != optimizer._number
