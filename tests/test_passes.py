"""Rules that reduce, compiled into passes: against themselves in float64, and against executors that call them on tensors."""

import ctypes
import itertools
import math
import subprocess
import sys
import warnings
from array import array

import pytest
import torch
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import compile_stats
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp import reducing
from compiledopt.errors import CompileError
from compiledopt.rules.reductions import cut
from compiledopt.rules.traced import Variant, traced

FLAT_SHAPES = [(40, 50), (3001,), (), (0,), (1, 7), (3, 4, 5)]
# A row or a column alone, matrices of one element, rows longer than a tile and shorter than a vector, several parts.
MATRIX_SHAPES = [(40, 50), (1, 7), (7, 1), (3, 4, 5), (6, 5, 3, 3), (16, 8, 1, 1), (2, 5000), (5000, 3), (90, 800)]


@compiledopt.define
def Lars(param, grad, momentum_buffer, *, lr=0.1, momentum=0.9, weight_decay=0.01):
    ratio = param.norm() / (grad.norm() + weight_decay * param.norm() + 1e-8)
    momentum_buffer = momentum * momentum_buffer + ratio * (grad + weight_decay * param)
    return param - lr * momentum_buffer, momentum_buffer


@compiledopt.define(scalars=("step",))
def Lamb(param, grad, exp_avg, exp_avg_sq, step, *, lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1):
    step = step + 1
    exp_avg = exp_avg.lerp(grad, 1 - betas[0])
    exp_avg_sq = exp_avg_sq.lerp(grad * grad, 1 - betas[1])
    update = exp_avg / (1 - betas[0] ** step) / ((exp_avg_sq / (1 - betas[1] ** step)).sqrt() + eps) + weight_decay * param
    ratio = param.norm(2) / torch.linalg.vector_norm(update)
    ratio = torch.where((ratio > 0) & (ratio < float("inf")), ratio, 1.0)
    return param - lr * ratio * update, exp_avg, exp_avg_sq, step


@compiledopt.define
def Extremes(param, grad, *, lr=0.1):
    """Reductions of reductions, of inputs as they are, and of what was reduced before."""
    spread = grad.amax() - torch.amin(grad)
    centered = grad - grad.mean()
    return param - lr * (centered / (centered * centered).mean().sqrt() + param.sum() / 1e4 + spread / 10).tanh()


@compiledopt.define
def Rows(param, grad, *, lr=0.1):
    """Centered rows; those that are long are cut; columns of one length; a truth per row read per element."""
    grad = grad - grad.mean(-1, keepdim=True)
    size = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
    grad = torch.where(size > 3.0, grad * 3.0 / size, grad)
    high, low = grad.amax(dim=(-2,), keepdim=True), grad.amin(dim=-2, keepdim=True)
    return param - lr * (grad + (high - low) * param.sum((-2, -1), keepdim=True) / 1e4)


def per_row(param):
    return param.new_zeros(*param.shape[:-1], 1)


def per_column(param):
    return param.new_zeros(*param.shape[:-2], 1, param.shape[-1])


@compiledopt.define(initial={"row": per_row, "column": per_column})
def Sm3(param, grad, row, column, *, lr=0.1):
    """The smaller of what its row and its column have seen; old states are read after new ones are known."""
    seen = torch.minimum(row, column) + grad * grad
    new_row, new_column = seen.amax(-1, keepdim=True), seen.amax(-2, keepdim=True)
    return param - lr * grad * (seen + 1e-8).rsqrt() - 1e-3 * row, new_row, new_column


SOME = [shape for shape in FLAT_SHAPES if shape not in ((), (0,))]  # there is no largest of none, and one deviates by nothing
RULES = [(Lars, FLAT_SHAPES), (Lamb, FLAT_SHAPES), (Extremes, SOME), (Rows, MATRIX_SHAPES), (Sm3, MATRIX_SHAPES)]
IDS = [rule.__name__ for rule, _ in RULES]


