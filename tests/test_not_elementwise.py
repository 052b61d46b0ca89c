"""Adafactor, Muon, LBFGS and SparseAdam: the contract of the others, on what these take."""

import copy
import inspect
import io
import pickle
import re

import pytest
import torch
from catalog import CATALOG, with_slow
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import compiledopt

ADAFACTOR_SHAPES = [(40, 50), (3001,), (), (1, 7), (3, 4, 5), (40, 50), (7,), (7,)]
MUON_SHAPES = [(20, 30), (30, 20), (20, 30), (1, 7), (20, 30)]
OTHERS = [one for one in CATALOG.values() if not one.elementwise]
CONFIGURATIONS = {one.name: one.configurations for one in OTHERS if one.configurations}
CASES = [(name, label) for name, labels in CONFIGURATIONS.items() for label in labels]
EXECUTORS = {"foreach": {"foreach": True}, "for-loop": {"foreach": False}}
COMPILED = {"compiled": {"compiled": True, "foreach": None}}
EVERY = {**EXECUTORS, **COMPILED}
REDUCING = [one.name for one in OTHERS if one.reduces]


def executors(name):
    return EVERY if name in REDUCING else EXECUTORS


RUNS = [(*case, executor) for case in CASES for executor in EVERY if executor in executors(case[0])]
NAMES = [one.name for one in OTHERS]


def shapes_of(name):
    return ADAFACTOR_SHAPES if CATALOG[name].takes_vectors else MUON_SHAPES


def of_products(name):
    """How far from torch's a run may be, of its effect: where ours multiplies in another dtype, that rounding comes on top;
    test_muon_against_its_definition says what a step is."""
    from compiledopt.algorithms.muon import product_dtype

    return 0.5 if CATALOG[name].multiplies and product_dtype("cpu") is not torch.bfloat16 else 0.0


def made(module, name, label, params, **more):
    return getattr(module, name)(params, **{**CONFIGURATIONS[name][label], **more})


