"""Values kept in other ways in the kernels of GPUs, in Triton's interpreter: test_triton.py runs it in a process of its own."""

import dataclasses
from array import array

import pytest
import torch
from helpers import Gradients, flat, rms
from interpreter import round_to_nearest
from simulated import capture

import compiledopt
from compiledopt import around
from compiledopt.around.loss_scale import Scaling
from compiledopt.backends import waves
from compiledopt.backends.triton import capturable as capturables
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import norm, proof, shaped, tables
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch
from compiledopt.backends.triton.stored import StoredBatch
from compiledopt.rules.program import BLOCKS
from compiledopt.rules.traced import traced
from compiledopt.step.owner import Owner
from compiledopt.step.plan import Plan

round_to_nearest()
# Rows of whole blocks, rows with a rest, too small, a vector; and rows of whole blocks off alignment.
SHAPES = [(64, 96), (9, 7, 75), (8, 8), (1030,)]
KEPT = {
    "bfloat16": (torch.bfloat16, {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 7}),
    "float16": (torch.float32, {"state_dtype": "float16"}),
    "compensated": (torch.bfloat16, {"rounding": "compensated"}),
    "split": (torch.bfloat16, {"rounding": "split", "state_dtype": {"exp_avg": "bfloat16_nearest"}}),
    "int8": (torch.float32, {"state_dtype": "int8"}),
    "int8 and split": (torch.bfloat16, {"state_dtype": "int8", "rounding": "split"}),
    "int8 and stochastic": (torch.bfloat16, {"state_dtype": "int8", "rounding": "stochastic"}),
    "int8 of float64": (torch.float64, {"state_dtype": "int8"}),
    "blocks of 256": (torch.float32, {"state_dtype": "dynamic8"}),
    "float8": (torch.float32, {"state_dtype": "float8_e4m3fn"}),
    "int4": (torch.float32, {"state_dtype": "int4"}),
    "int4 and split": (torch.bfloat16, {"state_dtype": "int4", "rounding": "split"}),
    "blocks of 32 and 256": (torch.float32, {"state_dtype": {"exp_avg": "int8", "exp_avg_sq": "float8_e4m3fn"}}),
    "blocks of 128 and 32": (torch.float32, {"state_dtype": {"exp_avg": "int4", "exp_avg_sq": "uint8"}}),
    "blocks of 256 and 128": (torch.float32, {"state_dtype": {"exp_avg": "dynamic8", "exp_avg_sq": "uint4"}}),
}


def model(dtype):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator) for shape in SHAPES]
    odd = torch.randn(1 + 64 * 70, generator=generator)[1:].view(70, 64)
    return [torch.nn.Parameter(one.to(dtype)) for one in (*params, odd)]


def grads_for(params, step, skip):
    Gradients(params[0].dtype, skip=skip).set(params, step)
    if not skip:
        params[0].grad[3, :40] = 0.0  # a block of zeros, and one that begins with some


def apart(a, b):
    """How many codes, or units of what is left of a float32, two tensors of integers are apart, around the end too."""
    found = (a.double() - b.double()).abs()
    return torch.minimum(found, 2 ** (8 * a.dtype.itemsize) - found)


DEFAULT = (("int8 and stochastic", False),)


@pytest.mark.parametrize(
    ("name", "capturable"),
    [
        pytest.param(name, capturable, marks=() if (name, capturable) in DEFAULT else pytest.mark.slow)
        for name in KEPT
        for capturable in (False, True)
    ],
)
def test_against_the_for_loop(name, capturable):
    """Codes are the same, or one off where the arithmetic differs in the last place: fused multiply-adds, and division on a
    GPU. Of random bits one such place is a unit of a half type."""
    dtype, kept = KEPT[name]
    reference, mine = model(dtype), model(dtype)
    start = flat(reference)
    expected = compiledopt.AdamW(reference, lr=0.01, weight_decay=0.1, foreach=False, **kept)
    flags = {"capturable": True} if capturable else {}
    optimizer = compiledopt.AdamW(mine, lr=0.01, weight_decay=0.1, compiled=True, **kept, **flags)
    for step in range(4):
        for one, params in ((expected, reference), (optimizer, mine)):
            grads_for(params, step, skip=step == 2)
            one.step()
            one.param_groups[0]["lr"] *= 0.9
    kinds = {type(batch) for batch in optimizer._plan.batches}
    assert kinds == {CapturableBatch if capturable else TritonBatch} and optimizer.executor == "compiled"
    effect = rms(flat(reference) - start)
    assert effect > 1e-3 and (flat(mine) - flat(reference)).abs().max() <= (2**-6 if dtype is torch.bfloat16 else 1e-3) * 4
    assert rms(flat(mine) - flat(reference)) <= 0.01 * effect
    for p, q in zip(reference, mine, strict=True):
        for state, value in expected.state[p].items():
            found = optimizer.state[q][state]
            assert found.dtype is value.dtype and found.shape == value.shape
            if not value.is_floating_point():
                off = apart(found, value)
                if value.dtype is torch.int16:  # the lower bits of a float32, which another code changes by many units
                    assert (off > 512).float().mean() <= 0.01
                else:
                    assert off.max() <= 1 and (off > 0).float().mean() <= 0.02


