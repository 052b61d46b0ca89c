"""Every part of the library on a GPU, and under a captured graph: what the catalog, the codecs and the transformations say
there is, each against the for-loop on the host."""

import copy
import warnings

import pytest
import torch
from catalog import CATALOG, MENU
from gpu_stand_ins import (
    DEVICE,
    REHEARSED,
    UNREHEARSED,
    captured,
    fill_gradients,
    models,
    needs_a_gpu,
    on_host,
    set_gradients,
    stand_in,
    there,
)
from helpers import parameters, rms

import compiledopt
from compiledopt import around, schedules
from compiledopt.rules.program import OUTER
from compiledopt.rules.traced import Variant, traced
from compiledopt.storage import CODECS
from compiledopt.storage.parameters import ROUNDINGS

pytestmark = pytest.mark.gpu
needs_a_gpu()

# Matrices of whole blocks and ragged ones, large enough for states in blocks, and vectors.
SHAPES, VECTORS = [(64, 96), (9, 700)], [(301,), (4200,)]
EVERY = {**CATALOG, **MENU}
CONVOLUTIONS = [(8, 6, 3, 3), (70, 3, 5, 5)]
SMALL, SMALL_VECTORS = [(64, 96), (9, 70)], [(31,)]  # of rules that decompose matrices as wide as a parameter
LATE = {"RAdamScheduleFree": 8}  # steps of a rule whose first five move nothing
STATES = [name for name in CODECS if name not in {codec.unsigned for codec in CODECS.values()}]
AROUND = {
    "max_grad_norm": 0.5,
    "ema_decay": 0.9,
    "cautious": True,
    "corrected_decay": True,
    "update_clipping": 0.5,
    "gradient_centralization": True,
    "skip_nonfinite": True,
    "grokfast": (0.9, 2.0),
}


class Subject:
    """make: an optimizer of parameters and options; options: for the constructor; dtype and shapes: of the parameters;
    tolerance: of the effect; steps: how many are taken."""

    def __init__(self, name, make, options=None, dtype=torch.float32, shapes=(*SHAPES, *VECTORS), tolerance=0.01):
        self.name, self.make, self.options, self.steps = name, make, options or {}, LATE.get(name, 4)
        self.dtype, self.shapes, self.tolerance = dtype, shapes, tolerance

    def __str__(self):
        return self.name

    def made(self, params, **more):
        return self.make(params, **there(self.options), **more)


def algorithms():
    for one in EVERY.values():
        if one.rule is None or one.sparse_only:
            continue
        matrices = not one.elementwise and not one.reduces
        shapes, vectors = (SMALL, SMALL_VECTORS) if matrices else (SHAPES, VECTORS)
        shapes = (*shapes, *vectors) if one.takes_vectors else shapes
        yield Subject(one.name, one.ours, one.promised, shapes=shapes, tolerance=0.1 if one.multiplies or matrices else 0.01)


def of_units():
    """Rules that reduce over all dimensions but the first."""
    param = torch.nn.Parameter(torch.zeros(CONVOLUTIONS[0]))
    for one in EVERY.values():
        if one.rule is None or not one.reduces:
            continue
        try:
            variant = traced(one.rule, one.ours([param], **one.promised).param_groups[0]).variant(param)
        except ValueError:  # of matrices alone
            continue
        if isinstance(variant, Variant) and variant.order >> OUTER:
            yield Subject(f"{one.name}-convolutions", one.ours, one.promised, shapes=CONVOLUTIONS)
    yield Subject("Nero-free", compiledopt.Nero, {"lr": 0.05, "constraints": False}, shapes=[*SHAPES, *CONVOLUTIONS])
    yield Subject("AdaNorm-int8", compiledopt.AdaNorm, {"lr": 0.05, "state_dtype": "int8"}, tolerance=0.05)


def adamw(params, **options):
    return compiledopt.AdamW(params, **{"lr": 0.01, "weight_decay": 0.1, **options})