def in_float64(rule, start, gradients, steps, **options):
    """The rule's own function, called as it stands: the oracle."""
    params = copies(start, torch.float64)
    oracle = rule(params, foreach=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(oracle, params, gradients, steps)
    assert oracle.executor == "for-loop"
    return params


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize(("rule", "shapes"), RULES, ids=IDS)
def test_error_against_the_oracle(rule, shapes, dtype):
    start, steps = parameters(dtype, shapes), range(20)
    expected = in_float64(rule, start, Gradients(dtype), steps)
    mine, tensors = copies(start), copies(start)
    optimizer = rule(mine, compiled=True)
    run(optimizer, mine, Gradients(dtype), steps)
    assert optimizer.executor == "compiled"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(rule(tensors, foreach=False), tensors, Gradients(dtype), steps)
    effect = rms(flat(expected) - flat(start))
    assert effect > 0.01
    error, other = flat(mine) - flat(expected), flat(tensors) - flat(expected)
    noise = (1e-13 if dtype is torch.float64 else 1e-6) * max(1.0, flat(expected).abs().max().item())
    assert rms(error) <= 1.1 * rms(other) + noise
    assert error.abs().max() <= 2 * other.abs().max() + 10 * noise
    assert rms(error) <= (0.02 if dtype is torch.bfloat16 else 0.01) * effect or dtype in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=IDS)