@pytest.mark.parametrize(
    ("name", "label", "executor", "dtype"),
    with_slow(
        [(*run, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16) for run in RUNS],
        lambda name, label, executor, dtype: dtype is torch.float32 or (label == "all" and dtype is not torch.float16),
    ),
)
def test_error_against_the_oracle(name, label, executor, dtype):
    start = parameters(dtype, shapes_of(name))
    theirs, oracle, mine = copies(start), copies(start, torch.float64), copies(start)
    more = {"eps": (torch.finfo(dtype).eps, 1e-3)} if name in REDUCING and label != "all" else {}
    if label == "tensor_lr":  # torch computes its scalars in the tensor's float32
        more["lr"] = CONFIGURATIONS[name][label]["lr"].item()
    steps = range(40)
    run(made(torch.optim, name, label, theirs), theirs, Gradients(dtype), steps)
    run(made(torch.optim, name, label, oracle, **more), oracle, Gradients(dtype), steps)
    optimizer = made(compiledopt, name, label, mine, **EVERY[executor])
    run(optimizer, mine, Gradients(dtype), steps)
    assert optimizer.executor == executor
    effect = rms(flat(oracle) - flat(start))
    error, torch_error = flat(mine) - flat(oracle), flat(theirs) - flat(oracle)
    assert effect > 0.01
    if CATALOG[name].multiplies:
        # Both multiply in bfloat16, the oracle included, so no run is nearer to the truth: all lie within its rounding.
        assert rms(error) <= 1.1 * rms(torch_error) + 0.05 * effect
        return
    noise = (1e-13 if dtype is torch.float64 else 1e-6) * max(1.0, flat(oracle).abs().max().item())
    assert rms(error) <= 1.1 * rms(torch_error) + noise
    assert error.abs().max() <= 2 * torch_error.abs().max() + 10 * noise
    if dtype in (torch.float32, torch.float64):
        assert (flat(mine) - flat(theirs)).abs().max() <= 1e-3 * effect


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 16)])
def test_newton_schulz_against_its_definition(shape, dtype):
    """The iteration in float64, from its polynomial x ← a·x + b·(x·xᵀ)x + c·(x·xᵀ)²x, without any of our code."""
    from compiledopt.algorithms.muon import orthogonalize, product_dtype

    matrix = torch.randn(shape).to(dtype)
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    result = orthogonalize(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    tolerance = 2e-2 if product_dtype("cpu") is torch.bfloat16 else 1e-5
    assert rms(result.double() - x) <= tolerance * rms(x)


@pytest.mark.parametrize("executor", EVERY)
def test_adafactors_epsilon_is_its_dtypes(executor):
    """Of gradients below it: 1.2e-7 in float32, 0.0078 in bfloat16, 2.2e-16 in float64. Ours of all dtypes in one optimizer,
    torch's in one for each: it takes the first parameter's for all."""
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    theirs, mine = (
        [torch.nn.Parameter(torch.ones(shape, dtype=d)) for d in dtypes for shape in ((4, 3), (5,))] for _ in range(2)
    )
    for param in (*theirs, *mine):
        param.grad = torch.full_like(param, 1e-3)
    for index in (0, 2, 4):
        torch.optim.Adafactor(theirs[index : index + 2], lr=0.5).step()
    optimizer = compiledopt.Adafactor(mine, lr=0.5, **EVERY[executor])
    optimizer.step()
    assert optimizer.executor == executor
    for p, q in zip(theirs, mine, strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-2 if p.dtype is torch.bfloat16 else 1e-5)
    assert (1 - mine[2]).max() < 0.1 < 0.4 < (1 - mine[0]).min(), "an epsilon of another dtype would change nothing here"


@pytest.mark.parametrize("executor", EVERY)
def test_adafactors_rate_falls_with_the_steps(executor):
    """min(γ, 1/√t), with a γ that is too large from the first step on."""
    theirs, mine = parameters(shapes=[(6, 5), (9,)]), parameters(shapes=[(6, 5), (9,)])
    run(torch.optim.Adafactor(theirs, lr=5.0), theirs, Gradients(), range(4))
    run(compiledopt.Adafactor(mine, lr=5.0, **EVERY[executor]), mine, Gradients(), range(4))
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-5, atol=1e-5)


def muon_by_definition(param, grad, buffer, nesterov, adjust_lr_fn, lr=0.02, momentum=0.9, weight_decay=0.3):
    """One step in float64, without any of our code: (new parameter, new momentum)."""
    buffer = momentum * buffer + (1 - momentum) * grad
    x = (1 - momentum) * grad + momentum * buffer if nesterov else buffer
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    rows, columns = param.shape
    ratio = {
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
        "spectral_unclamped": (rows / columns) ** 0.5,
    }.get(adjust_lr_fn, max(1, rows / columns) ** 0.5)
    return param - lr * weight_decay * param - lr * ratio * x, buffer


@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw", "spectral_unclamped"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_muon_against_its_definition(executor, nesterov, adjust_lr_fn, monkeypatch):
    """With products in float64, where rounding hides nothing: torch's bfloat16 leaves a few per cent of each step open."""
    from compiledopt.algorithms import muon

    monkeypatch.setattr(muon, "product_dtype", lambda _: torch.float64)
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    params = parameters(torch.float64, MUON_SHAPES)
    expected, buffers = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    optimizer = compiledopt.Muon(params, **options, **EXECUTORS[executor])
    for step in range(3):
        run(optimizer, params, Gradients(torch.float64), [step])
        for i, param in enumerate(params):
            expected[i], buffers[i] = muon_by_definition(expected[i], param.grad, buffers[i], nesterov, adjust_lr_fn)
    assert optimizer.executor == executor
    for param, wanted, buffer in zip(params, expected, buffers, strict=True):
        torch.testing.assert_close(param.detach(), wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], buffer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_muon_rounds_where_torch_does(executor):
    """Products in bfloat16 magnify every other rounding: a step is torch's to float32's last bits, stacked or not."""
    from compiledopt.algorithms.muon import product_dtype

    shapes = [(20, 30), (30, 20), (20, 30), (64, 64), (64, 64), (20, 30)]
    start, theirs, mine = (parameters(shapes=shapes) for _ in range(3))
    run(torch.optim.Muon(theirs, lr=0.02), theirs, Gradients(), range(1))
    run(compiledopt.Muon(mine, lr=0.02, **EXECUTORS[executor]), mine, Gradients(), range(1))
    effect = rms(flat(theirs) - flat(start))
    assert effect > 0.001
    # Where bfloat16 is not multiplied natively, ours is nearer to the truth than torch's, by as much as torch's is off.
    tolerance = 1e-5 if product_dtype("cpu") is torch.bfloat16 else 0.05
    assert rms(flat(mine) - flat(theirs)) <= tolerance * effect


