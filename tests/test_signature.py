"""A constructor's signature is where an algorithm says what it takes: options, checks, old groups and help() follow from it."""

import copy
import inspect
import itertools
import math
import re
import typing

import pytest
import torch
from catalog import CATALOG
from helpers import Gradients, parameters, run

import compiledopt
from compiledopt.arguments import DESCRIBED, HABITS, Bound, Extras

TORCHS = [one.name for one in CATALOG.values() if one.in_torch]
# A number that is out of every bound, where an option has one.
WRONG = {"betas": (-1.0, 2.0), "etas": (2.0, 0.5), "beta2_decay": 1.0, "adjust_lr_fn": "x", "nesterov": True}
REFUSED_LATER = ("line_search_fn", "ns_steps", "ns_coefficients")  # by a step


def matrix():
    return [torch.nn.Parameter(torch.ones(2, 2))]


def said(library, name, options):
    """What a constructor answers."""
    try:
        getattr(library, name)(matrix(), **options)
    except Exception as error:
        return type(error), str(error)
    return None


def test_all_that_torch_optim_has_is_here():
    assert set(torch.optim.__all__) <= set(compiledopt.__all__)
    if hasattr(torch.optim, "functional"):
        from compiledopt.functional import adamw

        assert adamw is torch.optim.functional.adamw


# What torch refuses since 2.15, and is refused here with any.
SINCE = {"ASGD": ("lambd", "alpha")}


def unbounded(name, options):
    """What is said of the first option that only a later torch than this refuses."""
    for key in SINCE.get(name, ()):
        if key in options and said(torch.optim, name, {key: options[key]}) is None:
            return ValueError, f"Invalid {key} value: {options[key]}"
    return None


@pytest.mark.parametrize("name", TORCHS)
def test_what_is_refused_and_in_which_order_is_as_in_torch(name):
    """One and two wrong options at a time: torch's error, word for word, and its first one."""
    parameters = inspect.signature(getattr(torch.optim, name)).parameters
    flags = [key for key, p in parameters.items() if key in HABITS or isinstance(p.default, bool)]
    wrong = {key: WRONG.get(key, -1.0) for key in parameters if key not in (*flags, "params") or key == "nesterov"}
    wrong = {key: value for key, value in wrong.items() if key not in REFUSED_LATER}
    if "eps" in wrong and isinstance(parameters["eps"].default, tuple):
        wrong["eps"] = (-1.0, -1.0)
    found = 0
    for a, b in itertools.product(wrong, wrong):
        options = {a: wrong[a], b: wrong[b]}
        theirs, mine = said(torch.optim, name, options), said(compiledopt, name, options)
        assert mine in (theirs, unbounded(name, options)) and (mine or not theirs), options
        found += theirs is not None
    assert found >= 1


@pytest.mark.parametrize("name", TORCHS)
def test_old_groups_are_filled_as_torch_does(name):
    """Each option that a checkpoint lacks gets the value that torch's __setstate__ gives it."""
    theirs, mine = getattr(torch.optim, name)(matrix()), getattr(compiledopt, name)(matrix())
    for key in set(theirs.param_groups[0]) - {"params"}:
        state = copy.deepcopy(theirs.state_dict())
        del state["param_groups"][0][key]
        theirs.load_state_dict(state)
        if key in theirs.param_groups[0]:
            mine.load_state_dict(state)
            assert mine.param_groups[0][key] == theirs.param_groups[0][key], key
        theirs, mine = getattr(torch.optim, name)(matrix()), getattr(compiledopt, name)(matrix())


def test_old_groups_of_sparse_adam():
    """torch's has no __setstate__, and reads `maximize` with a default at the step."""
    optimizer = compiledopt.SparseAdam(matrix())
    state = optimizer.state_dict()
    del state["param_groups"][0]["maximize"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["maximize"] is False


@pytest.mark.parametrize("given", ["absent", "False"])
@pytest.mark.parametrize("clone", ["loaded", "copied"])
def test_adamw_stays_decoupled(clone, given):
    """Whatever a group says: its decay does not enter the averages."""
    params = matrix()
    optimizer = compiledopt.AdamW(params, lr=0.1, weight_decay=0.5)
    run(optimizer, params, Gradients(), range(1))
    state = copy.deepcopy(optimizer.state_dict())
    group = state["param_groups"][0]
    group["decoupled_weight_decay"] = False
    if given == "absent":
        del group["decoupled_weight_decay"]
    if clone == "loaded":
        optimizer.load_state_dict(state)
    else:
        optimizer.param_groups[0].pop("decoupled_weight_decay")
        optimizer, params = copy.deepcopy((optimizer, params))
    average, before = optimizer.state[params[0]]["exp_avg"].clone(), params[0].detach().clone()
    params[0].grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[params[0]]["exp_avg"], 0.9 * average)
    coupled = compiledopt.Adam(matrix(), weight_decay=0.5)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] and not coupled.param_groups[0]["decoupled_weight_decay"]
    shrunk, moved = before * (1 - 0.1 * 0.5), optimizer.state[params[0]]
    step = 0.1 / (1 - 0.9**2) * moved["exp_avg"] / ((moved["exp_avg_sq"] / (1 - 0.999**2)).sqrt() + 1e-8)
    torch.testing.assert_close(params[0].detach(), shrunk - step)


