"""The formula that explain prints is the code's, and the textbook's.

Each textbook update below is written from the paper or from torch's documentation, in the order the page has it, with no
look at our rules. `prove` shows the two equal at many random points to 30 digits; sympy's own proofs take minutes.
"""

import random
import re
from types import SimpleNamespace

import mpmath
import pytest
import sympy
import torch
from expecttest import assert_expected_inline
from helpers import parameters
from sympy import Abs, Max, Min, Piecewise, sign, sqrt

import compiledopt
from compiledopt.rules.formula import Formula, expressions, formula, symbols_of
from compiledopt.rules.traced import traced


def decayed(x):
    return x.grad + x.weight_decay * x.param


def sgd(x, nesterov=False):
    g = decayed(x)
    b = Piecewise((g, x.first > 0), (x.momentum * x.momentum_buffer + (1 - x.dampening) * g, True))
    return {"momentum_buffer": b, "param": x.param - x.lr * (g + x.momentum * b if nesterov else b)}


def sgd_plain(x):
    return {"param": x.param - x.lr * decayed(x)}


def adam_moments(x, g):
    m = x.betas0 * x.exp_avg + (1 - x.betas0) * g
    v = x.betas1 * x.exp_avg_sq + (1 - x.betas1) * g**2
    return x.step + 1, m, v


def adam(x, decoupled=False, amsgrad=False):
    theta, g = (x.param - x.lr * x.weight_decay * x.param, x.grad) if decoupled else (x.param, decayed(x))
    t, m, v = adam_moments(x, g)
    largest = Max(x.max_exp_avg_sq, v) if amsgrad else v
    m_hat, v_hat = m / (1 - x.betas0**t), largest / (1 - x.betas1**t)
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v, "param": theta - x.lr * m_hat / (sqrt(v_hat) + x.eps)}
    return new | ({"max_exp_avg_sq": largest} if amsgrad else {})


def adadelta(x):
    g = decayed(x)
    v = x.square_avg * x.rho + g**2 * (1 - x.rho)
    delta = sqrt(x.acc_delta + x.eps) / sqrt(v + x.eps) * g
    u = x.acc_delta * x.rho + delta**2 * (1 - x.rho)
    return {"step": x.step + 1, "square_avg": v, "acc_delta": u, "param": x.param - x.lr * delta}


def adagrad(x):
    g, t = decayed(x), x.step + 1
    s = x.sum + g**2
    return {"step": t, "sum": s, "param": x.param - x.lr / (1 + (t - 1) * x.lr_decay) * g / (sqrt(s) + x.eps)}


def adamax(x):
    g, t = decayed(x), x.step + 1
    m = x.betas0 * x.exp_avg + (1 - x.betas0) * g
    u = Max(x.betas1 * x.exp_inf, Abs(g) + x.eps)
    return {"step": t, "exp_avg": m, "exp_inf": u, "param": x.param - x.lr * m / ((1 - x.betas0**t) * u)}


def asgd(x):
    g, t = decayed(x), x.step + 1
    theta = (1 - x.lambd * x.eta) * x.param - x.eta * g
    average = Piecewise((x.ax + x.mu * (theta - x.ax), sympy.Ne(x.mu, 1)), (theta, True))
    eta, mu = x.lr / (1 + x.lambd * x.lr * t) ** x.alpha, 1 / Max(1, t - x.t0)
    return {"step": t, "ax": average, "eta": eta, "mu": mu, "param": theta}


def nadam(x, decoupled=False):
    theta, g = (x.param - x.lr * x.weight_decay * x.param, x.grad) if decoupled else (x.param, decayed(x))
    t, m, v = adam_moments(x, g)
    mu = x.betas0 * (1 - sympy.Rational(1, 2) * sympy.Rational("0.96") ** (t * x.momentum_decay))
    mu_next = x.betas0 * (1 - sympy.Rational(1, 2) * sympy.Rational("0.96") ** ((t + 1) * x.momentum_decay))
    product = x.mu_product * mu
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    v_hat = v / (1 - x.betas1**t)
    new = {"step": t, "mu_product": product, "exp_avg": m, "exp_avg_sq": v}
    return new | {"param": theta - x.lr * m_hat / (sqrt(v_hat) + x.eps)}