def test_products_are_in_the_dtype_that_is_fast(monkeypatch):
    from compiledopt.algorithms import muon

    for known, dtype in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        muon.product_dtype.cache_clear()
        assert muon.product_dtype("cpu") is dtype
        assert muon.orthogonalize(torch.randn(4, 4), (3.0, -4.0, 2.0), 1, 1e-7).dtype is dtype
    muon.product_dtype.cache_clear()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_stacked_and_one_by_one_agree(name):
    """Two groups that differ, gradients that come and go, steps that fall apart."""
    results = []
    for options in executors(name).values():
        params = parameters(shapes=shapes_of(name))
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.1, "weight_decay": 0.2}]
        optimizer = getattr(compiledopt, name)(groups, **options)
        run(optimizer, params, Gradients(skip=True), range(15))
        Gradients().set(params, 15)
        params[0].grad = params[-1].grad = None  # each of a shape that others have, which go on from another count
        optimizer.step()
        run(optimizer, params, Gradients(), range(16, 19))
        results.append((flat(params), optimizer))
    effect = rms(results[0][0] - flat(parameters(shapes=shapes_of(name))))
    assert effect > 0.01
    for result in results[1:]:
        assert (results[0][0] - result[0]).abs().max() <= max(1e-4, of_products(name)) * effect
    for p, q in zip(*[[p for g in o.param_groups for p in g["params"]] for _, o in results[:2]], strict=True):
        a, b = results[0][1].state[p], results[1][1].state[q]
        assert a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)
        assert "step" not in a or a["step"] == b["step"]


def loaded(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(("name", "label", "executor"), RUNS)
def test_from_torch_and_back(name, label, executor):
    alone, mixed = parameters(shapes=shapes_of(name)), parameters(shapes=shapes_of(name))
    reference = made(torch.optim, name, label, alone)
    run(reference, alone, Gradients(), range(9))
    first = made(torch.optim, name, label, mixed)
    run(first, mixed, Gradients(), range(3))
    second = made(compiledopt, name, label, mixed)
    second.load_state_dict(loaded(first))
    for group in second.param_groups:
        group.update(EVERY[executor])
    run(second, mixed, Gradients(), range(3, 6))
    assert second.executor == executor
    third = made(torch.optim, name, label, mixed)
    third.load_state_dict(loaded(second))
    run(third, mixed, Gradients(), range(6, 9))
    effect = rms(flat(alone) - flat(parameters(shapes=shapes_of(name))))
    assert (flat(alone) - flat(mixed)).abs().max() <= max(1e-3, of_products(name)) * effect
    for p, q in zip(alone, mixed, strict=True):
        assert list(reference.state[p]) == list(third.state[q])
        assert all(reference.state[p][k].shape == third.state[q][k].shape for k in reference.state[p])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_clones_go_on_alone(name, clone):
    params = parameters(shapes=shapes_of(name))
    original = getattr(compiledopt, name)(params)
    run(original, params, Gradients(), range(3))
    twin = clone(original)
    twins = [p for group in twin.param_groups for p in group["params"]]
    run(twin, twins, Gradients(), range(3, 6))
    run(original, params, Gradients(), range(3, 6))
    assert same(snapshot(original), snapshot(twin))


@pytest.mark.parametrize(("name", "executor"), [(name, each) for name in CONFIGURATIONS for each in executors(name)])
def test_a_bad_gradient_changes_nothing(name, executor):
    params = parameters(shapes=shapes_of(name))
    optimizer = getattr(compiledopt, name)(params, **EVERY[executor])
    for _ in range(2):
        Gradients().set(params, 0)
        params[3].grad = torch.randn(params[3].shape).to_sparse()
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=f"{name} does not support sparse gradients"):
            optimizer.step()
        assert same(before, snapshot(optimizer))
        Gradients().set(params, 0)
        optimizer.step()
    params = [torch.nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))]
    optimizer = getattr(compiledopt, name)(params)
    Gradients(torch.complex64).set(params, 0)
    with pytest.raises(RuntimeError, match=f"{name} does not support complex parameters"):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Muon", {}, "muon is declared with elementwise=False"),
        ("Adafactor", {"capturable": True}, "adafactor reduces, and such rules are not compiled with capturable=True"),
    ],
)
def test_compiled_where_it_cannot_be_had(name, options, reason):
    params = parameters(shapes=[(3, 4)])
    params[0].grad = torch.ones(3, 4)
    with pytest.raises(RuntimeError, match=f"compiled=True cannot be had: {reason}"):
        getattr(compiledopt, name)(params, compiled=True, **options).step()