def stored():
    for name in STATES:
        yield Subject(f"AdamW-{name}", adamw, {"state_dtype": name})
    for name in ROUNDINGS:
        yield Subject(f"AdamW-{name}", adamw, {"rounding": name}, dtype=torch.bfloat16, tolerance=0.05)
        yield Subject(f"AdamW-int8-{name}", adamw, {"rounding": name, "state_dtype": "int8"}, torch.bfloat16, tolerance=0.05)
    yield Subject("CAME-int8", compiledopt.CAME, {"lr": 0.05, "state_dtype": "int8"}, tolerance=0.05)


def noisy(param, grad, momentum, *, lr=0.1, noise):
    momentum = 0.9 * momentum + grad
    return param - lr * momentum + 0.01 * noise.normal(), momentum


def surrounded():
    for name, value in AROUND.items():
        yield Subject(f"AdamW-{name}", adamw, {name: value})
    both = {"max_grad_norm": 0.5, "skip_nonfinite": True}
    yield Subject("AdamW-int8-clipped", adamw, {**both, "state_dtype": "int8"})
    yield Subject("LAMB-clipped", compiledopt.LAMB, {"lr": 0.05, "max_grad_norm": 0.5})
    rate = 0.1 * schedules.sequential([schedules.linear(0.1, 1.0, 2), schedules.cosine_annealing(4)], [2])
    yield Subject("AdamW-schedule", adamw, {"lr": rate})
    yield Subject("noise", lambda params, **given: compiledopt.define(noisy)(params, **given), {"lr": 0.1})


def combined(params, capturable=False, **flags):
    flags |= {"capturable": True} if capturable else {}
    matrices, others = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
    parts = compiledopt.Muon(matrices, lr=0.02, **flags), compiledopt.AdamW(others, lr=0.02, **flags)
    return compiledopt.Combined(*parts, max_grad_norm=1.0)


def lookahead(params, **flags):
    return compiledopt.Lookahead(compiledopt.AdamW(params, lr=0.02, **flags), k=2)


ALGORITHMS, STORED, SURROUNDED = list(algorithms()), list(stored()), list(surrounded())
SUBJECTS = [
    *ALGORITHMS,
    *of_units(),
    *STORED,
    *SURROUNDED,
    Subject("Combined", combined, tolerance=0.1),
    Subject("Lookahead", lookahead),
]


@pytest.fixture(autouse=True)
def rehearsed(monkeypatch):
    monkeypatch.setenv("COMPILEDOPT_TUNE", "0")
    if REHEARSED:
        stand_in(monkeypatch)


def test_every_option_is_tried():
    assert set(AROUND) == set(around.described())