@pytest.mark.parametrize("name", CATALOG)
def test_help_says_everything(name):
    """Each argument with what it is, its bound and its default; each state; where it comes from."""
    algorithm = getattr(compiledopt, name)
    text, rule = inspect.getdoc(algorithm), getattr(algorithm, "rule", None)
    arguments = inspect.signature(algorithm).parameters
    for key, argument in arguments.items():
        if argument.kind is argument.VAR_KEYWORD:
            assert all(f"    {extra}: {DESCRIBED[extra]}" in text for extra in Extras.__annotations__)
            continue
        line = next(line for line in text.splitlines() if line.startswith(f"    {key}:"))
        assert argument.default is argument.empty or line.endswith(f"default {argument.default!r}")
        alike = inspect.getdoc(algorithm.__mro__[1]) if rule is algorithm.__mro__[1].__dict__.get("rule") else ""
        meaning = rf"^(?!    ).*\b{key}( \([^)]*\))?: \S" + ("" if key not in DESCRIBED else rf"|{re.escape(DESCRIBED[key])}")
        assert re.search(meaning, text + (alike or ""), re.MULTILINE), f"what is {key}?"
        for bound in algorithm.bounds:
            assert bound.option != key or str(bound) in line
    for state in rule.states if rule is not None else ():
        alike = inspect.getdoc(algorithm.__mro__[1])
        assert f"`{state}`" in text + (alike or "")
    assert "Source: " in text and "Mutates: " in text and "Raises: " in text


@pytest.mark.parametrize("name", CATALOG)
def test_constructors_are_annotated(name):
    """For mypy and for completion in editors; the rules beside them are not."""
    constructor = getattr(compiledopt, name).__init__
    assert set(typing.get_type_hints(constructor)) >= set(inspect.signature(constructor).parameters) - {"self"}


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in TORCHS])
def test_what_is_no_number_is_refused(name):
    """Every option that is a number by default, whether it has bounds or not; what torch's take is torch's."""
    for option, parameter in inspect.signature(getattr(compiledopt, name)).parameters.items():
        if type(parameter.default) is not float:
            continue
        kind, words = said(compiledopt, name, {option: math.nan})
        assert kind is ValueError and words.endswith("nan")
        kind, words = said(compiledopt, name, {option: "0.1"})
        assert kind is TypeError and words == f"{option} must be a number, got '0.1' (str); float('0.1') makes one"


def test_every_beta_of_aggmo_is_bounded():
    for betas, index in (((0.1, 0.1, -0.1), 2), ((0.0, 1.0), 1)):
        found = said(compiledopt, "AggMo", {"betas": betas})
        assert found == (ValueError, f"Invalid beta parameter at index {index}: {betas[index]}")
    assert said(compiledopt, "AggMo", {"betas": 0.9}) == (TypeError, "betas must be a tuple of numbers, got 0.9")


def test_a_schedule_is_for_lr_alone():
    rate = compiledopt.schedules.exponential(0.5)
    with pytest.raises(TypeError, match=r"weight_decay is .*: only lr can be a schedule"):
        compiledopt.AdamW(matrix(), weight_decay=rate)
    for algorithm, words in ((compiledopt.AdamW, "Invalid learning rate: -1"), (compiledopt.Muon, "should be >= 0 but is: -1")):
        with pytest.raises(ValueError, match=words):
            algorithm(matrix(), lr=rate * -1.0)
    with pytest.raises(ValueError, match="Tensor max_grad_norm must be 1-element"):
        compiledopt.AdamW(matrix(), max_grad_norm=torch.ones(2))


def test_a_class_of_ones_own_says_only_its_signature():
    """Options, checks, old groups and help() of a class that torch.optim has not, with a rule beside it."""

    @compiledopt.rule(branches=("pull",))
    def drawn(param, grad, *, lr, pull, sharp, maximize):
        grad = -grad if maximize else grad
        return param - lr * (grad.sign() if sharp else grad) - (pull * param if pull != 0 else 0.0)

    class Drawn(compiledopt.Optimizer):
        """Drawn to zero."""

        rule = drawn
        bounds = (*compiledopt.Optimizer.bounds, Bound("pull", "Invalid pull", most=1.0))

        def __init__(self, params, lr=0.1, pull=0.5, sharp=False, *, maximize=False, foreach=None, **extras):
            super().__init__(params=params, defaults=locals())  # torch's names

    params = parameters(shapes=[(3,)])
    optimizer = Drawn(params, 0.2, max_grad_norm=1.0)
    wanted = {"lr": 0.2, "pull": 0.5, "sharp": False, "maximize": False, "foreach": None, "max_grad_norm": 1.0}
    assert optimizer.defaults == wanted
    assert Drawn.missing == {"sharp": False, "maximize": False, "foreach": None}
    for options, words in (({"lr": -1.0}, "Invalid learning rate: -1.0"), ({"pull": 2.0}, "Invalid pull: 2.0")):
        with pytest.raises(ValueError, match=words):
            Drawn(params, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'betas'"):
        Drawn(params, betas=1)
    assert "pull: ≥ 0 and ≤ 1; default 0.5" in Drawn.__doc__ and "Drawn to zero." in Drawn.__doc__
    before = params[0].detach().clone()
    params[0].grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), before * 0.5)

    class Fixed(Drawn):
        """As Drawn, always sharp."""

        fixed = {"sharp": True}

    assert Fixed(params, 0.3).param_groups[0]["sharp"] is True and Fixed(params, 0.3).defaults["lr"] == 0.3
