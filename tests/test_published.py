"""The published algorithms: against their papers (tests/published.py), in steps and as formulas; what all promise."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_formula
import torch
from catalog import DTYPES, EXECUTORS, PUBLISHED, with_slow
from contract import CONTRACTS, Subject
from helpers import SHAPES, Gradients, copies, flat, parameters, rms, run
from published import PAPERS

import compiledopt
from compiledopt import menu
from compiledopt.rules.formula import expressions, symbols_of
from compiledopt.rules.traced import traced

CASES = [case for one in PUBLISHED.values() for case in one.cases]
SLOW = pytest.mark.slow


# ---- the mathematics ----


# Rules that no kernel is made of, and why.
EAGER = {name: one for name, one in PUBLISHED.items() if not (one.elementwise or one.reduces)}
EAGER = dict.fromkeys(EAGER, "products of matrices")
RUNS = [(case, executor, dtype) for case in CASES for executor in EXECUTORS for dtype in DTYPES[:2]]
RUNS = [run for run in RUNS if run[0].algorithm not in EAGER or run[1] != "compiled"]
RUNS = [run for run in RUNS if not run[0].of.brief or run[0].label == "all" or run[2] is torch.float32]
MATRICES = {name: [(40, 50), (30, 20)] for name in (*EAGER, "RACS")}


def of(case, dtype=torch.float32):
    """Parameters that the algorithm takes."""
    few = [(40, 50), (301,)]  # each number of dimensions has kernels of its own where a rule reduces
    shapes = MATRICES.get(case.algorithm, SHAPES if case.of.elementwise else few)
    others = [(301,), (), (6, 4, 3, 2)] if case.algorithm == "Scion" and "norm" not in case.kwargs() else []
    return parameters(dtype, [*shapes, *others])


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr("compiledopt.algorithms.muon.product_dtype", lambda device: torch.float64)


@pytest.mark.parametrize("name", EAGER)
def test_what_is_not_compiled_says_why(name):
    case = PUBLISHED[name].cases[-1]
    mine = of(case)
    Gradients().set(mine, 0)
    with pytest.raises(RuntimeError, match="compiled=True"):
        case.ours(mine, "compiled").step()


# Of the 0-dim states, which are float32 in both, rounding is a part of float64's noise.
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}


# Of which the paper's update is written on tensors alone, and what in it is no symbol of sympy's.
ON_TENSORS = {
    **EAGER,
    "RACS": "a sum of squares over rows or columns",
    "AdamP": "a parameter's size",
    "AggMo": "a place in a list",
    "Amos": "a parameter's size",
    "Ano": "a root that is real for β₂ ≥ 1/2 alone",
    "MSVAG": "a bound of the first step, which ours does without",
    "AdaShift": "a place in a list",
    "Aida": "sums of what is scaled",
    "ApolloDQN": "a norm of order 4, and branches on numbers",
    "Nero": "rows of what follows from rows",
    "Rose": "the least element, and a mean of rows",
    "SGDP": "a parameter's size",
    "SGDSaI": "a parameter's size",
    "SM3": "a place in a list",
}


def quick(case, executor, dtype):
    """Of those that are brief, what no formula proves."""
    brief = not case.of.brief or (executor == "for-loop" and case.algorithm in ON_TENSORS)
    return case.label == "all" and dtype is torch.float32 and brief


@pytest.mark.parametrize(("case", "executor", "dtype"), with_slow(RUNS, quick))
def test_steps_are_the_papers(case, executor, dtype):
    steps_are_the_papers(case, executor, dtype, Gradients(dtype))


@SLOW
@pytest.mark.parametrize(("case", "executor", "dtype"), [run for run in RUNS if run[2] is torch.float32], ids=str)
def test_with_absent_gradients(case, executor, dtype):
    """Each parameter lacks its gradient now and then, and so falls behind in steps."""
    steps_are_the_papers(case, executor, dtype, Gradients(dtype, skip=True))


def steps_are_the_papers(case, executor, dtype, gradients):
    start = of(case, dtype)
    mine, theirs = copies(start), copies(start, torch.float64)
    optimizer = case.ours(mine, executor)
    run(optimizer, mine, gradients, range(50))
    torch.set_default_dtype(torch.float64)  # for the reference's 0-dim states
    try:
        reference = case.torch(theirs)
        run(reference, theirs, gradients, range(50))
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.executor == executor
    effect = rms(flat(theirs) - flat(start))
    assert effect > 0.01, "the case moves nothing, so it tests nothing"
    assert (flat(mine) - flat(theirs)).abs().max() <= CLOSE[dtype] * effect
    for p, q in zip(theirs, mine, strict=True):
        assert set(reference.state[p]) == set(optimizer.state[q])
        for name, value in reference.state[p].items():
            assert optimizer.state[q][name].shape == value.shape
            if value.numel() > 0:
                assert rms(optimizer.state[q][name].double() - value) <= CLOSE[dtype] * max(1e-3, rms(value))


PROVED = [(case,) for case in CASES if case.algorithm not in ON_TENSORS]


@pytest.mark.parametrize("case", with_slow(PROVED, lambda case: case.label == "all" or not case.of.brief))
def test_the_rule_is_the_papers(case):
    """The traced program and the paper's update are one formula."""
    optimizer = case.ours(parameters(shapes=[(2, 2)]))
    known = traced(optimizer.rule, optimizer.param_groups[0])
    program = known.program if known.elementwise else known.variant(torch.empty(2, 2)).program
    symbols = {node.name.replace("[", "").replace("]", ""): symbol for node, symbol in symbols_of(program).items()}
    assert len(set(symbols.values())) == len(symbols), "a letter that two quantities have"
    options = optimizer.param_groups[0].items()
    flags = {name: value for name, value in options if name not in symbols and not isinstance(value, tuple)}
    symbols_and_flags = SimpleNamespace(**flags, **symbols, dims=2)
    if case.kwargs().get("maximize"):
        symbols_and_flags.grad = -symbols["grad"]
    expected, found = PAPERS[case.algorithm][0](symbols_and_flags), expressions(program)
    assert found.keys() == expected.keys()
    for name in expected:
        test_formula.prove(found[name], expected[name], symbols)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), 0.1 * compiledopt.schedules.constant(1.0), 0.0], ids=str)
