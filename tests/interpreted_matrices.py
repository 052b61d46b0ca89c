"""Muon and its relatives on CPU tensors by the executors of GPUs, under Triton's interpreter: test_triton.py runs it in a
process of its own."""

import copy
import itertools
import math

import pytest
import torch
from catalog import CATALOG, PUBLISHED
from helpers import Gradients, flat, multiplying_in, parameters, rms, run, same, snapshot
from interpreter import round_to_nearest
from simulated import capture, unwatched
from torch.utils._python_dispatch import TorchDispatchMode

import compiledopt
from compiledopt import schedules
from compiledopt.algorithms import muon
from compiledopt.backends import waves
from compiledopt.backends.triton import capturable as capturables
from compiledopt.backends.triton import norm, readiness, shaped, symmetric, tables
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch
from compiledopt.backends.triton.matrices import DeviceMatrices
from compiledopt.backends.triton.stored import StoredBatch

round_to_nearest()
# Wide, tall and square ones, several of a shape, one row, none at all; and of several tiles.
SHAPES = [(6, 40), (40, 6), (6, 40), (16, 16), (1, 9), (0, 5)]
LARGE = [(9, 1), (40, 6), (6, 40), (70, 300)]
NAMES = [name for name, one in {**CATALOG, **PUBLISHED}.items() if one.takes("ns_steps")]


def check(name, dtype, capturable, steps=3, shapes=SHAPES, turned=False, tolerance=None, **more):
    models = [parameters(dtype, shapes) for _ in range(2)]
    if turned:
        models = [[torch.nn.Parameter(param.detach().mT.contiguous().mT) for param in one] for one in models]
    start, made = flat(models[0]), getattr(compiledopt, name)
    expected = made(models[0], lr=0.05, foreach=False, **more)
    optimizer = made(models[1], lr=0.05, compiled=True, capturable=capturable, **more)
    for step in range(steps):
        for one, params in ((expected, models[0]), (optimizer, models[1])):
            run(one, params, Gradients(dtype, skip=True), range(step, step + 1))
    batches = optimizer._plan.batches
    assert optimizer.executor == "compiled" and all(type(batch) is DeviceMatrices for batch in batches)
    kind = CapturableBatch if capturable or "skip_nonfinite" in more else TritonBatch
    assert all(type(part) is kind for batch in batches for wave in batch.waves for part in (wave.before, wave.after))
    effect, difference = rms(flat(models[0]) - start), rms(flat(models[1]) - flat(models[0]))
    assert effect > 1e-3 and difference <= (tolerance or {torch.bfloat16: 0.02}.get(dtype, 1e-4)) * effect
    for p, q in zip(*models, strict=True):
        assert list(expected.state[p]) == list(optimizer.state[q])
        for state, value in expected.state[p].items():
            near = {"rtol": 3e-2, "atol": 3e-3} if dtype is torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(optimizer.state[q][state], value, **near)
    return optimizer, models[1]


SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
DEFAULT = (("Muon", SINGLE, False, SINGLE), ("NorMuon", SINGLE, True, HALF))


@pytest.mark.parametrize(
    ("name", "dtype", "capturable", "products"),
    [
        pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.slow)
        for case in itertools.product(NAMES, (SINGLE, HALF, DOUBLE), (False, True), (SINGLE, HALF))
    ],
)
def test_against_the_for_loop(name, dtype, capturable, products, monkeypatch):
    """Absent gradients change the stacks at each step. Where products are in bfloat16, a norm whose sum ends in another last
    place is rounded to its neighbour, 0.4% away, which the iteration magnifies; in float32 nothing hides."""
    multiplying_in(monkeypatch, products)
    shapes = SHAPES if (name, dtype, capturable, products) in DEFAULT else [*SHAPES, *LARGE]
    check(name, dtype, capturable, shapes=shapes, tolerance=0.04 if products is HALF else None)


def test_against_its_definition(monkeypatch):
    """In float64, without any of our code; products in float32."""
    multiplying_in(monkeypatch, torch.float32)
    params = parameters(shapes=[(6, 40), (40, 6), (6, 40), (16, 16)])
    start = flat(params)
    wanted, buffers = [p.detach().double() for p in params], [torch.zeros_like(p, dtype=torch.float64) for p in params]
    optimizer = compiledopt.Muon(params, lr=0.02, momentum=0.9, weight_decay=0.3, compiled=True)
    for step in range(3):
        run(optimizer, params, Gradients(), [step])
        for i, param in enumerate(params):
            buffers[i] = 0.9 * buffers[i] + 0.1 * param.grad.double()
            x = 0.1 * param.grad.double() + 0.9 * buffers[i]
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
            wanted[i] = wanted[i] * (1 - 0.02 * 0.3) - 0.02 * max(1, x.shape[0] / x.shape[1]) ** 0.5 * x
    exact = torch.cat([one.flatten() for one in wanted])
    assert rms(exact - start) > 0.01 and rms(flat(params) - exact) <= 1e-4 * rms(exact - start)