def test_results_do_not_depend_on_threads(rule):
    """Parameters that are cut into parts, some of them for all threads, some for one; bit for bit."""
    shapes = [(600, 1000), (1, 300_000), (300_000, 2), (40, 50), (3, 200, 700), (7, 5)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = parameters(shapes=shapes)
            optimizer = rule(params, compiled=True)
            run(optimizer, params, Gradients(), range(2))
            results.append(snapshot(optimizer))
    finally:
        torch.set_num_threads(before)
    assert same(results[0], results[1]) and same(results[0], results[2])
    expected = in_float64(rule, parameters(shapes=shapes), Gradients(), range(2))
    effect = rms(flat(expected) - flat(parameters(shapes=shapes)))
    assert rms(flat(params) - flat(expected)) <= 1e-5 * effect


@pytest.mark.parametrize("rule", [Rows, Sm3, compiledopt.Adafactor], ids=lambda rule: rule.__name__)
def test_columns_of_parts_that_end_anywhere(rule):
    """A part may end within a row, with fewer rows than are added at once, or where another matrix begins; on two threads."""
    shapes = [(65, 1010), (3, 20, 50), (2, 33, 700), (40, 1700)]
    torch.set_num_threads(2)
    start = parameters(shapes=shapes)
    mine, expected = copies(start), copies(start, torch.float64)
    more = {"eps": (torch.finfo(torch.float32).eps, 1e-3)} if rule is compiledopt.Adafactor else {}
    run(rule(mine, lr=0.5, compiled=True), mine, Gradients(), range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(rule(expected, lr=0.5, foreach=False, **more), expected, Gradients(), range(2))
    for a, b, before in zip(mine, expected, start, strict=True):
        assert rms(b.detach() - before.detach()) > 1e-3
        assert (a.detach() - b.detach()).abs().max() <= 1e-4


def test_states_of_parameters_with_as_many_elements():
    """Their shapes are those of the parameter, not of another one of its size."""
    shapes = [(6, 5), (5, 6), (3, 10), (30,), (2, 3, 5)]
    theirs, mine = parameters(shapes=shapes), parameters(shapes=shapes)
    baseline, optimizer = torch.optim.Adafactor(theirs, lr=0.1), compiledopt.Adafactor(mine, lr=0.1)
    run(baseline, theirs, Gradients(), range(2))
    run(optimizer, mine, Gradients(), range(2))
    for p, q in zip(theirs, mine, strict=True):
        torch.testing.assert_close(q, p)
        wanted = {name: value.shape for name, value in baseline.state[p].items()}
        assert {name: value.shape for name, value in optimizer.state[q].items()} == wanted


def test_a_reduced_state_that_is_not_contiguous():
    """One value per row, with other strides, as a view of more: it is laid anew once, and the values are torch's."""
    theirs, mine = parameters(shapes=[(4, 6, 5)]), parameters(shapes=[(4, 6, 5)])
    for library, params in ((torch.optim, theirs), (compiledopt, mine)):
        optimizer = library.Adafactor(params, lr=0.1)
        run(optimizer, params, Gradients(), range(2))
        state = optimizer.state[params[0]]
        state["row_var"] = state["row_var"].transpose(0, 1).contiguous().transpose(0, 1)
        assert not state["row_var"].is_contiguous()
        run(optimizer, params, Gradients(), range(2, 4))
    assert optimizer.executor == "compiled" and optimizer.explain().startswith("Adafactor: compiled")
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", [Lamb, Rows, Sm3], ids=lambda rule: rule.__name__)
def test_random_shapes(rule, seed):
    """Runs that end in the middle of tiles and parts, for any number of threads."""
    random, before = torch.Generator().manual_seed(seed), torch.get_num_threads()
    sizes = [1, 2, 3, 7, 16, 64, 255, 256, 257, 300, 1000, 2049]
    picked = torch.randint(len(sizes), (4, 2), generator=random).tolist()
    shapes = [(seed % 3 + 1, sizes[a], sizes[b]) for a, b in picked] + [(1 + 97 * seed, 2999 - 300 * seed)]
    mine = parameters(shapes=shapes)
    torch.set_num_threads(1 + seed % 4)
    try:
        run(rule(mine, compiled=True), mine, Gradients(), range(3))
    finally:
        torch.set_num_threads(before)
    expected = in_float64(rule, parameters(shapes=shapes), Gradients(), range(3))
    assert rms(flat(expected) - flat(parameters(shapes=shapes))) > 1e-3
    for a, b in zip(mine, expected, strict=True):
        assert rms(a.detach() - b.detach()) <= 1e-5 * rms(b.detach())


@pytest.mark.parametrize("rule", [Lamb, Rows, Sm3], ids=lambda rule: rule.__name__)
def test_special_values_stay_where_torch_leaves_them(rule):
    for value in (float("nan"), float("inf"), 0.0):
        results = []
        for options in ({"compiled": True}, {"foreach": False}):
            params, found = parameters(shapes=[(6, 5), (40, 70)]), []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer = rule(params, **options)
                for step in range(3):
                    Gradients().set(params, step)
                    params[0].grad[2, 1] = value
                    params[1].grad[-1, -3:] = value
                    optimizer.step()
                    found += copies(params)  # after each step: in the end a NaN is everywhere
            results.append(found)
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("rule", [Lamb, Sm3], ids=lambda rule: rule.__name__)
def test_any_layout(rule):
    """Transposed parameters, and gradients of another layout than theirs."""
    shapes = [(6, 5), (40, 70), (2, 3, 4)]
    plain, turned = parameters(shapes=shapes), []
    for param in plain:
        turned.append(torch.nn.Parameter(param.detach().transpose(-1, -2).contiguous().transpose(-1, -2)))
    optimizers = [rule(plain, compiled=True), rule(turned, compiled=True)]
    for step in range(4):
        for params, optimizer in zip((plain, turned), optimizers, strict=True):
            Gradients().set(params, step)
            if step % 2:
                for param in params:
                    param.grad = param.grad.transpose(-1, -2).contiguous().transpose(-1, -2)
            versions = [param._version for param in params]
            optimizer.step()
            assert all(param._version > version for param, version in zip(params, versions, strict=True))
    assert not turned[0].is_contiguous() and optimizers[1].executor == "compiled"
    effect = rms(flat(plain) - flat(parameters(shapes=shapes)))
    for a, b in zip(plain, turned, strict=True):
        assert rms(a.detach() - b.detach()) <= 1e-6 * effect
        states = [optimizer.state[param] for optimizer, param in zip(optimizers, (a, b), strict=True)]
        for key in states[0]:
            torch.testing.assert_close(states[0][key], states[1][key])


def test_neither_order():
    """Channels last: a rule over a whole parameter does not mind, one over rows or columns is called on tensors."""
    for rule, executor in ((Lamb, "compiled"), (compiledopt.Adafactor, "foreach")):
        plain, last = parameters(shapes=[(4, 3, 5, 2)]), parameters(shapes=[(4, 3, 5, 2)])
        last[0].data = last[0].data.contiguous(memory_format=torch.channels_last)
        assert not last[0].is_contiguous()
        optimizers = [rule(plain), rule(last)]
        for params, optimizer in zip((plain, last), optimizers, strict=True):
            run(optimizer, params, Gradients(), range(3))
        assert [optimizer.executor for optimizer in optimizers] == ["compiled", executor]
        torch.testing.assert_close(plain[0], last[0])
        assert executor == "compiled" or "lies in memory in neither order" in optimizers[1].explain()


def test_a_parameter_that_is_laid_anew_between_steps():
    """Swapped for its transpose in memory, resized, or made float64: another plan, and the same update as torch's."""
    theirs, mine = parameters(shapes=[(6, 5), (4, 3)]), parameters(shapes=[(6, 5), (4, 3)])
    pair = [(torch.optim.Adafactor(theirs, lr=0.1), theirs), (compiledopt.Adafactor(mine, lr=0.1), mine)]
    for optimizer, params in pair:
        run(optimizer, params, Gradients(), range(2))
        params[0].data = params[0].data.t().contiguous().t()
        run(optimizer, params, Gradients(), range(2, 4))
        params[0].data = params[0].data.contiguous()
        optimizer.state[params[1]]["col_var"] = optimizer.state[params[1]]["col_var"].t().contiguous().t()
        run(optimizer, params, Gradients(), range(4, 6))
    assert pair[1][0].executor == "compiled"
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-5, atol=1e-5)
    mine[0].data = mine[0].data[:3].clone()
    Gradients().set(mine, 6)
    before = snapshot(pair[1][0])
    with pytest.raises(RuntimeError, match=r"state 'row_var' must be a tensor of shape \(3, 1\)"):
        pair[1][0].step()
    assert same(before, snapshot(pair[1][0]))


def test_numbers_never_compile():
    params = parameters(shapes=[*MATRIX_SHAPES, (9,), (0, 4), (0,)])
    optimizer = compiledopt.Adafactor(params, lr=0.1, weight_decay=0.1)
    run(optimizer, params, Gradients(), range(2))
    before = compile_stats()
    for number, value in {
        "lr": torch.tensor(0.2),
        "beta2_decay": -0.5,
        "d": 2.0,
        "weight_decay": 0.5,
        "eps": (None, 1e-2),
    }.items():
        optimizer.param_groups[0][number] = value
        run(optimizer, params, Gradients(skip=True), range(2))
    twin = parameters(shapes=[(17, 3), (900, 900), (4,)])
    run(compiledopt.Adafactor(twin, weight_decay=0.2), twin, Gradients(), range(2))
    after = compile_stats()
    for name in ("programs_traced", "kernels_lowered", "kernels_compiled", "disk_hits", "fallbacks"):
        assert before[name] == after[name], name
    assert optimizer.executor == "compiled"


def test_a_number_that_was_none_is_another_program():
    theirs, mine = parameters(shapes=[(6, 5), (9,)]), parameters(shapes=[(6, 5), (9,)])
    pair = [(torch.optim.Adafactor(theirs, lr=0.1), theirs), (compiledopt.Adafactor(mine, lr=0.1), mine)]
    for eps in ((None, 1e-3), (10.0, 1e-3), (None, 1e-3)):
        for optimizer, params in pair:
            optimizer.param_groups[0]["eps"] = eps
            run(optimizer, params, Gradients(), range(2))
        torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"max_grad_norm": 0.5}, {"ema_decay": 0.5}, {"lr": compiledopt.schedules.exponential(0.5)}]
)
def test_what_stands_around_a_rule(options):
    options = {**options, "lr": 0.1 * options["lr"]} if "lr" in options else options
    results = []
    for executor in ({"compiled": True}, {"foreach": False}):
        params = parameters(torch.float64, [(6, 5), (9,)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = Lamb(params, **options, **executor)
            run(optimizer, params, Gradients(torch.float64), range(5))
        results.append((flat(params), flat(optimizer.ema_parameters()) if "ema_decay" in options else flat(params)))
        assert "max_grad_norm" not in options or optimizer.grad_norm > 0.5
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    plain = parameters(torch.float64, [(6, 5), (9,)])
    run(Lamb(plain), plain, Gradients(torch.float64), range(5))
    assert "ema_decay" in options or rms(flat(plain) - results[0][0]) > 1e-4


def room(batch, shape):
    """How many bytes the passes of a batch keep for a parameter of this shape."""
    library, handle = cpp.passes_driver().library, ctypes.c_void_p()
    rule = reducing.described(batch.traced, batch.dtypes, batch.kernel).tobytes()
    count, threads, place = ctypes.c_int64(1), ctypes.c_int64(2), bytes(16)
    assert library.passes_make(rule, count, shape.tobytes(), place, threads, ctypes.byref(handle)) == 0
    library.passes_room.restype = ctypes.c_int64
    try:
        return library.passes_room(handle)
    finally:
        library.passes_free(handle)


def test_what_is_kept_is_small():
    """Sums of rows, of columns, and of parts: a fifth of a parameter of usual shape, six times one of long thin matrices."""
    for rule in [rule for rule, _ in RULES] + [compiledopt.Adafactor]:
        params = parameters(shapes=[(4, 5)])
        optimizer = rule(params, compiled=True)
        run(optimizer, params, Gradients(), range(1))
        (batch,) = optimizer._plan.batches
        for shape in itertools.product([1, 3, 25, 10**4], [1, 3, 1000, 10**6], [1, 3, 256, 2049, 10**6]):
            elements = math.prod(shape)
            if elements <= 10**9:
                kept = room(batch, array("q", (*shape, elements)))
                usual = min(shape[1:]) >= 256
                assert kept <= 2e5 + (0.2 if usual else 6) * 4 * elements, (rule.__name__, shape, kept)


def test_flags_that_leave_no_reduction_make_it_elementwise():
    """LARS without decay is SGD: its kernel, its sequence, and a program whatever the shapes are."""

    def trained(make, **options):
        params = parameters(torch.float64, FLAT_SHAPES)
        optimizer = make(params, lr=0.1, momentum=0.9, nesterov=True, **options)
        run(optimizer, params, Gradients(torch.float64), range(4))
        return optimizer, flat(params)

    _, expected = trained(torch.optim.SGD)
    for options in ({"foreach": True}, {"foreach": False}, {"compiled": True}):
        optimizer, found = trained(compiledopt.LARS, **options)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        assert {batch.entries[0].traced.elementwise for batch in optimizer._plan.batches} == {True}
    adapting, _ = trained(compiledopt.LARS, weight_decay=0.1, compiled=True)
    assert all(isinstance(batch.traced, Variant) for batch in adapting._plan.batches)


def one_per_row(param):
    return param.new_ones(*param.shape[:-1], 1)


@pytest.mark.parametrize("start", [one_per_row, lambda param: None if param.dim() < 2 else torch.ones_like(param)])
def test_a_state_of_another_shape_keeps_a_rule_from_that(start):
    @compiledopt.define(elementwise=False, initial={"scale": start}, optional={})
    def Scaled(param, grad, scale, *, lr=0.1):
        return param - lr * grad * (1.0 if scale is None else scale), scale

    params = parameters(shapes=[(6, 5), (4, 3)])
    optimizer = Scaled(params)
    run(optimizer, params, Gradients(), range(3))
    assert not optimizer._plan.batches[0].entries[0].traced.elementwise


# ---- what can fail ----


MAKE = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 6)


@pytest.mark.parametrize(("outcome", "error"), [(-1, MemoryError), (-2, RuntimeError)])
def test_without_memory_nothing_is_written(monkeypatch, outcome, error):
    params = parameters(shapes=[(6, 5), (9,)])
    optimizer = Lamb(params, compiled=True)
    run(optimizer, params, Gradients(), range(2))
    before = snapshot(optimizer)
    real, fails = reducing.passes, MAKE(lambda *arguments: outcome)
    address = ctypes.cast(fails, ctypes.c_void_p).value
    monkeypatch.setattr(reducing, "passes", lambda rule: (address, *real(rule)[1:]))
    optimizer.load_state_dict(optimizer.state_dict())  # a plan of its own
    with pytest.raises(error, match="the passes of a rule"):
        optimizer.step()
    assert same(before, snapshot(optimizer))
    monkeypatch.undo()
    optimizer.step()
    assert not same(before, snapshot(optimizer))


def test_without_a_kernel_it_falls_back_and_says_so(monkeypatch):
    def broken(*_):
        raise CompileError("the compiler is out of order")

    monkeypatch.setattr(reducing, "kernel", broken)
    params, other = parameters(shapes=[(6, 5)]), parameters(shapes=[(6, 5)])
    optimizer = Lamb(params)
    Gradients().set(params, 0)
    with pytest.warns(UserWarning, match="Lamb: 1 of 1 parameters runs on the foreach .* the compiler is out of order"):
        optimizer.step()
    assert optimizer.executor == "foreach"
    before = flat(other)
    Gradients().set(other, 0)
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: the compiler is out of order"):
        Lamb(other, compiled=True).step()
    assert torch.equal(before, flat(other))


def test_states_that_the_passes_do_not_take():
    """Made in inference mode they cannot be written to natively; of another dtype they are other functions."""
    params = parameters(shapes=[(6, 5)])
    optimizer = Lamb(params)
    run(optimizer, params, Gradients(), range(1))
    state = optimizer.state[params[0]]
    state["exp_avg"] = state["exp_avg"].double()
    run(optimizer, params, Gradients(), range(1, 2))
    assert optimizer.executor == "compiled" and state["exp_avg"].dtype is torch.float64
    state["exp_avg"] = state["exp_avg"].float()
    with torch.inference_mode():
        state["exp_avg_sq"] = state["exp_avg_sq"].clone()
    Gradients().set(params, 2)
    before = snapshot(optimizer)
    for executor in ({}, {"foreach": True}, {"foreach": False}):
        optimizer.param_groups[0].update(executor)
        with pytest.raises(RuntimeError, match="Lamb: state 'exp_avg_sq' is an inference tensor"):
            optimizer.step()
        assert same(before, snapshot(optimizer))
    optimizer.param_groups[0].update(foreach=None)
    with pytest.warns(UserWarning, match="not a plain dense tensor"):
        torch.inference_mode()(optimizer.step)()
    assert optimizer.executor == "for-loop" and not same(before, snapshot(optimizer))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("grad.sum((0, 2))", "sum over (0, 2) is not one over all, over rows or columns, or over all but the first"),
        ("grad.sum(5, keepdim=True)", "dimension 5 of a value that has 3"),
        ("grad - grad.sum(1)", "two values run over different dimensions; reduce with keepdim=True, or unsqueeze"),
        ("grad.norm('nuc')", "a norm of order 'nuc' has no kernel"),
        ("grad.reshape(3, -1)", "reshape to the size 3; write 1, -1 and param.shape[i]"),
        ("grad.cumsum(0)", "cumsum is not a pointwise operation"),
        ("lr.mean()", "mean is not a pointwise operation"),
    ],
)
def test_what_is_no_reduction_over_rows_or_columns(body, words):
    namespace = {}
    exec(
        compile(f"def odd(param, grad, *, lr=0.1):\n    x = {body}\n    return param - lr * grad", "author.py", "exec"),
        namespace,
    )
    rule = compiledopt.define(elementwise=False)(namespace["odd"])
    group = rule([torch.nn.Parameter(torch.zeros(2, 2, 2))]).param_groups[0]
    reason = traced(rule.rule, group).variant(torch.zeros(2, 2, 2))
    assert isinstance(reason, str) and words in reason and "author.py:2" in reason


