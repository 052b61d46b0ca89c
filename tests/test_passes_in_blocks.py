"""Rules that reduce, over their own parameter or over all, whose states are kept in blocks: compiled, against the same rules
called on tensors in float64, by codecs that are torch's operators."""

import warnings

import pytest
import torch
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot
from test_passes import Lamb

import compiledopt
from compiledopt.backends.cpp.matrices import HostMatrices
from compiledopt.backends.gathered import GatheredBatch

# Rows that are whole blocks and that are not, many to a tile and several tiles long, one column, convolutions.
SHAPES = [(64, 128), (67, 75), (3, 5001), (5000, 1), (12, 8, 7, 9), (70, 1000), (9,)]
ALL = {"min_quantized_numel": 0}
ROW_AND_COLUMN = [shape for shape in SHAPES if len(shape) > 1]


@compiledopt.define
def Centered(param, grad, exp_avg, largest, *, lr=0.1):
    """Rows, columns and all of a state that is in blocks; extremes, and a second state."""
    exp_avg = exp_avg.lerp(grad - grad.mean(-1, keepdim=True), 0.1)
    largest = torch.maximum(0.9 * largest, exp_avg.abs())
    rows, columns = largest.amax(-1, keepdim=True), exp_avg.mean(-2, keepdim=True)
    return param - lr * (exp_avg + columns) / (rows + exp_avg.norm() / 100 + 1e-8), exp_avg, largest


RULES = [(Lamb, SHAPES), (Centered, ROW_AND_COLUMN)]
MIXED = {"exp_avg": "int8", "exp_avg_sq": "dynamic8"}


def trained(kind, dtype, shapes, steps=6, start=None, **options):
    params = copies(start or parameters(torch.float32, shapes), dtype)
    optimizer = kind(params, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if options.get("compiled") else "ignore")
        run(optimizer, params, Gradients(torch.float32), range(steps))
    return optimizer, params


def beside_float64(kind, shapes, **options):
    """(ours, the oracle, the same with states in float32), parameters after some steps."""
    mine, params = trained(kind, torch.float32, shapes, compiled=True, **options)
    oracle, expected = trained(kind, torch.float64, shapes, foreach=False, **options)
    assert mine.executor == "compiled" and oracle.executor == "for-loop"
    plain = {name: value for name, value in options.items() if name not in ("state_dtype", "min_quantized_numel")}
    return mine, oracle, params, expected, trained(kind, torch.float64, shapes, foreach=False, **plain)[1]


@pytest.mark.parametrize(
    ("kind", "shapes", "kept"),
    [
        (Lamb, SHAPES, "int8"),
        (Centered, ROW_AND_COLUMN, "int8"),
        *(
            pytest.param(*rule, kept, marks=pytest.mark.slow)
            for rule in RULES
            for kept in ("int4", "dynamic8", "float8_e4m3fn")
        ),
        pytest.param(Lamb, SHAPES, MIXED, marks=pytest.mark.slow),
    ],
)
def test_error_against_the_oracle(kind, shapes, kept):
    """A hundredth of what the codes change, but for the few elements where a value on an edge took the code beside it."""
    mine, oracle, params, expected, plain = beside_float64(kind, shapes, state_dtype=kept, **ALL)
    effect, error = rms(flat(expected) - flat(plain)), flat(params) - flat(expected)
    assert effect > 1e-4 and error.abs().kthvalue(int(0.99 * len(error))).values <= 0.01 * effect
    assert rms(error) <= 0.05 * effect
    for ours, theirs in zip(params, expected, strict=True):
        for name, value in mine.state[ours].items():
            other = oracle.state[theirs][name]
            assert value.shape == other.shape
            if name != "step":  # on an edge the next code may be as near, and the scale of a block's largest follows it
                apart = (value.double() - other.double()).abs() > 1e-5 * other.double().abs()
                assert apart.double().mean() < 0.01, name


@pytest.mark.parametrize(("kind", "shapes"), [(Lamb, [(600, 1000), (3, 70_001), (300_001, 2), (40, 50)])])
def test_results_do_not_depend_on_threads(kind, shapes):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(snapshot(trained(kind, torch.float32, shapes, 3, compiled=True, state_dtype="int8", **ALL)[0]))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_one_call_says_what_it_moves():
    optimizer, _ = trained(compiledopt.LAMB, torch.float32, [(64, 128), (70, 1000)], compiled=True, state_dtype="int8")
    text = optimizer.explain()
    assert "1 launch per step" in text and "in 3 passes" in text
    assert "per element: 10.25 bytes read, 6.25 written" in text


def test_what_is_kept_of_rows_and_columns_stays():
    """CAME's factors have no blocks; its momentum has."""
    optimizer, params = trained(
        compiledopt.CAME, torch.float32, [(64, 128), (70, 1000)], compiled=True, state_dtype="int8", lr=0.01
    )
    dtypes = {name: value.dtype for name, value in optimizer.state[params[0]].items()}
    assert dtypes["exp_avg"] is torch.int8 and dtypes["exp_avg_sq_row"] is torch.float32


def test_a_step_that_a_scaler_leaves_out_keeps_its_codes():
    optimizer, params = trained(compiledopt.LAMB, torch.float32, [(67, 75), (70, 1000)], compiled=True, state_dtype="int8")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True):
        before = snapshot(optimizer)
        scaler.scale(sum((param * param).sum() for param in params)).backward()
        if bad:
            params[0].grad[3, 7] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        after = snapshot(optimizer)
        assert same([(param, state) for param, _, state in before], [(param, state) for param, _, state in after]) is bad
        optimizer.zero_grad()


