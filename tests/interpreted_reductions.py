"""Rules that reduce, on CPU tensors under Triton's interpreter: run by test_triton.py in a process of its own."""

import math
import re
from array import array
from dataclasses import replace

import pytest
import torch
from catalog import CATALOG, MENU, one_per_kind
from helpers import Gradients, flat, parameters, rms, run
from interpreter import round_to_nearest
from simulated import capture

import compiledopt
from compiledopt import around, total
from compiledopt.algorithms import muon
from compiledopt.backends.batch import Choice, Entry, operand_dtypes
from compiledopt.backends.gathered import settle_scalars
from compiledopt.backends.triton import batch as batches
from compiledopt.backends.triton import built, kernels, passes_ready, shaped, tables
from compiledopt.backends.triton import capturable as capturables
from compiledopt.backends.triton.capturable import is_on_device
from compiledopt.backends.triton.forms import FORMS, PLAIN
from compiledopt.backends.triton.reducing import TILES, part_of, reducing_kernel
from compiledopt.backends.triton.shaped import masks_of
from compiledopt.backends.triton.summed import SummedBatch
from compiledopt.explain_gpu import explain_gpu
from compiledopt.rules.program import ELEMENTS, ROWS
from compiledopt.rules.traced import traced

round_to_nearest()
HALF = torch.bfloat16
# Small matrices, a stack of them, one column, one row, vectors, none, 0-dim: tiles of every form, and ragged at their ends.
SMALL = [(40, 50), (301,), (3, 4, 3, 3), (7, 1), (0,), ()]
# Several tiles along each axis, in every form of tile, so that partial sums are added up.
LARGE = [(70, 300), (16, 5000), (600, 5), (300, 3, 3), (5000, 1, 1), (9001,)]


@compiledopt.define
def Lamb(param, grad, exp_avg, exp_avg_sq, *, lr=0.05, betas=(0.9, 0.99)):
    exp_avg = exp_avg.lerp(grad, 1 - betas[0])
    exp_avg_sq = exp_avg_sq.lerp(grad * grad, 1 - betas[1])
    update = exp_avg / (exp_avg_sq.sqrt() + 1e-6)
    return param - lr * (param.norm() / (update.norm() + 1e-9)) * update, exp_avg, exp_avg_sq


@compiledopt.define
def Extremes(param, grad, momentum, *, lr=0.05):
    """The largest of a row, the smallest of a matrix, and the norm of a column."""
    momentum = momentum.lerp(grad, 0.5)
    high, low = momentum.abs().amax(-1, keepdim=True), momentum.amin()
    norm = grad.square().sum(-2, keepdim=True).sqrt()
    return param - lr * momentum / (high - low + 1e-3) - lr * grad / (norm + 1e-3), momentum


@compiledopt.define(scalars=("second",))
def Units(param, grad, second, *, lr=0.05):
    """A 0-dim state that follows from the gradient, and a mean over all dimensions but the first."""
    second = 0.9 * second + 0.1 * grad.square().mean()
    if param.ndim > 1:
        grad = grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)
    return param - lr * grad / (second.sqrt() + 1e-3), second


RULES = {
    "Adafactor": (compiledopt.Adafactor, {"lr": 0.05, "weight_decay": 0.1}),
    "Lamb": (Lamb, {}),
    "Extremes": (Extremes, {}),
    "Units": (Units, {}),
    "StableSPAM": (compiledopt.StableSPAM, {"lr": 0.05}),
    "AdamP": (compiledopt.AdamP, {"lr": 0.05, "weight_decay": 0.1}),
    "Nero": (compiledopt.Nero, {"lr": 0.05, "constraints": False}),
}
# Convolutions, in both orders of their dimensions; a stack of matrices; what has nothing in it.
FEW = [(6, 4, 3, 3), (2, 3, 5), (9, 5), (0,)]