def test_adafactors_special_values():
    """Zeros, infinities and NaNs in gradients end up where torch puts them; an empty parameter is no division by zero."""
    for shape in [(6, 5), (9,)]:
        theirs, mine = parameters(shapes=[shape]), parameters(shapes=[shape])
        pair = [(torch.optim.Adafactor(theirs), theirs), (compiledopt.Adafactor(mine), mine)]
        for value in (0.0, None, torch.inf, torch.nan):
            for optimizer, params in pair:
                Gradients().set(params, 0)
                params[0].grad.view(-1)[:2] = value if value is not None else 1e-30
                if value == 0.0:
                    params[0].grad.zero_()
                optimizer.step()
            torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-6, equal_nan=True)
    empty = torch.nn.Parameter(torch.empty(0))
    empty.grad = torch.empty(0)
    compiledopt.Adafactor([empty]).step()


# ---- sparse gradients ----

SPARSE = {one.name: one.sparse for one in CATALOG.values() if one.sparse}


def set_sparse(params, step, dtype=torch.float32):
    """Rows named once, twice and never, and now and then no row at all."""
    generator = torch.Generator().manual_seed(step)
    for param in params:
        rows = torch.randint(0, param.shape[0], (1, 0 if step % 5 == 4 else 4), generator=generator)
        values = torch.randn(rows.shape[1], *param.shape[1:], generator=generator).to(dtype).to(param.dtype)
        param.grad = torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), [(name, options) for name, each in SPARSE.items() for options in each])
def test_sparse_gradients(name, options, dtype):
    shapes = [(20, 5), (9,), (6, 2, 3)]
    start = parameters(dtype, shapes)
    theirs, mine, oracle = copies(start), copies(start), copies(start, torch.float64)
    reference, optimizer = getattr(torch.optim, name)(theirs, **options), getattr(compiledopt, name)(mine, **options)
    exact = getattr(torch.optim, name)(oracle, **options)
    for step in range(12):
        for one, params in ((reference, theirs), (optimizer, mine), (exact, oracle)):
            set_sparse(params, step, dtype)
            one.step()
    effect = rms(flat(oracle) - flat(start))
    error, torch_error = flat(mine) - flat(oracle), flat(theirs) - flat(oracle)
    assert effect > 0.01 and optimizer.executor == "for-loop"
    assert rms(error) <= 1.1 * rms(torch_error) + 1e-6 * effect
    if dtype is not torch.bfloat16:
        assert (flat(mine) - flat(theirs)).abs().max() <= 1e-5 * effect
    for p, q in zip(theirs, mine, strict=True):
        assert list(reference.state[p]) == list(optimizer.state[q])
        for key, value in reference.state[p].items():
            if isinstance(value, torch.Tensor) and dtype is not torch.bfloat16:
                assert value.layout is optimizer.state[q][key].layout
                torch.testing.assert_close(value.to_dense(), optimizer.state[q][key].to_dense(), rtol=1e-5, atol=1e-6)


