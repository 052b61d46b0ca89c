"""Every Case × executor × dtype, against torch's for-loop and against a float64 oracle."""

from functools import lru_cache

import pytest
import torch
from catalog import BASELINE, CASES, DTYPES, EXECUTORS, Case, in_every_dtype
from helpers import Gradients, copies, flat, parameters, rms, run

STEPS = range(100)


def as_floats(options):
    """A tensor lr makes torch compute its scalars in float32; the oracle has the same numbers in float64."""

    def plain(value):
        return (
            tuple(map(plain, value)) if isinstance(value, tuple) else float(value) if isinstance(value, torch.Tensor) else value
        )

    return {name: plain(value) for name, value in options.items()}


@lru_cache
def reference(case: Case, dtype: torch.dtype):
    """(start, torch's for-loop in dtype, the same in float64), flat, after all steps, from the same numbers."""
    start, baseline = parameters(dtype), BASELINE.get(case.label, {})
    torchs, oracle = copies(start), copies(start, torch.float64)
    run(case.torch(torchs, dtype, **baseline), torchs, Gradients(dtype), STEPS)
    torch.set_default_dtype(torch.float64)  # for the 0-dim states: NAdam's mu_product is float32 otherwise
    try:
        run(case.torch(oracle, dtype, **{**as_floats(case.kwargs(dtype)), **baseline}), oracle, Gradients(dtype), STEPS)
    finally:
        torch.set_default_dtype(torch.float32)
    return flat(start), flat(torchs), flat(oracle)


def ours(case: Case, executor: str, dtype: torch.dtype) -> torch.Tensor:
    params = copies(parameters(dtype))
    optimizer = case.ours(params, executor, dtype)
    run(optimizer, params, Gradients(dtype), STEPS)
    assert optimizer.executor == executor
    assert all(param.dtype is dtype for param in params)
    return flat(params)


# These differ from others in where their numbers come from, not in what is done to an element: one dtype tells.
NUMBERS = ("tensor_lr", "one_element_lr", "tensor_weight_decay", "tensor_betas", "capturable")
RUNS = in_every_dtype([case for case in CASES if case.label not in NUMBERS], DTYPES)
RUNS += in_every_dtype([case for case in CASES if case.label in NUMBERS], [])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_error_against_the_oracle(case, dtype, executor):
    start, torchs, oracle = reference(case, dtype)
    result = ours(case, executor, dtype)
    effect = rms(oracle - start)
    assert effect > 0.01, "the case moves nothing, so it tests nothing"
    # In float64 torch's for-loop is the oracle itself: what is left is the noise of its own rounding over 100 steps.
    noise = (1e-14 if dtype is torch.float64 else 0.0) * max(1.0, oracle.abs().max().item())
    error, torch_error = result - oracle, torchs - oracle
    assert rms(error) <= 1.1 * rms(torch_error) + noise
    assert error.abs().max() <= 2 * torch_error.abs().max() + 10 * noise
    if dtype in (torch.float32, torch.float64):
        assert (result - torchs).abs().max() <= 1e-4 * effect


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_and_missing_gradients(case, executor):
    """States as torch's, where each parameter lacks its gradient now and then and so falls behind in steps."""
    theirs, mine = parameters(), parameters()
    baseline = case.torch(theirs, **BASELINE.get(case.label, {}))
    optimizer = case.ours(mine, executor)
    gradients = Gradients(skip=True)
    run(baseline, theirs, gradients, range(30))
    run(optimizer, mine, gradients, range(30))
    assert (flat(mine) - flat(theirs)).abs().max() <= 1e-5
    for p, q in zip(theirs, mine, strict=True):
        assert list(baseline.state[p]) == list(optimizer.state[q])
        for name, value in baseline.state[p].items():
            other = optimizer.state[q][name]
            assert other.shape == value.shape and other.dtype == value.dtype and other.device == value.device
            scale = 1 if value.numel() == 0 else max(1, value.abs().max().item())
            torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", [c for c in CASES if c.label in ("default", "momentum_decay", "all")], ids=str)