def check(name, dtype, capturable, shapes, turned=False, **more):
    (make, options), is_turned = RULES[name], shapes is FEW
    shapes = [shape for shape in shapes if name != "Extremes" or (len(shape) > 1 and 0 not in shape)]
    models = [parameters(dtype, shapes) for _ in range(2)]
    if is_turned:
        models = [[torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last)), *rest] for p, *rest in models]
    if turned:
        models = [[torch.nn.Parameter(p.detach().mT.contiguous().mT) if p.dim() > 1 else p for p in one] for one in models]
    start = flat(models[0])
    expected = make(models[0], foreach=False, **options, **more)
    optimizer = make(models[1], compiled=True, capturable=capturable, **options, **more)
    for step in range(3):
        for one, params in ((expected, models[0]), (optimizer, models[1])):
            run(one, params, Gradients(dtype, skip=True), range(step, step + 1))
    kind = capturables.CapturableBatch if capturable else batches.TritonBatch
    assert optimizer.executor == "compiled" and all(type(batch) is kind for batch in optimizer._plan.batches)
    effect, difference = rms(flat(models[0]) - start), rms(flat(models[1]) - flat(models[0]))
    # A value near the middle between two may be rounded to the other at each step.
    cut = 3 * 2**-8 * rms(flat(models[0])) if dtype is torch.bfloat16 else 0.0
    assert effect > 1e-2 and difference <= {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.0) * effect + cut
    for p, q in zip(*models, strict=True):
        for state, value in expected.state[p].items():
            near = {"rtol": 5e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(optimizer.state[q][state], value, **near)


@pytest.mark.parametrize(("name", "dtype", "capturable"), [
    ("Adafactor", torch.float32, False), ("Lamb", torch.float32, True),
    pytest.param("Adafactor", torch.bfloat16, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_against_the_for_loop(name, dtype, capturable):
    check(name, dtype, capturable, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["Adafactor", "Lamb"])
def test_many_tiles_against_the_for_loop(name, dtype, capturable):
    check(name, dtype, capturable, [*SMALL, *LARGE])


@pytest.mark.parametrize(("name", "dtype", "capturable"), [
    ("Units", torch.float32, True),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in (
        ("Units", HALF, False), ("StableSPAM", HALF, True), ("AdamP", HALF, True), ("Nero", torch.float32, False)
    )),
])  # fmt: skip
def test_states_of_one_number_and_rows_of_several_dimensions(name, dtype, capturable):
    """0-dim states that follow from tensors, reductions over all dimensions but the first, and a mean of what rows have."""
    check(name, dtype, capturable, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extremes_against_the_for_loop(dtype):
    check("Extremes", dtype, False, [(40, 50), (3, 4, 3, 3), (33, 130), (7, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"max_grad_norm": 0.5}], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_with_what_stands_around(capturable, more):
    check("Adafactor", torch.float32, capturable, SMALL, **more)


def test_column_after_column():
    check("Adafactor", torch.float32, False, [(40, 50), (3, 5, 7)], turned=True)


def test_a_nan_is_seen_by_the_largest():
    param = torch.nn.Parameter(torch.ones(3, 5))
    param.grad = torch.arange(15.0).view(3, 5)
    param.grad[1, 2] = torch.nan
    Extremes([param], compiled=True).step()
    assert param.isnan().all(), "the smallest of the matrix is NaN"


def test_launches_are_those_that_explain_tells_of(monkeypatch):
    launched, launch = [], tables.launch
    for module in (tables, shaped, capturables):
        monkeypatch.setattr(module, "launch", lambda *given: launched.append(1) or launch(*given))
    for name, most in (("AdamW", 1), ("Adafactor", 5)):
        for capturable in (False, True):
            params = parameters(shapes=[(9, 5), (4, 4), (16, 3)])
            optimizer = getattr(compiledopt, name)(params, compiled=True, capturable=capturable)
            run(optimizer, params, Gradients(), range(2))
            launched.clear()
            optimizer.step()
            assert len(launched) == optimizer._explanation().launches_per_step == most + capturable


@pytest.mark.slow
@pytest.mark.parametrize(
    "one",
    [one_per_kind(lambda one: one.elementwise)[0], *one_per_kind(lambda one: not one.elementwise and one.rule.dense)],
    ids=str,
)
def test_both_explanations_tell_of_the_same(one, monkeypatch):
    """Of a GPU that is not here, and of an optimizer: launches, kernels and bytes, some of them read twice."""
    monkeypatch.setattr(kernels, "build_for", lambda *_, **__: kernels.Built("", 8, 0, 8, 0, 4096))
    monkeypatch.setattr(built, "best_for", lambda *_: kernels.Built("", 8, 0, 8, 0, 4096))
    monkeypatch.setattr(muon, "product_dtype", lambda _: torch.float32)
    for clipped in (False, True):
        options = {"capturable": True, **({"max_grad_norm": 1.0} if clipped else {})}
        param = torch.nn.Parameter(torch.zeros(20, 30))
        optimizer = one.ours([param], **options)
        told, group = optimizer._explanation(), optimizer.param_groups[0]
        there = explain_gpu(one.name, type(optimizer).rule, group, 90, torch.float32)
        (part,) = told.parts
        assert (told.launches_per_step, told.kernels) == (there.launches_per_step, there.kernels)
        assert part.bytes_read_per_element + part.bytes_written_per_element == there.bytes_per_element
        once = 2 * param.element_size() + 2 * part.state_bytes_per_element + param.element_size()
        assert (there.bytes_per_element - 4 * clipped > once) == (not one.elementwise)


@pytest.mark.parametrize("name", ["Adafactor", "Units"])
def test_replays(name, monkeypatch):
    """Gradients made inside of the capture, and a rate that changes between replays."""
    make, shapes = RULES[name][0], [(9, 5), (3, 2, 3, 3), (17,)]
    reference, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    expected = make(reference, lr=0.05, foreach=False)
    optimizer = make(mine, lr=0.05, compiled=True, capturable=True)
    for one, params in ((expected, reference), (optimizer, mine)):
        run(one, params, Gradients(), [0])
    with capture(monkeypatch) as graph:
        for param in mine:
            param.grad = torch.empty_like(param)
        optimizer.step()
    for step in range(1, 4):
        expected.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 0.05 / step
        Gradients().set(reference, step)
        expected.step()
        optimizer.refresh()
        for param, other in zip(mine, reference, strict=True):
            param.grad.copy_(other.grad)
        graph.replay()
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)


def test_shapes_that_change():
    """Sums of a step that some parameters are left out of lie elsewhere than those of the one before."""
    reference, mine = parameters(shapes=[(9, 5), (40, 3), (6, 6)]), parameters(shapes=[(9, 5), (40, 3), (6, 6)])
    expected, optimizer = compiledopt.Adafactor(reference, foreach=False), compiledopt.Adafactor(mine, compiled=True)
    for step in range(6):
        for one, params in ((expected, reference), (optimizer, mine)):
            Gradients().set(params, step)
            if step % 2:
                params[step % 3].grad = None
            one.step()
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)


@compiledopt.define(scalars=("step",))
def Summing(param, grad, step, momentum, *, lr=0.05):
    """A sum over all parameters, and one that is computed from it."""
    step, share = step + 1, total(grad * grad) + 1.0
    momentum = 0.9 * momentum + grad / share.sqrt()
    return param - lr * momentum * (1 + 0.01 * total(grad * param * step / share)), step, momentum


@pytest.mark.parametrize("make", [Summing, pytest.param(compiledopt.AdaGC, marks=pytest.mark.slow)])
def test_sums_over_all_parameters(make, monkeypatch):
    """In steps that some parameters are left out of, and in a graph."""
    shapes = [(9, 5), (3, 2, 3, 3), (0,), (17,)]
    reference, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    expected, optimizer = make(reference, lr=0.05, foreach=False), make(mine, lr=0.05, compiled=True, capturable=True)
    for step in range(3):
        for one, params in ((expected, reference), (optimizer, mine)):
            run(one, params, Gradients(skip=step == 1), [step])
    assert {type(batch) for batch in optimizer._plan.batches} == {SummedBatch} and optimizer.executor == "compiled"
    with capture(monkeypatch) as graph:
        optimizer.step()
    for step in range(3, 5):
        for params in (reference, mine):
            kept = [param.grad for param in params]
            Gradients().set(params, step)
            fresh = [param.grad for param in params]
            for param, grad, value in zip(params, kept, fresh, strict=True):
                param.grad = grad.copy_(value)
        expected.step()
        graph.replay()
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)


def test_where_0_dim_states_are():
    """What follows from tensors is where they are, and the count of steps on the host, unless it is wanted on the device."""
    param, group = torch.nn.Parameter(torch.empty(2, 3, device="meta")), {}
    known = traced(compiledopt.AdaNorm.rule, compiledopt.AdaNorm([torch.nn.Parameter(torch.ones(2, 3))]).param_groups[0])
    state = {"step": torch.zeros(()), "exp_grad_norm": torch.zeros(())}
    settle_scalars(known, param, group, state)
    assert [value.device.type for value in state.values()] == ["cpu", "meta"] and not is_on_device(known, group, param, state)
    settle_scalars(known, param, {"capturable": True}, state)
    assert [value.device.type for value in state.values()] == ["meta", "meta"] and is_on_device(known, group, param, state)


def test_every_tile_is_the_best_of_some_shape():
    for axes, forms in TILES.items():
        shapes = [(1, 4096, 4096), (1, 1, 100_000), (1, 60_000, 10), (10_000, 3, 3), (10_000, 1, 1)]
        found = {shaped.tiles(shaped.Kind(axes), shape, False)[1] for shape in shapes}
        assert found == set(forms), axes


REDUCING = [one for one in {**CATALOG, **MENU}.values() if one.rule is not None and one.reduces]
BITS = {"rounding": "stochastic", "state_dtype": "bfloat16"}


def has_kernels(one):
    """Whether it does not sum over all parameters, and is compiled. One with lists of states moves nothing in three steps."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (3,))[: 1 + one.takes_vectors]]
    group = one.ours(params, **one.promised).param_groups[0]
    variants = [traced(one.rule, group).variant(param) for param in params]
    return not any(isinstance(v, str) or v.measures for v in variants)


@pytest.mark.parametrize(
    ("one", "dtype", "capturable"),
    [
        pytest.param(one, dtype, capturable, marks=() if (str(one), dtype) == ("LAMB", HALF) else pytest.mark.slow)
        for one in REDUCING
        for dtype, capturable in ((torch.float32, False), (HALF, True))
        if has_kernels(one) and (dtype is HALF or str(one) == "LAMB")
    ],
    ids=str,
)
def test_random_bits_are_those_of_the_for_loop(one, dtype, capturable):
    """By other bits every second element is rounded otherwise; by these, those that float32 makes in another last place."""
    shapes = [(20, 30), (6, 20), *([(70,)] if one.takes_vectors else [])]
    found = []
    for seed, flags in ((3, {"foreach": False}), (3, {"compiled": True, "capturable": capturable}), (4, {"foreach": False})):
        params = parameters(dtype, shapes)
        optimizer = one.ours(params, **one.promised, **BITS, seed=seed, **flags)
        run(optimizer, params, Gradients(dtype, skip=True), range(3))
        rounded = [v for p, state in optimizer.state.items() for v in (p, *state.values()) if v.shape == p.shape]
        found.append(flat(value for value in rounded if value.dtype is HALF))
        assert optimizer.executor == ("compiled" if "compiled" in flags else "for-loop")
    expected, mine, others = found
    assert (mine != expected).double().mean() <= 0.02 and (others != expected).double().mean() >= 0.2


def passes_of(make, dtype, shape, **options):
    """What passes_ready.difference is asked of a rule: with all forms of tiles that it knows tensors of."""
    param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = make([param], **options)
    group = optimizer.param_groups[0]
    known = traced(around.derived(optimizer.rule_of(group), group, param=param), group)
    variant = known.variant(param)
    dtypes = operand_dtypes(Entry(param, {}, 0, known, Choice("compiled", "")))
    kernel = reducing_kernel(variant.passes, dtypes)
    every = passes_ready.FLAT if variant.passes.is_flat else passes_ready.SHAPES
    return kernel, variant.program, dtypes, masks_of(kernel, every), torch.device("cpu")


@pytest.mark.parametrize("which", [2, 3])
def test_tiles_that_are_split(which, monkeypatch):
    """In the first launch and the last, not in those between: partial sums are found all the same."""
    form = FORMS[which]
    assert form.split == 2 ** (which - 1)

    def form_of(stage, *_):
        return form if stage in (kernel.stages[0], kernel.stages[-1]) else PLAIN

    monkeypatch.setattr(shaped, "form_of", form_of)
    monkeypatch.setattr(passes_ready, "SHAPES", passes_ready.SHAPES[:2])
    kernel, *given = passes_of(Lamb, torch.float32, (40, 50))
    assert passes_ready.difference(kernel, *given) is None
    for axes, tile in ((ELEMENTS, (1, 32, 128)), (ELEMENTS, (1, 1, 4096)), (ELEMENTS, (256, 4, 4)), (ROWS, (1, 128, 1))):
        own = part_of(tile, axes, form.split)
        assert math.prod(own) * (form.split if axes == ELEMENTS else 1) == math.prod(tile) and own[2] >= min(4, tile[2])


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["tl.sum(", "larger("])
def test_a_kernel_with_a_fault_does_not_prove_itself(wrong, monkeypatch):
    monkeypatch.setattr(passes_ready, "SHAPES", passes_ready.SHAPES[:1])
    kernel, *given = passes_of(Extremes, torch.float32, (40, 50))
    stages = kernel.stages
    assert passes_ready.difference(kernel, *given) is None
    mends = {"tl.sum(": "0.99 * tl.sum(", "larger(": "smaller("}
    sources = [re.sub(rf"(?<!def) {re.escape(wrong)}", f" {mends[wrong]}", stage.source) for stage in stages]
    assert any(source != stage.source for source, stage in zip(sources, stages, strict=True))
    faulty = replace(kernel, stages=tuple(replace(stage, source=s) for stage, s in zip(stages, sources, strict=True)))
    assert "are not what the for-loop computes" in passes_ready.difference(faulty, *given)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [None, "tl.load(layout + 4)", "tl.load(layout + 4 + 1)"])
def test_random_bits_prove_themselves(wrong, monkeypatch):
    """With the number of another parameter, or from another element on, the bits are others."""
    monkeypatch.setattr(passes_ready, "SHAPES", passes_ready.SHAPES[:2])
    kernel, *given = passes_of(Lamb, HALF, (40, 50), rounding="stochastic")
    sources = [stage.source if wrong is None else stage.source.replace(wrong, "tl.load(layout)") for stage in kernel.stages]
    assert wrong is None or sources != [stage.source for stage in kernel.stages]
    kernel = replace(kernel, stages=tuple(replace(s, source=source) for s, source in zip(kernel.stages, sources, strict=True)))
    found = passes_ready.difference(kernel, *given)
    assert found is None if wrong is None else "but rounded otherwise" in found


@pytest.mark.slow
@pytest.mark.parametrize("one", REDUCING, ids=str)
def test_every_rule_that_reduces_proves_itself(one):
    """Else it would be refused where nothing is wrong."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((64, 96), (300,)) if one.takes_vectors else ((64, 96),):
            found = passes_ready.difference(*passes_of(one.ours, dtype, shape, **one.promised))
            assert found is None, (dtype, shape, found)


@pytest.mark.slow
def test_places_beyond_int32():
    """The end of a vector of more than 2^31 elements, of which nothing else is there: pointers begin so far before it."""
    kernel, _, dtypes, *_ = passes_of(Lamb, torch.float32, (5000,))
    before, table = 2**31 + 4096, torch.linspace(0.1, 0.9, kernel.columns, dtype=torch.float64)
    found = []
    for away in (0, before):
        generator = torch.Generator().manual_seed(0)
        values = [torch.rand(5000, generator=generator) for _ in dtypes]
        given = shaped.ShapedTables(kernel, torch.device("cpu"))
        pointers = [value.data_ptr() - value.element_size() * away for value in values]
        numbers = (pointers, (1, 1, away + 5000, 0, 0), (0,))
        given.update(*(array("q", each).tobytes() for each in numbers))
        assert all(int(blocks[:, 2].max()) == (away + 4999) // 4096 for blocks in (given.laid.blocks[0], given.laid.blocks[-1]))
        given.laid.blocks = [
            blocks[blocks[:, 2] >= away // 4096] if len(blocks) > 2 else blocks for blocks in given.laid.blocks
        ]
        given.run(table)
        found.append(values)
    for near, far in zip(*found, strict=True):
        torch.testing.assert_close(far, near, rtol=1e-6, atol=1e-7)