@pytest.mark.slow
def test_column_after_column(monkeypatch):
    multiplying_in(monkeypatch, torch.float32)
    check("NorMuon", torch.float32, False, shapes=[(6, 40), (40, 6), (6, 40)], turned=True)


@pytest.mark.parametrize("capturable", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_what_stands_around(capturable, monkeypatch):
    """All of it on the device: the norm, what keeps to the gradient's signs, a step that is left out."""
    multiplying_in(monkeypatch, torch.float32)
    more = {"max_grad_norm": 0.5, "cautious": True, "skip_nonfinite": True}
    check("Muon", torch.float32, capturable, shapes=SHAPES[:4], **more)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


KEPT = {
    "int8": {"state_dtype": "int8"},
    "int4 and uint8": {"state_dtype": {"momentum_buffer": "int4", "v_buffer": "uint8"}},
    "dynamic8": {"state_dtype": "dynamic8"},
    "int8 and stochastic": {"state_dtype": "int8", "rounding": "stochastic"},
    "bits alone": {"state_dtype": "bfloat16", "rounding": "stochastic"},
}


@pytest.mark.parametrize(
    ("name", "kept", "capturable"),
    [
        ("Muon", "int8 and stochastic", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("Muon", "dynamic8", False),
                ("Muon", "bits alone", True),
                ("AdaMuon", "int8", False),
                ("AdaMuon", "int4 and uint8", True),
                ("NorMuon", "int8 and stochastic", False),
                ("NorMuon", "bits alone", False),
            )
        ),
    ],
)
def test_states_that_are_kept_in_other_ways(name, kept, capturable, monkeypatch):
    """Codes and random bits are those of the for-loop, but for one in some where products are added up in another order; in
    several waves, by the launches that explain tells of."""
    multiplying_in(monkeypatch, torch.float32)
    launched, launch = [], tables.launch
    for module in (tables, shaped, capturables, norm):
        monkeypatch.setattr(module, "launch", lambda *given: launched.append(1) or launch(*given))
    monkeypatch.setattr(waves, "WAVE", waves.WAVE if capturable else 12_000)
    dtype = HALF if "rounding" in KEPT[kept] else SINGLE
    more = {**KEPT[kept], "min_quantized_numel": 0, "lr": 0.05}
    if isinstance(more["state_dtype"], dict) and name != "AdaMuon":
        more["state_dtype"] = {"momentum_buffer": "int4"}
    models = [parameters(dtype, [(20, 256), (9, 525), (20, 256)]) for _ in range(2)]
    start, made = flat(models[0]), getattr(compiledopt, name)
    expected = made(models[0], foreach=False, **more)
    optimizer = made(models[1], compiled=True, capturable=capturable, **more)
    for step in range(3):
        for one, params in ((expected, models[0]), (optimizer, models[1])):
            run(one, params, Gradients(dtype, skip=step == 1), range(step, step + 1))
    launched.clear()
    with monkeypatch.context() as patch, Operations() as operations:
        unwatched(patch)
        optimizer.step()
    expected.step()
    (batch,) = optimizer._plan.batches
    assert type(batch) is (DeviceMatrices if kept == "bits alone" else StoredBatch) and optimizer.executor == "compiled"
    assert len(batch.waves) == (1 if capturable else 2 if name != "AdaMuon" or kept == "bits alone" else 3)
    products = [one for one in operations.found if one.split("::")[1].startswith(("bmm", "baddbmm"))]
    told = optimizer._explanation()
    assert told.launches_per_step - len(launched) - len(products) == len(products) // 3, "and as many copies as there are bmm"
    effect = rms(flat(models[0]) - start)
    assert effect > 1e-3 and rms(flat(models[1]) - flat(models[0])) <= (0.05 if dtype is HALF else 0.01) * effect
    for p, q in zip(*models, strict=True):
        assert list(expected.state[p]) == list(optimizer.state[q])
        for state, value in expected.state[p].items():
            found = optimizer.state[q][state]
            assert found.dtype is value.dtype and found.shape == value.shape
            assert value.is_floating_point() or (found != value).float().mean() <= 0.02