def test_a_body_is_thrown(lr):
    """Gravity's first velocity: of torch's generator, with a deviation of α / γ, and none where there is no rate."""
    for options in ({"compiled": True}, {"foreach": False}):
        torch.manual_seed(3)
        params = [torch.nn.Parameter(torch.zeros(30, 40)) for _ in range(2)]
        optimizer = compiledopt.Gravity(params, lr=lr, alpha=0.5, beta=0.8, **options)
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        torch.manual_seed(3)
        for param in params:
            drawn = torch.randn(30, 40) * (0.0 if isinstance(lr, float) and lr == 0 else 0.5)
            torch.testing.assert_close(param.detach(), -(0.8 + 1) / 3 * drawn)


def test_nero_gives_parameters_their_form_when_it_is_made():
    """And when a group is added; a row of one element, or of equal ones, stays."""
    params = parameters(shapes=[(4, 5), (7,), (3, 1), (2, 3, 2, 2)])
    before = [param.detach().clone() for param in params]
    optimizer = compiledopt.Nero([{"params": params[:3]}])
    optimizer.add_param_group({"params": params[3:]})
    for param in (params[0], params[3]):
        rows = param.detach().flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    assert torch.equal(params[1], before[1]) and torch.equal(params[2], before[2])
    free = copies(before)
    compiledopt.Nero(free, constraints=False)
    assert all(torch.equal(one, two) for one, two in zip(free, before, strict=True))


# ---- what all optimizers promise ----

MADE, FORM = "states_are_made", "states_have_the_form_of_torchs"
QUICK = ("states_go_through_a_file", FORM)
LATE = ("groups_have_options_of_their_own", "groups_can_be_added", "empty_parameters_are_no_hindrance")
ZEROS, OWN = "nothing_happens_for_zeros", "groups_have_options_of_their_own"
# (promise, name): why it is none of theirs. In the second a group has the rate 0.
BROKEN = {
    (ZEROS, "Yogi"): "its momentum begins at initial_accumulator, and so moves parameters by itself",
    (ZEROS, "Fromage"): "parameters are divided by √(1 + γ²)",
    (ZEROS, "Amos"): "extra_l2 is a decay",
    (OWN, "Amos"): "extra_l2 is a decay that no rate scales",
    (ZEROS, "FTRL"): "parameters are made anew of its sums",
    **dict.fromkeys([(each, "AdaShift") for each in LATE], "it moves nothing until it has kept as many gradients as it wants"),
    ("a_closure_is_called_with_gradients_enabled", "Nero"): "it gives parameters another form when it is made",
    (ZEROS, "Nero"): "each step ends in the form that parameters keep",
    (MADE, "Rose"): "it keeps nothing",
    (FORM, "Rose"): "it keeps nothing",
    (OWN, "FTRL"): "it divides by its rate, which may not be 0",
}
PROMISES = [(promise.__name__, name) for promise in CONTRACTS for name in PUBLISHED if (promise.__name__, name) not in BROKEN]

FIRST_OF_KIND = {one.kind: name for name, one in reversed(PUBLISHED.items()) if not one.brief}.values()


@pytest.mark.parametrize(
    ("promise", "name"), with_slow(PROMISES, lambda promise, name: promise in QUICK and name in FIRST_OF_KIND)
)
def test_promises_are_kept(promise, name):
    """Not asked of the reference: it is a loop, and no optimizer of torch's."""
    next(each for each in CONTRACTS if each.__name__ == promise)(Subject(PUBLISHED[name], ours=True))


# ---- where they stand ----


def test_nothing_is_imported_before_it_is_asked_for():
    program = (
        "import sys, compiledopt; before = {n for n in sys.modules if '.published.' in n}; from compiledopt import Lion; "
        "print(len(before), Lion.__module__, sum('.published.' in n for n in sys.modules), 'Tiger' in dir(compiledopt))"
    )
    environment = {"PYTHONPATH": str(Path(compiledopt.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["0", "compiledopt", "1", "True"], done.stderr


def test_every_list_of_them_is_the_same():
    """The menu, __all__, what type checkers see, and the files."""
    tree = ast.parse(Path(compiledopt.__file__).read_text())
    seen = {
        alias.name: node.module.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "published" in (node.module or "")
        for alias in node.names
    }
    assert seen == menu.PUBLISHED and set(seen) <= set(compiledopt.__all__)
    folder = Path(compiledopt.__file__).parent / "algorithms" / "published"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(menu.PUBLISHED.values())
    with pytest.raises(AttributeError, match="no attribute 'Lyon'"):
        compiledopt.Lyon  # noqa: B018