def test_what_does_not_lie_in_rows_is_said():
    params = parameters(shapes=[(12, 8, 7, 9)])
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    optimizer = compiledopt.LAMB(params, state_dtype="int8")
    with pytest.warns(UserWarning, match="lamb reduces, its states are in blocks of a row, and a parameter does not lie"):
        run(optimizer, params, Gradients(), range(2))
    assert optimizer.executor == "foreach"


# ---- around products of matrices ----


@pytest.mark.parametrize(
    ("kind", "kept", "dtype"),
    [
        (compiledopt.Muon, {"state_dtype": "int8", "rounding": "stochastic"}, torch.bfloat16),
        pytest.param(
            compiledopt.AdaMuon,
            {"state_dtype": {"momentum_buffer": "int4", "v_buffer": "uint4"}},
            torch.float32,
            marks=pytest.mark.slow,
        ),
        pytest.param(compiledopt.NorMuon, {"state_dtype": "dynamic8"}, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_kernels_around_products(kind, kept, dtype, monkeypatch):
    """Codes and random bits of the for-loop, from the passes before the products and after them, which both find the count of
    steps that they expect, whichever writes it; of a matrix that lies column
    after column from torch's operators. Products of stacks in bfloat16 are 0.4% from those of matrices, where a sum ends in
    another last place, and so are the states made of them."""
    shapes = [(64, 128), (67, 75), (64, 128), (3, 501)]
    start, made, models = flat(parameters(dtype, shapes)), [], [parameters(dtype, shapes) for _ in range(2)]
    for params, how in zip(models, ({"foreach": False}, {}), strict=True):
        made.append(kind(params, lr=0.05, **kept, **ALL, **how))
        run(made[-1], params, Gradients(dtype, skip=True), range(3))
        run(made[-1], params, Gradients(dtype), [3])
        with monkeypatch.context() as patch:
            patch.setattr(GatheredBatch, "_regroup", lambda _: pytest.fail("rows are made anew"))
            run(made[-1], params, Gradients(dtype), [4])
    assert [type(batch) for batch in made[1]._plan.batches] == [HostMatrices]
    effect = rms(flat(models[0]) - start)
    assert effect > 1e-3 and rms(flat(models[1]) - flat(models[0])) <= 0.01 * effect
    for ours, theirs in zip(models[1], models[0], strict=True):
        for name, value in made[0].state[theirs].items():
            assert value.is_floating_point() or (made[1].state[ours][name] != value).double().mean() < 0.05, name
    turned = [torch.nn.Parameter(torch.ones(64, 128).mT)]
    optimizer = kind(turned, **{**kept, **ALL})
    run(optimizer, turned, Gradients(), range(2))
    assert optimizer.executor == "foreach" and HostMatrices not in map(type, optimizer._plan.batches)


# ---- sums over all parameters ----

TOTALS = [(compiledopt.Prodigy, "d"), (compiledopt.DAdaptAdam, "d"), (compiledopt.DoG, "rbar")]


@pytest.mark.parametrize(
    ("kind", "name", "kept"),
    [
        (compiledopt.Prodigy, "d", "int8"),
        (compiledopt.DAdaptAdam, "d", "int8"),
        *(pytest.param(*one, kept, marks=pytest.mark.slow) for one in TOTALS for kept in ("int4", "dynamic8", "bfloat16")),
    ],
)
def test_totals_of_what_is_kept_in_blocks(kind, name, kept):
    """The same rate from every executor, near that of states in float32; and what no rule writes stays exact."""
    rates, found = {}, {}
    for label, how in {"compiled": {"compiled": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}.items():
        optimizer, params = trained(kind, torch.float32, SHAPES, 10, state_dtype=kept, **ALL, **how)
        rates[label], found[label] = float(optimizer.param_groups[0][name]), flat(params)
    plain, others = trained(kind, torch.float32, SHAPES, 10, compiled=True)
    effect = rms(flat(others) - found["compiled"])
    assert abs(rates["foreach"] / rates["compiled"] - 1) < 1e-4 and abs(rates["loop"] / rates["compiled"] - 1) < 1e-4
    assert abs(float(plain.param_groups[0][name]) / rates["compiled"] - 1) < (0.2 if kept == "int4" else 0.02)
    for label in ("foreach", "loop"):
        assert rms(found[label] - found["compiled"]) <= 0.01 * effect or kind is compiledopt.DoG or kept == "bfloat16"


def test_a_copy_of_the_start_is_not_rounded():
    """A distance from it would be its rounding, and no movement; by name it can be had."""
    params = parameters(shapes=[(64, 128)])
    optimizer = compiledopt.Prodigy(params, state_dtype="int8")
    start = params[0].detach().clone()
    run(optimizer, params, Gradients(), range(2))
    assert same(optimizer.state[params[0]]["p0"], start) and optimizer.state[params[0]]["s"].dtype is torch.int8
    assert "p0 not as int8: it is never written" in optimizer.explain()
    named = compiledopt.MADGRAD(parameters(shapes=[(64, 128)]), state_dtype={"x0": "int8"})
    run(named, named.param_groups[0]["params"], Gradients(), range(1))
    assert next(iter(named.state.values()))["x0"].dtype is torch.int8


def test_totals_do_not_depend_on_threads():
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        options = {"compiled": True, "state_dtype": "int8", **ALL}
        found.append(snapshot(trained(compiledopt.Prodigy, torch.float32, [(600, 333), (3, 70_001)], 3, **options)[0]))
    assert same(found[0], found[1]) and same(found[0], found[2])