def test_complex(case, executor, dtype):
    theirs, mine = parameters(dtype), parameters(dtype)
    run(case.torch(theirs), theirs, Gradients(dtype), range(20))
    optimizer = case.ours(mine, executor)
    run(optimizer, mine, Gradients(dtype), range(20))
    effect = rms(flat(theirs) - flat(parameters(dtype)))
    assert effect > 0.01
    assert (flat(mine) - flat(theirs)).abs().max() <= 1e-4 * effect
    tensors = [s for p in mine for name, s in optimizer.state[p].items() if name not in optimizer.rule.scalars]
    assert all(tensor.dtype == dtype for tensor in tensors)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_special_values(case, executor):
    """Zeros, infinities and NaNs in gradients end up where torch puts them."""
    theirs, mine = parameters(shapes=[(64,), (5, 3)]), parameters(shapes=[(64,), (5, 3)])
    baseline = case.torch(theirs, **BASELINE.get(case.label, {}))
    optimizer = case.ours(mine, executor)
    for step in range(4):
        for params in (theirs, mine):
            Gradients().set(params, step)
            for param in params:
                view = param.grad.view(-1)
                view[0], view[1], view[2] = 0.0, -0.0, 0.0
                if step == 1:
                    view[3], view[4], view[5], view[6] = torch.inf, -torch.inf, torch.nan, 1e-40
        baseline.step()
        optimizer.step()
    # An infinity that took part in different orders of operations is infinite or NaN in one more element at most.
    for p, q in zip(theirs, mine, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5, equal_nan=True)
        for name, value in baseline.state[p].items():
            if name != "ax":  # test_asgds_average_of_an_infinite_parameter
                torch.testing.assert_close(optimizer.state[q][name], value, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_asgds_average_of_an_infinite_parameter(executor):
    """torch copies a parameter while μ = 1, and its average is NaN from then on too."""
    case = next(case for case in CASES if str(case) == "ASGD-default")
    theirs, mine = (torch.nn.Parameter(torch.tensor([1.0, torch.inf])) for _ in range(2))
    baseline, optimizer = case.torch([theirs], t0=1), case.ours([mine], executor, t0=1)
    for step in range(5):
        for one in (baseline, optimizer):
            param = one.param_groups[0]["params"][0]
            param.grad = torch.zeros_like(param)
            one.step()
        torch.testing.assert_close(mine, theirs)
        a, b = baseline.state[theirs], optimizer.state[mine]
        assert b["ax"][1].isnan()
        assert a["ax"][1].isinf() if step < 3 else a["ax"][1].isnan()
        torch.testing.assert_close(b["ax"][0], a["ax"][0])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", [c for c in CASES if c.label in ("default", "all", "momentum")], ids=str)
def test_two_groups_that_differ(case, executor):
    def groups(params, **flags):
        other = {"lr": 0.003, "weight_decay": 0.3, "maximize": not case.kwargs().get("maximize", False)}
        if case.of.takes("dampening"):
            other |= {"momentum": 0.0 if case.kwargs().get("momentum") else 0.7, "dampening": 0.0}
        else:
            other |= {"betas": (0.5, 0.9), "eps": 1e-4, "amsgrad": not case.kwargs().get("amsgrad", False)}
        return [{"params": params[:2]}, {"params": params[2:], **other, **flags}]

    theirs, mine = parameters(), parameters()
    run(case.torch(groups(theirs)), theirs, Gradients(), range(20))
    optimizer = case.ours(groups(mine), executor)
    run(optimizer, mine, Gradients(), range(20))
    assert (flat(mine) - flat(theirs)).abs().max() <= 1e-5


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", [c for c in CASES if c.label == "default"], ids=str)
def test_long_run(case, executor):
    """200 steps under a schedule of lr that is changed from outside."""
    theirs, mine = parameters(), parameters()
    pair = [(case.torch(theirs), theirs), (case.ours(mine, executor), mine)]
    for optimizer, params in pair:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        for step in range(200):
            Gradients().set(params, step)
            optimizer.step()
            scheduler.step()
    assert (flat(mine) - flat(theirs)).abs().max() <= 2e-5