def test_untouched_rows_are_not_read():
    """A NaN in a row that no gradient names stays where it is, and stays alone."""
    for one in (one for one in CATALOG.values() if one.sparse):
        param = torch.nn.Parameter(torch.randn(5, 3))
        optimizer = one.ours([param], lr=0.1)
        param.grad = torch.sparse_coo_tensor([[1, 3]], torch.randn(2, 3), (5, 3))
        optimizer.step()
        with torch.no_grad():
            for value in (param, *optimizer.state[param].values()):
                if value.shape == param.shape:
                    value[0] = torch.nan
        before = param.detach().clone()
        optimizer.step()
        assert param[0].isnan().all() and not param[1:].isnan().any()
        assert torch.equal(before[[2, 4]], param.detach()[[2, 4]]) and not torch.equal(before[1], param[1])


def test_sparse_gradients_that_do_not_fit():
    def grad(param):
        return torch.sparse_coo_tensor([[1]], torch.ones(1, *param.shape[1:]), param.shape)

    dense, param = parameters(shapes=[(4, 2), (4, 2)])
    for name, options, words in (
        ("SGD", {"weight_decay": 0.1}, "add(sparse, dense) is not supported"),
        ("Adagrad", {"weight_decay": 0.1}, "weight_decay option is not compatible with sparse gradients"),
        ("Adam", {}, "Adam does not support sparse gradients, please consider SparseAdam instead"),
        ("RMSprop", {}, "RMSprop does not support sparse gradients"),
        ("SGD", {"compiled": True}, "compiled=True cannot be had"),
    ):
        optimizer = getattr(compiledopt, name)([dense, param], **options)
        dense.grad, param.grad = torch.ones(4, 2), grad(param)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=re.escape(words)):
            optimizer.step()
        assert same(before, snapshot(optimizer))
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"):
        compiledopt.SparseAdam([dense]).step()


def test_from_dense_to_sparse_and_back():
    theirs, mine = parameters(shapes=[(6, 2)]), parameters(shapes=[(6, 2)])
    pair = [(torch.optim.SGD(theirs, lr=0.1, momentum=0.9), theirs), (compiledopt.SGD(mine, lr=0.1, momentum=0.9), mine)]
    for step in range(6):
        for optimizer, params in pair:
            set_sparse(params, step) if step % 2 else Gradients().set(params, step)
            optimizer.step()
    torch.testing.assert_close(mine[0], theirs[0])
    param = parameters(shapes=[(6, 2)])[0]
    optimizer = compiledopt.SGD([param], lr=0.1, momentum=0.9)
    set_sparse([param], 0)
    optimizer.step()
    param.grad = torch.ones(6, 2)
    with pytest.raises(RuntimeError, match="state 'momentum_buffer' is sparse"):
        optimizer.step()


def test_sparse_adam_takes_torchs_state():
    theirs, mine = parameters(shapes=[(20, 5)]), parameters(shapes=[(20, 5)])
    reference, first = torch.optim.SparseAdam(theirs, lr=0.1), torch.optim.SparseAdam(mine, lr=0.1)
    for step in range(4):
        set_sparse(theirs, step)
        reference.step()
        if step < 2:
            set_sparse(mine, step)
            first.step()
    second = compiledopt.SparseAdam(mine, lr=0.1)
    second.load_state_dict(loaded(first))
    set_sparse(mine, 2)
    second.step()
    third = torch.optim.SparseAdam(mine, lr=0.1)
    third.load_state_dict(loaded(second))
    set_sparse(mine, 3)
    third.step()
    torch.testing.assert_close(theirs[0], mine[0])


# ---- LBFGS ----