FAULTS = {
    "key": ("tl.load(lengths + tensor * 4 + 2)", "tl.load(lengths + 2)"),
    "place": ("tl.load(lengths + tensor * 4 + 2 + 1)", "tl.load(lengths + 3)"),
    "row": ("x0 = b // many * row + at", "x0 = b * 32 + across"),
    "scale": ("tl.max(size0, 1, keep_dims=True)", "tl.max(size0)"),
    "ragged end": ("(row == xnumel) & (xnumel % 32 == 0)", "(row == xnumel)"),
    "other scale": ("late_n0 = largest0", "late_n0 = largest1"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_what_a_kernel_proves(fault):
    dtype, kept = KEPT["int8 and stochastic"]
    param = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
    param.grad = torch.ones_like(param)
    optimizer = compiledopt.AdamW([param], foreach=False, **kept)
    optimizer.step()
    entry = optimizer._plan.batches[0].entries[0]
    kernel = triton.kernel(entry.runs.program, entry.dtypes())
    if fault is not None:
        assert kernel.source.count(FAULTS[fault][0]) == 1
        kernel = dataclasses.replace(kernel, source=kernel.source.replace(*FAULTS[fault]))
    wrong = proof.difference(kernel, entry.runs.program, entry.dtypes(), torch.device("cpu"), (1024, 4))
    assert wrong is None if fault is None else "not what the for-loop computes" in wrong


@pytest.mark.parametrize("name", [pytest.param("int8 and stochastic", marks=pytest.mark.slow), "split"])
def test_replays(name, monkeypatch):
    """Random bits follow the step on the device, and codes are written where the graph found them."""
    dtype, kept = KEPT[name]
    reference, mine = model(dtype), model(dtype)
    optimizers = [compiledopt.AdamW(params, lr=0.01, compiled=True, capturable=True, **kept) for params in (reference, mine)]
    for optimizer, params in zip(optimizers, (reference, mine), strict=True):
        grads_for(params, 0, skip=False)
        optimizer.step()
    for _ in range(2):
        optimizers[0].step()
    with capture(monkeypatch) as graph:
        optimizers[1].step()
    assert not torch.equal(flat(mine), flat(reference))
    for _ in range(2):
        graph.replay()
    for p, q in zip(reference, mine, strict=True):
        assert torch.equal(p, q)
        for state, value in optimizers[0].state[p].items():
            assert torch.equal(optimizers[1].state[q][state], value)


REDUCING = {
    "int8": {"state_dtype": "int8"},
    "int4 and uint8": {"state_dtype": {"exp_avg": "int4", "exp_avg_sq": "uint8"}},
    "float8 and split": {"state_dtype": "float8_e4m3fn", "rounding": "split"},
}


@pytest.mark.parametrize(
    ("name", "capturable"),
    [
        pytest.param(name, capturable, marks=() if (name, capturable) == ("int8", True) else pytest.mark.slow)
        for name in REDUCING
        for capturable in (False, True)
    ],
)
def test_rules_that_reduce(name, capturable, monkeypatch):
    """LAMB, whose states are decoded before its passes and encoded after them: the codes are the for-loop's, in one wave and in
    several, and the launches those that explain tells of."""
    launched, launch = [], tables.launch
    for module in (tables, shaped, capturables, norm):
        monkeypatch.setattr(module, "launch", lambda *given: launched.append(1) or launch(*given))
    monkeypatch.setattr(waves, "WAVE", waves.WAVE if capturable else 15_000)
    dtype = torch.bfloat16 if "split" in name else torch.float32
    params, shapes = [], [(20, 256), (9, 525)]
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        params.append([torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes])
    reference, mine = params
    start, more = flat(reference), {**REDUCING[name], "weight_decay": 0.1, "max_grad_norm": 1.0}
    expected = compiledopt.LAMB(reference, lr=0.05, foreach=False, **more)
    optimizer = compiledopt.LAMB(mine, lr=0.05, compiled=True, capturable=capturable, **more)
    for step in range(3):
        for one, some in ((expected, reference), (optimizer, mine)):
            Gradients(dtype, skip=step == 1).set(some, step)
            launched.clear()
            one.step()
    assert {type(batch) for batch in optimizer._plan.batches} == {StoredBatch}
    assert len(launched) == optimizer._explanation().launches_per_step
    assert [len(batch.waves) for batch in optimizer._plan.batches] == [2 - capturable]
    effect = rms(flat(reference) - start)
    assert effect > 1e-2 and rms(flat(mine) - flat(reference)) <= 0.01 * effect
    for p, q in zip(reference, mine, strict=True):
        assert list(expected.state[p]) == list(optimizer.state[q])
        for state, value in expected.state[p].items():
            found = optimizer.state[q][state]
            assert found.dtype is value.dtype and found.shape == value.shape
            if not value.is_floating_point() and value.dtype is not torch.int16:
                assert (found != value).float().mean() <= 0.02


@compiledopt.define(scalars=("second",))
def Layerwise(param, grad, momentum, second, *, lr=0.05):
    second = 0.9 * second + 0.1 * (grad * grad).sum()
    momentum = 0.9 * momentum + grad / (second.sqrt() + 1e-8)
    return param - lr * momentum, momentum, second


def test_a_verdict_on_a_rule_that_reduces():
    """GradScaler's numbers go into the rule on values and into what encodes them: where it is left out, each code stays."""
    params = []
    for _ in range(2):
        params.append([torch.nn.Parameter(torch.randn(9, 500, generator=torch.Generator().manual_seed(0)))])
    (reference,), (mine,) = params
    expected = Layerwise(params[0], foreach=False, state_dtype="int8")
    optimizer = Layerwise(params[1], compiled=True, capturable=True, state_dtype="int8")
    assert optimizer._step_supports_amp_scaling
    scaling, plan = Scaling(), None
    for step, bad in enumerate((False, True, False)):
        Gradients().set(params[0], step)
        mine.grad = 4.0 * reference.grad
        mine.grad[3, 5] = torch.inf if bad else mine.grad[3, 5]
        scaling.set(torch.tensor(4.0), torch.tensor(float(bad)))
        if plan is None:
            plan = Plan(Owner("Layerwise", [optimizer.rule], optimizer.param_groups, optimizer.state, set(), set(), scaling))
        before = [mine.detach().clone(), *(value.clone() for value in optimizer.state[mine].values())]
        assert plan.run() and type(plan.batches[0]) is StoredBatch
        if bad:
            assert all(map(torch.equal, before, (mine.detach(), *optimizer.state[mine].values())))
        else:
            expected.step()
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    apart = [(optimizer.state[mine][name].double() - value).abs() for name, value in expected.state[reference].items()]
    assert all((one > 1).double().mean() < 0.01 for one in apart)


def noisy(param, grad, *, lr=0.1, noise):
    return param - lr * grad + 0.01 * noise.normal()


def shortened(param, grad, *, lr=0.1, noise):
    return param - lr * grad / (grad.norm() + 1.0) + 0.01 * noise.normal()


def test_noise_is_the_for_loops():
    """Of rules that are elementwise, and of those that reduce."""
    for rule in (noisy, shortened):
        reference, mine = model(torch.float32)[-3:], model(torch.float32)[-3:]
        start, made = flat(reference), compiledopt.define(rule)
        for optimizer, params in ((made(reference, foreach=False), reference), (made(mine, compiled=True), mine)):
            for step in range(2):
                grads_for(params, step, skip=False)
                optimizer.step()
        assert rms(flat(reference) - start) > 0.01 and (flat(mine) - flat(reference)).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("row", [64, 300], ids=["whole", "ragged"])
def test_places_beyond_int32(row):
    """The last rows of a matrix of more than 2^31 elements, of which nothing else is there: pointers begin so far before them,
    those of the scales of its blocks too."""
    rows, gone = 80, 2**31 // row // 16 * 16 + 16
    param = torch.nn.Parameter(torch.zeros(rows, row))
    optimizer = compiledopt.AdamW([param], state_dtype="int8")
    group = optimizer.param_groups[0]
    known = traced(around.derived(optimizer.rule_of(group), group, param=param), group)
    dtypes = (torch.float32, torch.float32, *known.dtypes_of(param).values())
    kernel, found = triton.kernel(known.program, dtypes), []
    blocks = -(-row // kernel.block)
    for away in (0, gone):
        generator, values, pointers = torch.Generator().manual_seed(0), [], []
        for node, dtype in zip(known.program.tensors, dtypes, strict=True):
            width = blocks if node.axes == BLOCKS else row
            values.append((100 * torch.rand(rows * width, generator=generator)).to(dtype))
            pointers.append(values[-1].data_ptr() - dtype.itemsize * away * width)
        given, length = tables.Tables(kernel, param.device), (away + rows) * row
        extents = length, length if row % kernel.block == 0 else row, 0, 0
        given.update(*(array("q", each).tobytes() for each in (pointers, extents[: kernel.extents], (0,))))
        assert (away == 0 or away * row > 2**31) and away * blocks * kernel.block % given.block == 0
        given.blocks = given.blocks[away * blocks * kernel.block // given.block :]
        given.run([0.5] * kernel.columns)
        found.append(values)
    for near, far in zip(*found, strict=True):
        assert torch.equal(near, far)


def test_the_norm_of_what_lies_beyond_int32():
    """As above."""
    values, place = torch.arange(5000.0), torch.zeros(2, dtype=torch.float64)
    gone = 2**31 + norm.BLOCK
    squares = norm.Squares(norm._kernel(torch.float32, (), 1), values.device, 2, torch.float32)
    squares.update(array("q", (gone + 5000,)).tobytes())
    squares.blocks = squares.blocks[gone // norm.BLOCK :]
    squares.run(torch.tensor([0, values.data_ptr() - 4 * gone]), place, True, None, ())
    assert place[0] == pytest.approx(values.double().square().sum().item(), rel=1e-6)