def test_waves_are_as_one(monkeypatch):
    """The same bits, whatever is in memory together, and what is reserved does not grow with the model."""
    multiplying_in(monkeypatch, torch.float32)
    shapes, found = [(6, 40)] * 5 + [(16, 16)] * 3 + [(20, 30)], []
    for wave in (waves.WAVE, 600):
        monkeypatch.setattr(waves, "WAVE", wave)
        params = parameters(shapes=shapes)
        optimizer = compiledopt.Muon(params, lr=0.05, compiled=True, max_grad_norm=0.5)
        run(optimizer, params, Gradients(skip=True), range(3))
        (batch,) = optimizer._plan.batches
        found.append((flat(params), len(batch.waves), batch.memory[0].numel(), optimizer.grad_norm))
    (one, count, large, norm_of_one), (many, several, small, norm_of_many) = found
    assert torch.equal(one, many) and count == 1 and several == 5 and small < large / 2
    torch.testing.assert_close(norm_of_one, norm_of_many, rtol=1e-12, atol=0)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_steady_step_asks_for_no_memory(capturable, monkeypatch):
    """What it calls of torch is products and copies into what is there; and the launches are those that explain tells of."""
    launched, launch = [], tables.launch
    for module in (tables, shaped, capturables, norm):
        monkeypatch.setattr(module, "launch", lambda *given: launched.append(1) or launch(*given))
    params = parameters(shapes=[(6, 40), (40, 6), (6, 40)])
    optimizer = compiledopt.Muon(params, lr=0.05, compiled=True, capturable=capturable)
    run(optimizer, params, Gradients(), range(2))
    optimizer.step()
    launched.clear()
    optimizer.step()
    assert len(launched) == 4 + 2 * capturable
    with monkeypatch.context() as patch:
        unwatched(patch)
        for module in (tables, shaped, capturables, norm):  # the interpreter asks for memory of its own
            patch.setattr(module, "launch", lambda *_: None)
        with Operations() as operations:
            optimizer.step()
    products = [name for name in operations.found if "copy_" not in name]
    assert set(products) == {"aten::bmm.out", "aten::baddbmm.out"} and len(products) == 2 * 15
    told = optimizer._explanation()
    assert told.launches_per_step == len(launched) + 2 * 20 and told.kernels == 4
    assert told.parts[0].products == [
        "newton_schulz on a stack of 2 of 6 × 40, by calls of torch: 5 bmm, 10 baddbmm, 5 copy",
        "newton_schulz on 1 matrix of 40 × 6, by calls of torch: 5 bmm, 10 baddbmm, 5 copy",
    ]


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_replays(name, monkeypatch):
    """Gradients made inside of the capture, and a rate that changes between replays; steps between, with other stacks."""
    multiplying_in(monkeypatch, torch.float32)
    shapes = [(6, 40), (40, 6), (6, 40)]
    reference, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    made = getattr(compiledopt, name)
    expected, optimizer = made(reference, lr=0.05, foreach=False), made(mine, lr=0.05, compiled=True, capturable=True)
    for one, params in ((expected, reference), (optimizer, mine)):
        run(one, params, Gradients(), [0])
    before = flat(mine)
    with capture(monkeypatch) as graph:
        for param in mine:
            param.grad = torch.empty_like(param)
        optimizer.step()
    kept = [param.grad for param in mine]
    assert torch.equal(before, flat(mine)), "a capture records and does nothing"
    for step in range(1, 5):
        expected.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.05 / step
        Gradients().set(reference, step)
        reference[0].grad = None if step == 2 else reference[0].grad
        expected.step()
        for param, other, grad in zip(mine, reference, kept, strict=True):
            param.grad = None if other.grad is None else grad.copy_(other.grad)
        if step == 2:
            optimizer.step()
        else:
            optimizer.refresh()
            graph.replay()
    effect = rms(flat(reference) - before)
    assert effect > 1e-3 and rms(flat(mine) - flat(reference)) <= 1e-3 * effect


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [("Muon", 6), ("LAMB", 5)])
def test_replays_of_what_is_kept_in_other_ways(name, kernels, monkeypatch):
    """Random bits follow the step on the device, and codes are written where the graph found them; after a checkpoint too."""
    multiplying_in(monkeypatch, torch.float32)
    found = []
    for replayed in (False, True):
        params = parameters(HALF, [(9, 300)])
        options = {"lr": 0.05, "compiled": True, "capturable": True, **KEPT["int8 and stochastic"]}
        optimizer = getattr(compiledopt, name)(params, **options, min_quantized_numel=0)
        run(optimizer, params, Gradients(HALF), range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = getattr(compiledopt, name)(params, **options, min_quantized_numel=0)
        optimizer.load_state_dict(saved)
        optimizer.step()
        with monkeypatch.context() as patch:
            if replayed:
                with capture(patch) as graph:
                    optimizer.step()
        for _ in range(2):
            graph.replay() if replayed else optimizer.step()
        found.append([[param, *optimizer.state[param].values()] for param in params])
    assert same(*found) and optimizer.executor == "compiled" and optimizer._explanation().kernels == kernels


def test_states_checkpoints_and_copies(monkeypatch):
    """States have nothing of the stacks; what is put in the place of one is read; a copy goes on by itself."""
    multiplying_in(monkeypatch, torch.float32)
    shapes = [(6, 40), (6, 40)]
    reference, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    expected, optimizer = compiledopt.Muon(reference, foreach=False), compiledopt.Muon(mine, compiled=True)
    for one, params in ((expected, reference), (optimizer, mine)):
        run(one, params, Gradients(), range(2))
        one.state[params[0]]["momentum_buffer"] = torch.ones_like(params[0])
        run(one, params, Gradients(), range(2, 3))
    assert [list(state) for state in optimizer.state.values()] == [["momentum_buffer"]] * 2
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)
    twin, again = copy.deepcopy((mine, optimizer))
    other = compiledopt.Muon(copy.deepcopy(mine), compiled=True)
    other.load_state_dict(optimizer.state_dict())
    for one, params in ((optimizer, mine), (again, twin), (other, other.param_groups[0]["params"])):
        run(one, params, Gradients(), range(3, 4))
    assert torch.equal(flat(mine), flat(twin)) and torch.equal(flat(mine), flat(other.param_groups[0]["params"]))