def test_a_pass_of_too_many_values():
    def wide(param, grad, *, lr=0.1):
        for index in range(70):
            grad = grad + (grad * (index + 2.0)).sum() * 1e-6
        return param - lr * grad / sum((grad * (i + 1.0)).amax() for i in range(70))

    params = parameters(shapes=[(6, 5)])
    optimizer = compiledopt.define(wide)(params)
    Gradients().set(params, 0)
    with pytest.warns(UserWarning, match="a pass of the rule reads and writes .* values, and at most 64 are possible"):
        optimizer.step()
    assert optimizer.executor == "foreach"


# ---- what is told ----


def variant_of(rule, param):
    variant = traced(rule.rule, rule([param]).param_groups[0]).variant(param)
    assert isinstance(variant, Variant)
    return variant


def test_the_passes_of_adafactor():
    """Three times over the elements; what is kept between is one value per row, column, matrix or parameter."""
    passes = cut(variant_of(compiledopt.Adafactor, torch.nn.Parameter(torch.zeros(3, 4))).program)
    assert [sweep.axes for sweep in passes.sweeps].count(7) == 3
    assert 7 not in passes.buffers and set(passes.buffers) == {1, 3, 5} and not passes.is_flat
    assert passes.bytes_per_element((torch.float32,) * 4) == (8, 4)
    assert variant_of(Lamb, torch.nn.Parameter(torch.zeros(3, 4))).passes.is_flat
    text = variant_of(Lamb, torch.nn.Parameter(torch.zeros(3, 4))).passes.text
    assert text == variant_of(Lamb, torch.nn.Parameter(torch.zeros(7))).passes.text, "another shape is no other kernel"