LBFGS = {
    "default": {},
    "small_lr": {"lr": 0.1},
    "history": {"lr": 0.5, "max_iter": 6, "history_size": 3},
    "wolfe": {"line_search_fn": "strong_wolfe"},
    "wolfe_few": {"lr": torch.tensor(0.3), "line_search_fn": "strong_wolfe", "max_eval": 7, "max_iter": 4},
    "tolerances": {"lr": 0.5, "tolerance_grad": 0.05, "tolerance_change": 0.01},
    "wolfe_long": {"lr": 30.0, "line_search_fn": "strong_wolfe"},
}


class Problem:
    """A small network on fixed data, all in float64 unless asked otherwise."""

    def __init__(self, dtype=torch.float64):
        torch.manual_seed(0)
        self.x, weights = torch.randn(64, 6, dtype=dtype), torch.randn(6, 2, dtype=dtype)
        self.y = torch.sin(self.x @ weights * 2)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)
        self.calls = 0

    def closure(self):
        self.calls += 1
        self.model.zero_grad()
        loss = (self.model(self.x) - self.y).square().mean()
        loss.backward()
        return loss

    def run(self, optimizer, steps):
        return [optimizer.step(self.closure).item() for _ in range(steps)]


@pytest.mark.parametrize("label", LBFGS)
def test_lbfgs_is_torchs(label):
    theirs, mine = Problem(), Problem()
    reference = torch.optim.LBFGS(theirs.model.parameters(), **LBFGS[label])
    optimizer = compiledopt.LBFGS(mine.model.parameters(), **LBFGS[label])
    losses, mine_losses = theirs.run(reference, 4), mine.run(optimizer, 4)
    assert losses[-1] < 0.95 * losses[0], "nothing was learned, so nothing is tested"
    assert mine_losses == pytest.approx(losses, rel=1e-9) and mine.calls == theirs.calls
    state, expected = next(iter(optimizer.state.values())), next(iter(reference.state.values()))
    assert state["n_iter"] == expected["n_iter"] and state["func_evals"] == expected["func_evals"]
    assert state.keys() == expected.keys() - {"al"}


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_climbs(search):
    """Up the negative loss, as down the loss, and the loss that is returned is the closure's."""
    down, up = Problem(), Problem()
    losses = down.run(compiledopt.LBFGS(down.model.parameters(), lr=0.5, line_search_fn=search), 3)
    optimizer = compiledopt.LBFGS(up.model.parameters(), lr=0.5, line_search_fn=search, maximize=True)

    def closure():
        up.model.zero_grad()
        height = -(up.model(up.x) - up.y).square().mean()
        height.backward()
        return height

    assert [-optimizer.step(closure).item() for _ in range(3)] == losses
    for one, other in zip(up.model.parameters(), down.model.parameters(), strict=True):
        assert torch.equal(one, other)
    old = optimizer.state_dict()
    del old["param_groups"][0]["maximize"]
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["maximize"] is False


def test_lbfgs_without_parameters_returns_the_loss():
    optimizer = compiledopt.LBFGS([{"params": []}])
    assert optimizer.step(lambda: 7.0) == 7.0 and not optimizer.state and "0 tensors" in optimizer.explain()


def test_lbfgs_exchanges_states():
    for source, target in ((torch.optim, compiledopt), (compiledopt, torch.optim)):
        straight, mixed = Problem(), Problem()
        losses = straight.run(torch.optim.LBFGS(straight.model.parameters(), lr=0.3), 4)
        first = source.LBFGS(mixed.model.parameters(), lr=0.3)
        got = mixed.run(first, 2)
        second = target.LBFGS(mixed.model.parameters(), lr=0.3)
        second.load_state_dict(loaded(first))
        assert got + mixed.run(second, 2) == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("label", ["default", "wolfe"])