def test_a_bad_gradient_changes_nothing():
    params = parameters(shapes=[(6, 40), (40, 6)])
    optimizer = compiledopt.Muon(params, compiled=True)
    run(optimizer, params, Gradients(), range(2))
    params[1].grad = torch.zeros(40, 6).to_sparse()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert same(before, snapshot(optimizer))


@pytest.mark.slow
def test_with_others_in_one_optimizer(monkeypatch):
    """Combined with AdamW, one norm over all; a schedule; parameters of two dtypes; another default device."""
    multiplying_in(monkeypatch, torch.float32)
    models = [[*parameters(shapes=[(6, 40), (5, 7)]), *parameters(torch.bfloat16, [(6, 40)])] for _ in range(2)]
    others = [parameters(shapes=[(9,)]) for _ in range(2)]
    start, optimizers = flat(models[0]), []
    for some, rest, flags in zip(models, others, ({"foreach": False}, {"compiled": True, "capturable": True}), strict=True):
        rate = 0.1 * schedules.linear(0.5, 1.0, 4)
        parts = compiledopt.Muon(some, lr=rate, **flags), compiledopt.AdamW(rest, lr=0.1, **flags)
        optimizers.append(compiledopt.Combined(*parts, max_grad_norm=0.5))
    try:
        torch.set_default_device("meta")
        for step in range(3):
            for optimizer, some, rest in zip(optimizers, models, others, strict=True):
                for param in (*some, *rest):
                    torch.manual_seed(step)
                    param.grad = torch.randn(param.shape, device="cpu").to(param.dtype)
                optimizer.step()
    finally:
        torch.set_default_device(None)
    assert len(optimizers[1]._plan.batches) == 3 and optimizers[1].executor == "compiled"
    effect = rms(flat(models[0]) - start)
    assert effect > 0.01 and rms(flat(models[1]) - flat(models[0])) <= 0.02 * effect
    torch.testing.assert_close(flat(others[1]), flat(others[0]), rtol=1e-5, atol=1e-6)


def twice(param, grad, *, lr=0.1):
    given = muon.newton_schulz(grad, (1.0, 1.0, 1.0), 1)
    return param - lr * muon.newton_schulz(given, (1.0, 1.0, 1.0), 1)


def test_what_has_no_program():
    """Two functions of whole matrices in one rule; noise beside one; a foreach that was asked for."""
    params = parameters(shapes=[(6, 40)])
    Gradients().set(params, 0)
    optimizer = compiledopt.define(elementwise=False)(twice)(params)
    optimizer.step()
    assert optimizer.executor == "foreach"
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: twice is declared with elementwise=False"):
        compiledopt.define(elementwise=False)(twice)(params, compiled=True).step()
    asked = compiledopt.Muon(params, foreach=True)
    asked.step()
    assert asked.executor == "foreach"


