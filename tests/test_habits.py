"""What torch's optimizers take and give beside the usual."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from catalog import CATALOG, one_per_kind
from helpers import Gradients, parameters, run

import compiledopt
from compiledopt.stats import STATS

NUMBERS = [np.float32(0.125), np.float64(0.125), np.array(0.125), np.array(0.125, dtype=np.float32)]
MODES = {"compiled": {"compiled": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}
MODES["differentiable"] = {"differentiable": True}


DECAYING = one_per_kind(lambda one: one.takes("weight_decay") and one.takes_vectors)


@pytest.mark.parametrize(
    ("of", "mode"), [(of, mode) for of in DECAYING for mode in MODES if of.elementwise or mode != "differentiable"], ids=str
)
def test_numpys_numbers_are_numbers(of, mode):
    """Entries of the table like others: each a program of its own it was, and an array could be none."""
    results = []
    for lr in (0.125, *NUMBERS):
        params = parameters(shapes=[(3,), (4, 5)])
        params = [param.detach() for param in params] if mode == "differentiable" else params
        optimizer = of.ours(params, lr=lr, weight_decay=lr, **MODES[mode])
        before = STATS.programs_traced
        run(optimizer, params, Gradients(), range(2))
        results.append(torch.cat([param.detach().flatten() for param in params]))
        traced = STATS.programs_traced - before
    assert traced == 0
    assert all(torch.equal(results[0], result) for result in results)


def test_numpys_numbers_everywhere_and_between_steps():
    for value in NUMBERS:
        for of in CATALOG.values():
            param = torch.nn.Parameter(torch.ones(3, 3))
            param.grad = torch.ones(3, 3).to_sparse() if of.sparse_only else torch.ones(3, 3)
            of.ours([param], lr=value).step(*[lambda p=param: (p * p).sum()] * (of.rule is None))
            assert param.isfinite().all()
    params = parameters(shapes=[(3,)])
    optimizer = compiledopt.AdamW(params, compiled=True)
    run(optimizer, params, Gradients(), range(1))
    kernels = STATS.kernels_lowered
    for value in NUMBERS:
        optimizer.param_groups[0] |= {"lr": value, "weight_decay": value, "betas": (np.float32(0.5), np.float32(0.75))}
        run(optimizer, params, Gradients(), range(1))
    assert STATS.kernels_lowered == kernels


@pytest.mark.parametrize("name", [one.name for one in CATALOG.values() if one.in_torch])
def test_groups_keep_their_keys(name):
    """A load, a copy or a pickle adds none."""
    made = [getattr(library, name)([torch.nn.Parameter(torch.ones(3, 3))], lr=0.1) for library in (compiledopt, torch.optim)]
    optimizer, theirs = made
    keys = set(optimizer.param_groups[0])
    optimizer.load_state_dict(theirs.state_dict())
    for one in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert set(one.param_groups[0]) == keys


@pytest.mark.parametrize("mode", MODES)
def test_a_state_dict_without_states_is_torchs(mode):
    params = [param.detach() for param in parameters()]
    optimizer = compiledopt.SGD(params, lr=0.1, **MODES[mode])
    run(optimizer, params, Gradients(), range(2))
    assert optimizer.state_dict()["state"] == {}
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, params, Gradients(), range(1))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_at_the_minimum_with_tolerances_that_stop_nothing(search):
    results = []
    for library in (torch.optim, compiledopt):
        param = torch.nn.Parameter(torch.zeros(3))
        optimizer = library.LBFGS([param], tolerance_grad=-1.0, tolerance_change=-1.0, line_search_fn=search)

        def closure(param=param, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (param * param).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        results.append((param.detach(), optimizer.state[param]["n_iter"]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_make_states_of_lbfgs():
    optimizer = compiledopt.LBFGS([torch.nn.Parameter(torch.ones(1))])
    optimizer.make_states()
    assert not optimizer.state


def test_a_scaled_step_leaves_its_gradients_alone():
    """torch's fused kernels write the divided gradients back."""
    for library, factor in ((torch.optim, 0.25), (compiledopt, 1.0)):
        param = torch.nn.Parameter(torch.ones(3))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        optimizer = library.SGD([param], lr=0.125, fused=True)
        scaler.scale(param.sum()).backward()
        scaler.step(optimizer)
        assert torch.equal(param.grad, torch.full((3,), 4.0 * factor)) and param[0] == 1 - 0.125


def test_integer_parameters_are_refused():
    """torch takes them in SGD where every number is whole, on the for-loop alone."""
    param = torch.ones(3, dtype=torch.int64)
    param.grad = torch.ones(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"must be floating point or complex, got torch.int64; convert them with .float\(\)"):
        compiledopt.SGD([param], lr=1).step()
    assert param.sum() == 3