@compiledopt.define
def Largest(param, grad, *, lr=0.1):
    return param - lr * grad / grad.abs().amax()


def test_what_is_reduced_divides():
    """It is in float32, where the reciprocal of what is below 2⁻¹²⁸ is infinite, as a range of Rose's may be."""
    assert "reciprocal" not in variant_of(Largest, torch.nn.Parameter(torch.ones(7))).passes.text


def test_explain_tells_of_passes():
    params = parameters(shapes=[(6, 5), (9,)])
    optimizer = compiledopt.Adafactor(params)
    told = optimizer._explanation(source=True)
    assert told.executor == "compiled" and [part.passes for part in told.parts] == [10, 3]
    assert told.launches_per_step == 2 and "run9" in told.parts[0].source and "c' = c + " in str(told)
    assert "in 10 passes" in str(told) and "mean_column" in str(told)
    assert "compiled" not in compiledopt.Adafactor(params, foreach=True).explain().splitlines()[0]


def test_a_warm_start_imports_no_inductor():
    program = (
        "import sys, torch, compiledopt\n"
        "p = torch.nn.Parameter(torch.ones(3, 4)); p.grad = torch.ones(3, 4)\n"
        "o = compiledopt.Adafactor([p]); o.step()\n"
        "assert o.executor == 'compiled'\n"
        "print('torch._inductor.graph' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[1].stdout.strip() == "False"


def test_the_driver_is_compiled_once(monkeypatch):
    first = cpp.passes_driver()
    assert cpp.passes_driver() is first and first.address