# ---- products whose result is symmetric ----


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    ("size", "depth", "turned"), [(5, 40, False), (40, 33, True), pytest.param(150, 9, False, marks=pytest.mark.slow)]
)
def test_symmetric_products_by_their_definition(size, depth, turned, adds):
    """Every tile, in all orders of groups, of every matrix; both halves alike bit for bit."""
    depth = size if adds else depth
    shape = (3, depth, size) if turned else (3, size, depth)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x = x.mT if turned else x
    if adds:
        x = (x + x.mT) / 2
    out = torch.full((3, size, size), math.nan, dtype=torch.bfloat16)
    symmetric.Product((16, 16, 4, 2)).write(x, x if adds else None, -4.5, 0.25, out)
    wanted = 0.25 * x.double() @ x.double().mT - (4.5 * x.double() if adds else 0)
    assert wanted.abs().median() > 0.1 and torch.equal(out, out.mT)
    torch.testing.assert_close(out.double(), wanted, rtol=2**-8, atol=2**-12)


def with_symmetric_products(monkeypatch, rows="1"):
    multiplying_in(monkeypatch, torch.bfloat16)
    monkeypatch.setenv("COMPILEDOPT_SYMMETRIC_PRODUCTS", rows)
    monkeypatch.setattr(symmetric, "_decided", {})
    monkeypatch.setattr(symmetric, "CANDIDATES", (symmetric.CUBLAS, (16, 16, 4, 2)))
    monkeypatch.setattr(readiness, "_ready", {})
    written = []
    write = symmetric.Product.write
    monkeypatch.setattr(
        symmetric.Product, "write", lambda self, x, *rest: (written.append(tuple(x.shape)), write(self, x, *rest))[1]
    )
    return written


@pytest.mark.parametrize(
    ("name", "more"), [("Muon", {}), pytest.param("NorMuon", {"state_dtype": "int8"}, marks=pytest.mark.slow)]
)
def test_rules_with_symmetric_products(name, more, monkeypatch):
    """From so many rows on as the environment says; explain tells of it."""
    written = with_symmetric_products(monkeypatch, rows="6")
    shapes, given = [(6, 40), (40, 6), (1, 9)], {"steps": 2, "tolerance": 0.04, **more}
    optimizer, _ = check(name, torch.float32, capturable=False, shapes=shapes, **given)
    assert {shape[1:] for shape in written} == {(6, 40), (6, 6)}
    told = "newton_schulz on 1 matrix of {}, by calls of torch: {}"
    assert told.format("40 × 6", "5 copy, 5 baddbmm, 10 by a kernel for symmetric results") in optimizer.explain()
    assert told.format("1 × 9", "5 bmm, 10 baddbmm, 5 copy") in optimizer.explain()


def test_a_symmetric_product_that_is_wrong_is_left_to_cublas(monkeypatch):
    with_symmetric_products(monkeypatch)
    monkeypatch.setattr(symmetric.Product, "write", lambda self, x, total, beta, alpha, out: out.fill_(1.0))
    monkeypatch.setattr(symmetric, "remembered", lambda of, device, find: find())
    with pytest.warns(
        UserWarning, match=r"leaves symmetric products of 6 × (40|6) matrices to cuBLAS: .* it does not compute what it"
    ):
        optimizer, _ = check("Muon", torch.float32, capturable=False, shapes=SHAPES[:1], tolerance=0.04)
    assert "by a kernel for symmetric" not in optimizer.explain()


def test_symmetric_products_are_timed_alone_only(monkeypatch):
    """Replicas must compute the same."""
    monkeypatch.setattr(symmetric, "is_capturing", lambda device: False)
    place, half = torch.device("cuda"), torch.bfloat16
    assert symmetric.is_possible(place, half) and not symmetric.is_possible(place, torch.float32)
    assert not symmetric.is_possible(torch.device("cpu"), half)
    with monkeypatch.context() as within:
        within.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert not symmetric.is_possible(place, half)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert not symmetric.is_possible(place, half)
    monkeypatch.setenv("COMPILEDOPT_SYMMETRIC_PRODUCTS", "4096")
    assert symmetric.is_possible(place, half)
    monkeypatch.setenv("COMPILEDOPT_SYMMETRIC_PRODUCTS", "yes")
    with pytest.raises(ValueError, match=r"COMPILEDOPT_SYMMETRIC_PRODUCTS must be a number of rows, .* got 'yes'"):
        symmetric._least_rows()