def step_of(rule, **declared):
    param = torch.nn.Parameter(torch.linspace(-1, 2, 12).reshape(4, 3))
    param.grad = torch.linspace(1, 3, 12).reshape(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiledopt.define(**declared)(rule)([param], compiled=True).step()
    return param.detach()


def by_norm(param, grad, *, lr=0.1):
    return param - lr * grad / torch.norm(grad)


def by_norm_of_a_dtype(param, grad, *, lr=0.1):
    return param - lr * grad / grad.norm(p=2, dtype=torch.float32)


def by_vector_norm(param, grad, *, lr=0.1):
    return param - lr * grad / torch.linalg.vector_norm(grad, ord=2, dtype=torch.float64)


def by_sum(param, grad, *, lr=0.1):
    return +param - lr * grad / grad.sum(dtype=torch.float32)


def by_sum_of_rows(param, grad, *, lr=0.1):
    return param - lr * grad / torch.sum(grad, dim=-1, keepdim=True, dtype=torch.float64)


@pytest.mark.parametrize("rule", [by_norm, by_norm_of_a_dtype, by_vector_norm, by_sum, by_sum_of_rows])
def test_reductions_as_torch_spells_them(rule):
    param, grad = torch.linspace(-1, 2, 12).reshape(4, 3), torch.linspace(1, 3, 12).reshape(4, 3)
    torch.testing.assert_close(step_of(rule), rule(param, grad).float())


def half_sum(param, grad, *, lr=0.1):
    return param - lr * grad.sum(dtype=torch.float16)


def counted(param, grad, *, lr=0.1, times=3):
    for _ in range(times):
        param = param - lr * grad
    return param


def first_branch(param, grad, *, lr=0.1, first):
    return param if first else param - lr * grad


def keywords(param, grad, *, lr=0.1, **more):
    return param - lr * grad


def stepped(param, grad, step, *, lr=0.1):
    return param - lr * grad, step + 1


def nothing(param, grad, *, lr=0.1):
    return param


HERE = rf"{__file__}:\d+: "
RAW = [
    (half_sum, {}, HERE + r"sum with dtype=torch.float16 is not supported in a rule; leave it out"),
    (counted, {}, HERE + r"range\(\), int\(\) and the like read a value; declare .* in static="),
    (first_branch, {"branches": ("first",)}, r"branches names 'first', which no group has; use it as a number"),
    (keywords, {}, r"keywords: \*args and \*\*kwargs are not allowed"),
    (stepped, {"scalars": ("step",), "initial": {"step": lambda param: 3.0}}, r"'step' starts from a number or the name of an"),
    (nothing, {}, r"nothing computes nothing: it returns what it was given"),
]


@pytest.mark.parametrize(("rule", "declared", "words"), RAW, ids=lambda value: getattr(value, "__name__", None))
def test_errors_of_rules_say_what_to_write(rule, declared, words):
    with pytest.raises((TypeError, RuntimeError), match=words):
        step_of(rule, **declared)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": "1e-3"}, r"lr must be a number, got '1e-3' \(str\); float\('1e-3'\) makes one"),  # as YAML reads it
        ({"betas": ("0.9", 0.99)}, "betas must be a number, got '0.9'"),
        ({"max_grad_norm": "1"}, r"max_grad_norm must be a number, got '1' \(str\)"),
        ({"betas": 0.9}, "betas must be a tuple of numbers, got 0.9"),
    ],
    ids=["lr", "betas", "max_grad_norm", "one"],
)
def test_what_is_no_number_in_a_group_is_named(changed, words, mode):
    params = [param.detach() for param in parameters(shapes=[(3,)])]
    optimizer = compiledopt.AdamW(params, **MODES[mode])
    run(optimizer, params, Gradients(), range(3))
    before = params[0].clone()
    optimizer.param_groups[0].update(changed)
    with warnings.catch_warnings(), pytest.raises(TypeError, match=words):
        warnings.simplefilter("error")
        run(optimizer, params, Gradients(), range(1))
    assert torch.equal(before, params[0])


@pytest.mark.parametrize("kind", [tuple, type("Params", (list,), {})])
def test_parameters_of_a_group_in_another_sequence(kind):
    """A group is the user's to change; native code walks through lists alone."""
    results = []
    for change in (False, True):
        params = parameters(shapes=[(3,), (4, 5)])
        optimizer = compiledopt.AdamW(params)
        run(optimizer, params, Gradients(), range(3))
        if change:
            optimizer.param_groups[0]["params"] = kind(params)
        run(optimizer, params, Gradients(), range(3, 8))
        results.append(params)
    assert all(map(torch.equal, *results))


def test_states_of_adagrad_in_shared_memory():
    """Hogwild's: processes that share a model share its sums."""
    params = parameters(shapes=[(3,), (4, 5)])
    optimizer = compiledopt.Adagrad(params)
    optimizer.share_memory()
    run(optimizer, params, Gradients(), range(4))
    for state in optimizer.state.values():
        assert set(state) == {"step", "sum"} and all(value.is_shared() for value in state.values())


@pytest.mark.parametrize("name", [one.name for one in CATALOG.values() if one.in_torch])
def test_public_attributes_of_torchs_are_here(name):
    made = [getattr(library, name)([torch.nn.Parameter(torch.ones(3, 3))], lr=0.1) for library in (compiledopt, torch.optim)]
    assert [one for one in dir(made[1]) if not one.startswith("_") and not hasattr(made[0], one)] == []