def radam(x, decoupled=False):
    theta, g = (x.param - x.lr * x.weight_decay * x.param, x.grad) if decoupled else (x.param, decayed(x))
    t, m, v = adam_moments(x, g)
    m_hat = m / (1 - x.betas0**t)
    longest = 2 / (1 - x.betas1) - 1
    rho = longest - 2 * t * x.betas1**t / (1 - x.betas1**t)
    length = sqrt(1 - x.betas1**t) / (sqrt(v) + x.eps)
    r = sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    plain, rectified = theta - x.lr * m_hat, theta - x.lr * m_hat * r * length
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    return new | {"param": Piecewise((rectified, rho > 5), (plain, True))}


def rmsprop(x, centered=False, momentum=False):
    g = decayed(x)
    v = x.alpha * x.square_avg + (1 - x.alpha) * g**2
    new = {"step": x.step + 1, "square_avg": v}
    if centered:
        new["grad_avg"] = x.grad_avg * x.alpha + (1 - x.alpha) * g
        v = v - new["grad_avg"] ** 2
    if not momentum:
        return new | {"param": x.param - x.lr * g / (sqrt(v) + x.eps)}
    b = x.momentum * x.momentum_buffer + g / (sqrt(v) + x.eps)
    return new | {"momentum_buffer": b, "param": x.param - x.lr * b}


def rprop(x):
    product = x.grad * x.prev
    grown, shrunk = Min(x.step_size * x.etas1, x.step_sizes1), Max(x.step_size * x.etas0, x.step_sizes0)
    # The paper clips where it changes; torch clips always, and the size starts within the bounds.
    kept = Min(Max(x.step_size, x.step_sizes0), x.step_sizes1)
    size = Piecewise((Max(grown, x.step_sizes0), product > 0), (Min(shrunk, x.step_sizes1), product < 0), (kept, True))
    g = Piecewise((0, product < 0), (x.grad, True))
    return {"step": x.step + 1, "prev": g, "step_size": size, "param": x.param - size * sign(g)}


def sparse_adam(x):
    t, m, v = adam_moments(x, x.grad)
    size = x.lr * sqrt(1 - x.betas1**t) / (1 - x.betas0**t)
    return {"step": t, "exp_avg": m, "exp_avg_sq": v, "param": x.param - size * m / (sqrt(v) + x.eps)}


def adafactor(x, matrix=True):
    """Algorithms 4 and 5 of the paper; torch's decay is that of AdamW, and its ε₁ bounds √v and the mean of r."""
    mean, mean_row, mean_column, mean_matrix = map(sympy.Function, ("mean", "mean_row", "mean_column", "mean_matrix"))
    t, smallest = x.step + 1, sympy.Rational(1, 2**23)
    beta = 1 - t**x.beta2_decay
    if matrix:
        r = beta * x.row_var + (1 - beta) * mean_row(x.grad**2)
        c = beta * x.col_var + (1 - beta) * mean_column(x.grad**2)
        states, v = {"row_var": r, "col_var": c}, r * c / Max(mean_matrix(r), smallest)
    else:
        v = beta * x.variance + (1 - beta) * x.grad**2
        states = {"variance": v}
    u = x.grad / Max(sqrt(v), smallest)
    alpha = Max(x.eps1, sqrt(mean(x.param**2))) * Min(x.lr, 1 / sqrt(t))
    theta = x.param - x.lr * x.weight_decay * x.param - alpha * u / Max(1, sqrt(mean(u**2)) / x.d)
    return {"step": t, "param": theta, **states}