def step(optimizer):
    """A step; and, unless it is compiled, somebody must have been told why not."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.step()
    return [str(one.message) for one in told]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_against_the_host(subject, capturable):
    reference = parameters(subject.dtype, subject.shapes)
    start, (mine,) = on_host(reference), models(1, subject.dtype, subject.shapes)
    expected = subject.make(reference, **copy.deepcopy(subject.options), foreach=False)
    optimizer = subject.made(mine, **({"capturable": True} if capturable else {}))
    told = []
    for number in range(subject.steps):
        for param, other in zip(reference, mine, strict=True):
            other.grad = param.grad = None
        set_gradients(mine, number, subject.dtype, skip=True)
        for param, other in zip(reference, mine, strict=True):
            param.grad = None if other.grad is None else other.grad.cpu().clone()
        expected.step()
        told += step(optimizer)
    effect = rms(on_host(reference) - start)
    assert effect > 1e-4 and rms(on_host(mine) - on_host(reference)) <= subject.tolerance * effect
    assert optimizer.executor == "compiled" or told or subject.tolerance == 0.1, "an executor that nobody was told of"


def filled(params, number):
    for param in params:
        if param.grad is None:
            param.grad = torch.empty_like(param)
    fill_gradients(params, number)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_replays_are_steps(subject):
    """A graph of one step, replayed, against steps of a twin; a rule whose steps differ refuses, in words."""
    reference, mine = models(2, subject.dtype, subject.shapes)
    expected, optimizer = (subject.made(params, capturable=True) for params in (reference, mine))
    start = on_host(mine)
    for number in range(2):
        for one, params in ((expected, reference), (optimizer, mine)):
            filled(params, number)
            step(one)
    if REHEARSED and optimizer.executor != "compiled":
        pytest.skip("the stand-in for a graph records the library's own launches alone")
    before = on_host(mine)
    if any(optimizer.rule_of(group).every for group in optimizer.param_groups):
        with pytest.raises(RuntimeError, match="is not due at every step"):
            captured(optimizer.step)
        return
    graph = captured(optimizer.step)
    assert torch.equal(before, on_host(mine)), "a capture records and does nothing"
    for number in range(2, subject.steps + 1):
        for params in (reference, mine):
            filled(params, number)
        expected.step()
        graph.replay()
    effect = rms(on_host(reference) - start)
    assert effect > 1e-4 and rms(on_host(mine) - on_host(reference)) <= subject.tolerance * effect


# ---- what is more than a step ----


def test_evaluating():
    """Schedule-Free's average, and Lookahead's slow weights, where the parameters are."""
    for make in (lambda params, **flags: compiledopt.AdamWScheduleFree(params, lr=0.05, **flags), lookahead):
        reference, mine = models(2, shapes=SHAPES)
        expected, optimizer = make(reference, foreach=False), make(mine)
        for number in range(3):
            for one, params in ((expected, reference), (optimizer, mine)):
                set_gradients(params, number)
                step(one)
        trained = on_host(mine)
        with expected.evaluating(), optimizer.evaluating():
            assert not torch.equal(on_host(mine), trained)
            torch.testing.assert_close(on_host(mine), on_host(reference), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(on_host(mine), trained, rtol=1e-6, atol=1e-7)  # computed back, and rounded


def test_sharpness_aware():
    torch.manual_seed(0)
    reference = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    mine = copy.deepcopy(reference).to(DEVICE)
    x, y, found = torch.randn(16, 6), torch.randn(16, 1), []
    for model in (reference, mine):
        place = next(model.parameters()).device
        optimizer = compiledopt.SAM(compiledopt.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1)

        def closure(model=model, optimizer=optimizer, place=place):
            optimizer.zero_grad()
            loss = (model(x.to(place)) - y.to(place)).square().mean()
            loss.backward()
            return loss

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(4):
                optimizer.step(closure)
        found.append(on_host(model.parameters()))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_not_finite_is_left_out():
    (mine,) = models(1)
    optimizer = compiledopt.AdamW(mine, lr=0.01, skip_nonfinite=True, capturable=True)
    filled(mine, 0)
    optimizer.step()
    before = on_host(mine)
    mine[0].grad[3, 7] = torch.nan
    optimizer.step()
    assert torch.equal(before, on_host(mine))
    filled(mine, 1)
    optimizer.step()
    assert not torch.equal(before, on_host(mine)) and on_host(mine).isfinite().all()


@UNREHEARSED
def test_random_bits_are_the_hosts():
    """The same noise whatever the device: bit for bit where the arithmetic is."""

    def drawn(param, grad, *, lr=0.0, noise):
        return noise.normal() + 0.0 * param

    (mine,) = models(1)
    reference = parameters(shapes=[(40, 50), (301,)])
    for params in (reference, mine):
        for param in params:
            param.grad = torch.zeros_like(param)
        compiledopt.define(drawn)(params, seed=3).step()
    torch.testing.assert_close(on_host(mine), on_host(reference), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_goes_both_ways():
    """From the host to the device and back, with states in 8 bits."""
    reference = parameters(shapes=SHAPES)
    (mine,) = models(1, shapes=SHAPES)
    options = {"lr": 0.01, "state_dtype": "int8"}
    expected, optimizer = compiledopt.AdamW(reference, foreach=False, **options), compiledopt.AdamW(mine, **options)
    for number in range(4):
        set_gradients(mine, number)
        for param, other in zip(reference, mine, strict=True):
            param.grad = other.grad.cpu().clone()
        expected.step()
        step(optimizer)
        if number == 1:
            optimizer.load_state_dict(expected.state_dict())
        if number == 2:
            expected.load_state_dict(optimizer.state_dict())
    start = on_host(parameters(shapes=SHAPES))
    assert rms(on_host(mine) - on_host(reference)) <= 0.01 * rms(on_host(reference) - start)