def test_lbfgs_goes_back_where_its_closure_raises(label, at):
    problem = Problem()
    optimizer = compiledopt.LBFGS(problem.model.parameters(), **LBFGS[label])
    problem.run(optimizer, 1)
    twin = copy.deepcopy(problem)
    before = [p.detach().clone() for p in problem.model.parameters()]
    state = copy.deepcopy(next(iter(optimizer.state.values())))
    problem.calls = 0

    def failing():
        if problem.calls == at - 1:
            raise ZeroDivisionError
        return problem.closure()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    assert same(before, [p.detach() for p in problem.model.parameters()])
    assert same(state, dict(next(iter(optimizer.state.values()))))
    del twin


def test_lbfgs_complex_missing_and_sparse_gradients():
    for module in (torch.optim, compiledopt):
        torch.manual_seed(0)
        z = torch.nn.Parameter(torch.randn(3, dtype=torch.complex128))
        idle = torch.nn.Parameter(torch.randn(2, dtype=torch.float64))
        table = torch.nn.Parameter(torch.randn(5, 2, dtype=torch.float64))
        optimizer = module.LBFGS([z, idle, table], lr=0.5, max_iter=8)

        def closure(optimizer=optimizer, z=z, table=table):
            optimizer.zero_grad()
            rows = torch.nn.functional.embedding(torch.tensor([1, 3]), table, sparse=True)
            loss = (z.abs() - 2).square().sum() + (rows - 1).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        if module is torch.optim:
            expected = [t.detach().clone() for t in (z, idle, table)]
    for got, want in zip((z, idle, table), expected, strict=True):
        torch.testing.assert_close(got.detach(), want)
    assert "flat vectors" in compiledopt.LBFGS.__doc__ or "one vector" in optimizer.explain()
    with pytest.raises(ValueError, match=re.escape("LBFGS doesn't support per-parameter options (parameter groups)")):
        optimizer.add_param_group({"params": parameters(shapes=[(2,)])})
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        compiledopt.LBFGS([idle], line_search_fn="armijo").step(lambda: 0)


# ---- torch's database, and signatures ----


def error_inputs():
    for info in optim_db:
        name = info.optim_cls.__name__
        for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32) if name in NAMES else []:
            yield pytest.param(name, error, id=f"{name}-{error.optimizer_error_input.desc}")


@pytest.mark.parametrize(("name", "error"), list(error_inputs()))
def test_torchs_error_inputs(name, error):
    given = error.optimizer_error_input
    params = given.params if given.params is not None else parameters(shapes=[(1, 1)])
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with expected(error.error_type, match=error.error_regex):
            getattr(compiledopt, name)(params, **given.kwargs)
    else:
        optimizer = getattr(compiledopt, name)(params, **given.kwargs)
        with expected(error.error_type, match=error.error_regex):
            optimizer.step()


def inputs():
    for info in optim_db:
        name = info.optim_cls.__name__
        for given in info.optim_inputs_func(device="cpu") if name in CONFIGURATIONS else []:
            yield pytest.param(name, given.kwargs, id=f"{name}-{given.desc}")


@pytest.mark.parametrize(("name", "kwargs"), list(inputs()))
def test_torchs_inputs(name, kwargs):
    theirs, mine = parameters(shapes=MUON_SHAPES), parameters(shapes=MUON_SHAPES)
    run(getattr(torch.optim, name)(theirs, **kwargs), theirs, Gradients(), range(10))
    run(getattr(compiledopt, name)(mine, **kwargs), mine, Gradients(), range(10))
    effect = rms(flat(theirs) - flat(parameters(shapes=MUON_SHAPES)))
    assert effect > 1e-4
    # An element that bfloat16 rounds to its other neighbour before products is off by 0.4% of itself.
    assert (flat(theirs) - flat(mine)).abs().max() <= max(2e-3, of_products(name)) * effect


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_torchs(name):
    ours = inspect.signature(getattr(compiledopt, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    assert [key for key in ours if key in theirs] == list(theirs)
    for key, parameter in ours.items():
        if key in theirs:
            assert parameter.kind == theirs[key].kind and parameter.default == theirs[key].default
        else:
            assert parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
            assert parameter.default in (None, False, parameter.empty)