TEXTBOOK = {
    "Adafactor": [({"weight_decay": 0.1}, adafactor), ({"weight_decay": 0.2}, lambda x: adafactor(x, matrix=False))],
    "SGD": [({"weight_decay": 0.1}, sgd_plain), ({"weight_decay": 0.1, "momentum": 0.9}, sgd)]
    + [({"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}, lambda x: sgd(x, nesterov=True))],
    "Adam": [({"weight_decay": 0.1}, adam), ({"weight_decay": 0.1, "amsgrad": True}, lambda x: adam(x, amsgrad=True))],
    "AdamW": [({}, lambda x: adam(x, decoupled=True))],
    "Adadelta": [({"weight_decay": 0.1}, adadelta)],
    "Adagrad": [({"weight_decay": 0.1}, adagrad)],
    "Adamax": [({"weight_decay": 0.1}, adamax)],
    "ASGD": [({"weight_decay": 0.1}, asgd)],
    "NAdam": [({"weight_decay": 0.1}, nadam)]
    + [({"weight_decay": 0.1, "decoupled_weight_decay": True}, lambda x: nadam(x, decoupled=True))],
    "RAdam": [({"weight_decay": 0.1}, radam)]
    + [({"weight_decay": 0.1, "decoupled_weight_decay": True}, lambda x: radam(x, decoupled=True))],
    "RMSprop": [({"weight_decay": 0.1}, rmsprop), ({"weight_decay": 0.1, "centered": True}, lambda x: rmsprop(x, True))]
    + [({"weight_decay": 0.1, "centered": True, "momentum": 0.9}, lambda x: rmsprop(x, True, True))],
    "Rprop": [({}, rprop)],
    "SparseAdam": [({}, sparse_adam)],
}
CASES = [pytest.param(n, o, f, id=f"{n}-{'-'.join(o) or 'default'}") for n, each in TEXTBOOK.items() for o, f in each]


def program_of(name, options):
    shape = (2, 2) if name == "Adafactor" and options["weight_decay"] == 0.1 else (2,)
    optimizer = getattr(compiledopt, name)(parameters(shapes=[shape]), **options)
    known = traced(optimizer.rule, optimizer.param_groups[0])
    return known.program if known.elementwise else known.variant(torch.empty(shape)).program


RANGES = {"exp_avg_sq": (0.1, 3), "square_avg": (2, 5), "grad_avg": (-0.1, 0.1), "etas1": (1, 2)}
RANGES |= {"beta2_decay": (-0.9, -0.1), "d": (0.2, 2), "eps1": (0.2, 1)}
RANGES |= {"step_sizes0": (0.01, 0.2), "step_sizes1": (0.3, 2)}


# Functions that grow in the place of means: equal for these and for others, they are of equal arguments.
REDUCED = ("mean", "mean_row", "mean_column", "mean_matrix", "sum", "amax")
MEANS = {name: lambda x, i=i: x * i / 7 + i for i, name in enumerate(REDUCED, 1)}
DIGITS, POINTS = 50, 40


def point(symbols, generator):
    """Random values where everything is defined: fractions in (0, 1), small steps, states that can occur."""
    values = []
    for name in symbols:
        low, high = (-2, 2) if name in ("param", "grad", "exp_avg", "momentum_buffer", "prev", "ax") else (0.05, 0.95)
        low, high = RANGES.get(name, (low, high))
        whole = {"step": (1, 30), "t0": (1, 30), "first": (0, 1)}.get(name)
        values.append(mpmath.mpf(generator.randint(*whole) if whole else generator.uniform(low, high)))
    return values


def prove(ours, theirs, symbols):
    """Fails where the two expressions differ."""
    both = [sympy.lambdify(list(symbols.values()), one, modules=[MEANS, "mpmath"], cse=True) for one in (ours, theirs)]
    generator, different = random.Random(0), set()
    with mpmath.workdps(DIGITS):
        for _ in range(POINTS):
            values = point(symbols, generator)
            a, b = (mpmath.mpmathify(function(*values)) for function in both)
            assert isinstance(a, mpmath.mpf) and abs(a - b) <= mpmath.mpf("1e-30") * max(1, abs(b)), (a, b)
            different.add(mpmath.nstr(a, 8))
    assert len(different) > 1 or len(symbols) < 2, "the points do not tell anything apart"


@pytest.mark.parametrize(("name", "options", "textbook"), CASES)
def test_the_rule_is_the_textbooks(name, options, textbook):
    program = program_of(name, options)
    symbols = {node.name.replace("[", "").replace("]", ""): s for node, s in symbols_of(program).items()}
    expected = textbook(SimpleNamespace(**symbols))
    ours = expressions(program)
    assert ours.keys() == expected.keys()
    for key in expected:
        prove(ours[key], expected[key], symbols)


def test_a_wrong_textbook_is_noticed():
    """The proof fails for a formula that differs by one sign, one bias correction or one branch."""
    for name, options, wrong in (
        ("Adam", {"weight_decay": 0.1}, lambda x: adam(x) | {"param": adam(x)["param"] + x.eps * x.lr / 100}),
        ("RAdam", {"weight_decay": 0.1}, lambda x: radam(x) | {"param": radam(x)["param"].subs(5, 6)}),
        ("SGD", {"weight_decay": 0.1, "momentum": 0.9}, lambda x: sgd(x, nesterov=True)),
        (
            "Adafactor",
            {"weight_decay": 0.1},
            lambda x: {"param": adafactor(x)["param"].replace(sympy.Function("mean_row"), Abs)},
        ),
    ):
        program = program_of(name, options)
        symbols = {node.name.replace("[", "").replace("]", ""): s for node, s in symbols_of(program).items()}
        with pytest.raises(AssertionError):
            prove(expressions(program)["param"], wrong(SimpleNamespace(**symbols))["param"], symbols)


@pytest.mark.parametrize(("name", "options", "textbook"), CASES)
def test_the_lines_say_what_the_program_does(name, options, textbook):
    """Line by line, put into each other, the printed formula is the program's."""
    program = program_of(name, options)
    lines, whole = formula(program).lines, expressions(program)
    values = {}
    for left, right in reversed(lines):
        values = {k: v.subs(left, right) for k, v in values.items()} | {left: right}
    by_name = {s.name: node.name for node, s in symbols_of(program).items()}
    done = {by_name[left.name[:-1]]: value for left, value in values.items() if left.name.endswith("'")}
    symbols = {node.name.replace("[", "").replace("]", ""): s for node, s in symbols_of(program).items()}
    assert done.keys() == whole.keys()
    for key, value in done.items():
        prove(value, whole[key], symbols)


def test_text_and_latex():
    found = formula(program_of("AdamW", {}))
    assert_expected_inline(
        "\n".join(found.text),
        """\
t' = t + 1
m' = β₁·m + (1 - β₁)·g
v' = β₂·v + (1 - β₂)·g²
θ' = (1 - γ·λ)·θ - γ·m'/((1 - β₁^t')·(√v'/√(1 - β₂^t') + ε))""",
    )
    assert found.latex[2] == r"v^{\prime} = \beta_{2} v + \left(1 - \beta_{2}\right) g^{2}"
    assert found.meanings["gamma"] == "lr" and found.meanings["theta"] == "param"
    assert "cases" in "\n".join(formula(program_of("RAdam", {})).latex)
    text = compiledopt.AdamW(parameters()).explain()
    assert all(line in text for line in [*found.text, *found.latex])


@pytest.mark.parametrize(("name", "options", "textbook"), CASES)
def test_what_is_subtracted_comes_last(name, options, textbook):
    """No sum starts with a minus sign where one of its terms has none, and no product has a number behind a tensor."""
    found = formula(program_of(name, options))
    sums = {each for _, right in found.lines for each in right.atoms(sympy.Add)}
    assert sums
    for each in sums:
        alone = Formula(((sympy.Symbol("x"), each),), found.meanings, found.numbers)
        negative = all(term.as_coeff_Mul()[0].is_negative for term in each.args)
        for line in (*alone.text, *alone.latex):
            assert line.split(" = ", 1)[1].startswith("-") == negative, line
    assert not any(re.search(r"[θgmvh]₁?[²']*·(γ|β|\(1 - β.\))", line) for line in found.text)


def test_numbers_are_short():
    """Decimals stay decimals, and powers of two powers; halves and thirds are fractions."""

    @compiledopt.define
    def Numbers(param, grad, *, lr=0.5):
        return param * 0.96**lr / 2 - lr * 0.1 * (grad - 3.25) / (abs(grad) + 2.5e-8) / 3 + grad.clamp_min(2.0**-23)

    optimizer = Numbers(parameters())
    found = formula(traced(optimizer.rule, optimizer.param_groups[0]).program)
    assert found.text == ["θ' = 0.96^γ·θ/2 + max(1/2^23, g) - γ·(g - 3.25)/(30·(|g| + 2.5e-8))"]
    assert r"\frac{0.96^{\gamma} \theta}{2}" in found.latex[0] and r"\frac{1}{2^{23}}" in found.latex[0]
    assert r"\left|{g}\right| + 2.5 \cdot 10^{-8}" in found.latex[0]


def test_what_stands_around_a_rule_can_be_read():
    rate = 3e-4 * compiledopt.schedules.cosine_annealing(1000)
    text = compiledopt.SGD(parameters(), lr=rate, ema_decay=0.9).explain()
    assert "θ' = θ - (0.00015·cos(0.00314159·t) + 0.00015)·g" in text
    assert "a' = (0 if n = 0 else d)·a + (1 if n = 0 else 1 - d)·θ'" in text
