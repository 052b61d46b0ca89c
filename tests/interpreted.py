"""The GPU executors on CPU tensors, under Triton's interpreter: run by test_triton.py in a process of its own."""

import copy
import dataclasses

import pytest
import torch
from catalog import CASES, one_per_kind, with_and_without_count
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import schedules
from compiledopt.backends import devices
from compiledopt.backends.triton import capturable as capturing
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import norm, proof, readiness, tables
from compiledopt.backends.triton.batch import TritonBatch
from compiledopt.backends.triton.capturable import CapturableBatch

# Each algorithm under its richest options. Others are other elementwise parts, which the C++ kernels are tried with
# and Inductor writes here as there; numbers that are tensors matter here, for one algorithm as for all.
OTHERS = ("SGD-nesterov", "SGD-tensor_lr", "ASGD-averaging", "AdamW-tensor_betas", "RMSprop-centered", "Adam-amsgrad")
ELEMENTWISE = [case for case in CASES if case.label == "all" or str(case) in (*OTHERS, "SGD-default", "AdamW-default")]
# Whole blocks, ragged ones, aligned and not, empty, 0-dim, and one that starts in the middle of a storage.
SHAPES = [(40, 50), (3001,), (), (0,), (1, 7), (2048,), (16,)]


def model(dtype=torch.float32):
    params = parameters(dtype, SHAPES)
    odd = torch.randn(101, generator=torch.Generator().manual_seed(5)).to(dtype)
    return [*params, torch.nn.Parameter(odd[1:])]


def started(case, capturable, dtype=torch.float32, **more):
    reference, mine = model(dtype), model(dtype)
    flags = {"capturable": True} if capturable else {}
    kwargs = {k: v for k, v in case.kwargs(dtype).items() if k != "capturable"}
    algorithm = getattr(compiledopt, case.algorithm)
    expected = algorithm(reference, foreach=False, **copy.deepcopy(kwargs), **more)
    return expected, reference, algorithm(mine, compiled=True, **kwargs, **flags, **more), mine


# With capturable both kernels run, so that the rest repeats what is known of the C++ kernels.
KINDS = {one.name for one in one_per_kind(lambda one: one.elementwise)} | {"NAdam"}  # which has a state of no dimension
RICHEST = [case for case in ELEMENTWISE if case.label == "all" and case.algorithm in KINDS]
HERE = [(case, True) for case in ELEMENTWISE if case in RICHEST or str(case) == "AdamW-default"]
HERE += [(case, False) for case in ELEMENTWISE if str(case) in ("AdamW-default", "SGD-tensor_lr", "Adam-amsgrad")]


@pytest.mark.parametrize(
    ("case", "capturable"),
    [
        pytest.param(case, capturable, id=f"{case}-{capturable}", marks=() if (case, capturable) in HERE else pytest.mark.slow)
        for case in ELEMENTWISE
        for capturable in (False, True)
    ],
)
def test_against_the_for_loop(case, capturable):
    """Absent gradients let parameters fall behind; lr changes at each step; states are compared too."""
    expected, reference, optimizer, mine = started(case, capturable)
    start = flat(reference)
    for step in range(5):
        for one, params in ((expected, reference), (optimizer, mine)):
            run(one, params, Gradients(skip=True), range(step, step + 1))
            group = one.param_groups[0]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].mul_(0.9)
            else:
                group["lr"] *= 0.9
    batch = optimizer._plan.batches[0]
    assert type(batch) is (CapturableBatch if capturable else TritonBatch) and optimizer.executor == "compiled"
    effect = rms(flat(reference) - start)
    assert effect > 1e-3 and (flat(mine) - flat(reference)).abs().max() <= 1e-4 * effect
    for p, q in zip(reference, mine, strict=True):
        assert list(expected.state[p]) == list(optimizer.state[q])
        for name, value in expected.state[p].items():
            torch.testing.assert_close(optimizer.state[q][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_other_dtypes(dtype, capturable):
    """bfloat16 is left to the PTX: the interpreter cuts it off instead of rounding."""
    case = next(c for c in CASES if str(c) == "Adam-amsgrad")
    expected, reference, optimizer, mine = started(case, capturable, dtype)
    start = flat(reference)
    for one, params in ((expected, reference), (optimizer, mine)):
        run(one, params, Gradients(dtype), range(3))
    effect = rms(flat(reference) - start)
    assert effect > 1e-3
    assert rms(flat(mine) - flat(reference)) <= (0.02 if dtype is torch.float16 else 1e-5) * effect


def test_groups_that_differ_share_a_launch():
    for capturable in (False, True):
        reference, mine = model(), model()
        optimizers = []
        for params, flags in ((reference, {"foreach": False}), (mine, {"compiled": True, "capturable": capturable})):
            groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.1, "betas": (0.5, 0.6), "weight_decay": 0.3}]
            optimizers.append(compiledopt.AdamW(groups, lr=0.01, **flags))
        for one, params in zip(optimizers, (reference, mine), strict=True):
            run(one, params, Gradients(), range(4))
        assert len(optimizers[1]._plan.batches) == 1
        assert (flat(mine) - flat(reference)).abs().max() <= 1e-6


def test_tables_are_uploaded_only_when_they_change(monkeypatch):
    from compiledopt.backends.triton import capturable

    count = []

    def counted(content, where, *dtype, upload=devices.upload):
        count.append(where)
        return upload(content, where, *dtype)

    for module in (tables, capturable):
        monkeypatch.setattr(module, "upload", counted)
    params = model()
    optimizer = compiledopt.AdamW(params, lr=0.01, compiled=True, capturable=True)
    run(optimizer, params, Gradients(), range(3))
    grads = [p.grad for p in params]
    optimizer.step()
    count.clear()
    optimizer.step()
    assert count == [], "nothing changed, so nothing goes to the device"
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.step()
    assert len(count) == 1, "the numbers of the groups"
    optimizer.param_groups[0]["lr"] = 0.03
    optimizer.refresh()
    assert len(count) == 2
    params[0].grad = grads[0].clone()
    optimizer.step()
    assert len(count) == 3, "the pointers"


def test_refresh_is_what_a_replay_sees():
    """The device's own tables, after `refresh` and without a step, hold the new lr."""
    params = model()
    optimizer = compiledopt.SGD(params, lr=0.5, compiled=True, capturable=True)
    run(optimizer, params, Gradients(), range(2))
    batch = optimizer._plan.batches[0]
    optimizer.param_groups[0]["lr"] = 0.25
    assert 0.5 in batch.mirror.table.tolist()
    optimizer.refresh()
    assert 0.25 in batch.mirror.table.tolist() and 0.5 not in batch.mirror.table.tolist()


def test_toggling_capturable_and_exchanging_states():
    case = next(c for c in CASES if str(c) == "AdamW-all")
    reference, mine = model(), model()
    expected, optimizer = case.ours(reference, "for-loop"), case.ours(mine, "compiled")
    run(expected, reference, Gradients(), range(6))
    run(optimizer, mine, Gradients(), range(2))
    optimizer.param_groups[0]["capturable"] = True
    run(optimizer, mine, Gradients(), range(2, 4))
    assert type(optimizer._plan.batches[0]) is CapturableBatch
    other = case.ours(copies(mine), "compiled")
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[0]["capturable"] = False
    run(other, other.param_groups[0]["params"], Gradients(), range(4, 6))
    assert (flat(other.param_groups[0]["params"]) - flat(reference)).abs().max() <= 1e-5


def test_a_bad_gradient_changes_nothing():
    for capturable in (False, True):
        params = model()
        optimizer = compiledopt.Adam(params, compiled=True, capturable=capturable)
        run(optimizer, params, Gradients(), range(2))
        params[1].grad = torch.zeros(3001).to_sparse()
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        assert same(before, snapshot(optimizer))


def test_blocks_of_lengths_beyond_int32():
    """The cut counts in 64 bits."""
    blocks = tables.cut(torch.tensor([5, 3 * 2**31]), 1024)
    assert blocks.shape[0] == 1 + 3 * 2**31 // 1024 and blocks[-1].tolist() == [1, 3 * 2**31 // 1024 - 1]
    assert (blocks[-1, 1].item() + 1) * 1024 > 2**32


def test_offsets_beyond_int32():
    """A block that begins at 2^32 elements is beyond the end of a short tensor; in 32 bits it would begin at 0, and write."""
    program = compiledopt.rules.traced.traced(compiledopt.SGD.rule, compiledopt.SGD(model()).param_groups[0]).program
    kernel = triton.kernel(program, [torch.float32] * 2)
    param, grad, table = torch.zeros(100), torch.ones(100), torch.ones(kernel.columns)
    pointers, lengths, rows = torch.tensor([param.data_ptr(), grad.data_ptr()]), torch.tensor([100]), torch.tensor([0])
    for part, written in ((2**32 // 1024, 0.0), (0, -1.0)):
        blocks = torch.tensor([[0, part]], dtype=torch.int32)
        columns = [1.0] * (triton.FEW * kernel.columns)
        kernel.function[(1,)](pointers, lengths, rows, blocks, table, *columns, ROWS=1, XBLOCK=1024, num_warps=4)
        assert param.tolist() == [written] * 100


def test_the_verdict_of_a_scaler_is_read_on_the_device():
    """found_inf and grad_scale as tensors that the host does not read; nothing changes where found_inf is not 0."""
    from compiledopt.around.loss_scale import Scaling
    from compiledopt.step.owner import Owner
    from compiledopt.step.plan import Plan

    reference, mine = model(), model()
    expected = compiledopt.AdamW(reference, lr=0.01, foreach=False)
    optimizer = compiledopt.AdamW(mine, lr=0.01, compiled=True, capturable=True)
    scaling, plan = Scaling(), None
    for step in range(5):
        bad = step in (0, 3)
        Gradients().set(mine, step)
        for param in mine:
            param.grad.mul_(4.0)
        if bad:
            mine[1].grad[5] = torch.nan
        else:
            run(expected, reference, Gradients(), [step])
        scaling.set(torch.tensor(4.0), torch.tensor(float(bad)))
        if plan is None:
            plan = Plan(Owner("AdamW", [optimizer.rule], optimizer.param_groups, optimizer.state, set(), set(), scaling))
        before = snapshot(optimizer)
        assert plan.run() and type(plan.batches[0]) is CapturableBatch
        assert same([b[0::2] for b in before], [b[0::2] for b in snapshot(optimizer)]) is bad
    assert (flat(mine) - flat(reference)).abs().max() <= 1e-5
    assert all(optimizer.state[p]["step"] == 3 for p in mine)


def test_explain_tells_of_the_kernel_that_runs():
    optimizer = compiledopt.AdamW(model(), lr=0.01)
    told = optimizer.explain(source=True)
    assert "whole_model(pointers" in told and "1 launch per step" in told and optimizer.executor == "compiled"


@pytest.mark.parametrize(
    ("algorithm", "capturable"),
    [
        pytest.param(one, capturable, marks=[] if one.counts is not capturable else [pytest.mark.slow])
        for one in with_and_without_count()
        for capturable in (False, True)
    ],
    ids=str,
)
def test_schedule_clipping_and_average_on_the_device(algorithm, capturable):
    """Nothing of them is read on the host: the rate from the step on the device, the coefficients where the norm is."""
    reference, mine = model(), model()
    optimizers = []
    for params, flags in ((reference, {"foreach": False}), (mine, {"compiled": True, "capturable": capturable})):
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.1, "max_grad_norm": 2.5}]
        lr = 0.1 * schedules.sequential([schedules.linear(0.1, 1.0, 2), schedules.cosine_annealing_warm_restarts(2, 2)], [2])
        optimizers.append(algorithm.ours(groups, lr=lr, max_grad_norm=5.0, ema_decay=0.5, **flags))
    expected, optimizer = optimizers
    start = flat(reference)
    for step in range(6):
        for one, params in ((expected, reference), (optimizer, mine)):
            run(one, params, Gradients(skip=step > 3), [step])
        assert optimizer.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=1e-6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"], rel=1e-12)
        if step == 2:
            expected.param_groups[1]["max_grad_norm"] = optimizer.param_groups[1]["max_grad_norm"] = 1.25
    kinds = {type(batch) for batch in optimizer._plan.batches}
    assert kinds == {CapturableBatch if capturable else TritonBatch}
    effect = rms(flat(reference) - start)
    assert effect > 1e-4 and (flat(mine) - flat(reference)).abs().max() <= 1e-4 * effect
    averages = [flat(one.ema_parameters()) for one in optimizers]
    assert rms(averages[0] - flat(reference)) > 1e-4
    assert (averages[1] - averages[0]).abs().max() <= 1e-4 * effect


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_norm_is_one_launch(dtype, capturable, monkeypatch):
    """Of ragged tensors, off alignment too, in two groups with other bounds, one of which clips; the same bits at every run."""
    launched, plain = [], tables.launch
    for module in (tables, capturing, norm):
        monkeypatch.setattr(module, "launch", lambda kernel, *rest: launched.append(kernel) or plain(kernel, *rest))
    reference, found = model(dtype), []
    expected = compiledopt.AdamW(
        [{"params": reference[:3]}, {"params": reference[3:], "max_grad_norm": 1.5}], lr=0.1, max_grad_norm=1e4, foreach=False
    )
    run(expected, reference, Gradients(dtype), range(2))
    monkeypatch.setattr(torch, "_foreach_norm", lambda *_: pytest.fail("the norm is measured by torch"))
    for _ in range(2):
        mine = model(dtype)
        groups = [{"params": mine[:3]}, {"params": mine[3:], "max_grad_norm": 1.5}]
        optimizer = compiledopt.AdamW(groups, lr=0.1, max_grad_norm=1e4, compiled=True, capturable=capturable)
        run(optimizer, mine, Gradients(dtype), range(1))
        before = optimizer.grad_norm
        launched.clear()
        run(optimizer, mine, Gradients(dtype), range(1, 2))
        assert len(launched) == 2 + capturable
        exact = torch.cat([param.grad.double().flatten() for param in mine]).norm()
        torch.testing.assert_close(optimizer.grad_norm, exact, rtol=1e-6 if dtype is torch.float32 else 1e-14, atol=0.0)
        assert before != optimizer.grad_norm, "a norm that was read stays as it was"
        found.append((optimizer.grad_norm, flat(mine)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], flat(reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_kernel_that_cannot_run_there(monkeypatch, capturable):
    """Found out before anything is written: an eager executor with the reason, or an error where compiled=True."""

    def refuse(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "_run_on_nothing", refuse)
    params, twins = model(), model()
    optimizer = compiledopt.AdamW(params, capturable=capturable)
    Gradients().set(params, 0)
    with pytest.warns(UserWarning, match="the kernel cannot run on cpu: RuntimeError: no kernel image is available"):
        optimizer.step()
    assert optimizer.executor == "for-loop"
    Gradients().set(twins, 0)
    before = flat(twins)
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: the kernel cannot run on cpu"):
        compiledopt.AdamW(twins, compiled=True).step()
    assert torch.equal(before, flat(twins))


def test_kernels_run_on_nothing_before_a_first_step(monkeypatch):
    """With a row, a few and a table of scalars, and the scalar part's kernel, each without writing anything."""
    from compiledopt.backends.triton import capturable

    launched = []
    for owner, name in ((tables.Tables, "run"), (capturable.RowsLaunch, "__call__")):
        original = getattr(owner, name)

        def watched(*arguments, original=original, name=name):
            before = flat(params)
            original(*arguments)
            launched.append((name, torch.equal(before, flat(params))))

        monkeypatch.setattr(owner, name, watched)
    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "proved", lambda *_: None)
    params = model()
    run(compiledopt.AdamW(params, capturable=True), params, Gradients(), range(1))
    nothing = [("run", True), ("run", True), ("run", True), ("__call__", True)]
    assert launched == [*nothing, ("__call__", True), ("run", False)]


FAULTS = {
    "row": ("table + tl.load(rows + tensor)", "table + tl.load(rows)"),
    "row of few": ("which = tl.load(rows + tensor)", "which = tl.load(rows)"),
    "last element": ("xmask = xindex < xnumel", "xmask = xindex < xnumel - 1"),
    "ragged block": ("(xoffset + XBLOCK <= xnumel)", "(xoffset <= xnumel)"),
    "operand": ("pointers + tensor * 4 + 3)", "pointers + tensor * 4 + 2)"),
    "sign": ("tl.store(p0 + x0, ", "tl.store(p0 + x0, -"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_what_a_kernel_proves(fault):
    program = compiledopt.rules.traced.traced(compiledopt.AdamW.rule, compiledopt.AdamW(model()).param_groups[0]).program
    kernel = triton.kernel(program, [torch.float32] * 4)
    if fault is not None:
        assert kernel.source.count(FAULTS[fault][0]) == 1
        kernel = dataclasses.replace(kernel, source=kernel.source.replace(*FAULTS[fault]))
    wrong = proof.difference(kernel, program, [torch.float32] * 4, torch.device("cpu"), (1024, 4))
    assert wrong is None if fault is None else "not what the for-loop computes" in wrong


def test_a_kernel_that_does_not_prove_itself(monkeypatch, tmp_path):
    """Another executor, with the reason, which is remembered over processes."""
    asked = []
    monkeypatch.setattr(proof, "difference", lambda *_: asked.append(1) or "3 elements of param")
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        monkeypatch.setattr(readiness, "_ready", {})
        params = model()
        Gradients().set(params, 0)
        optimizer = compiledopt.AdamW(params)
        with pytest.warns(UserWarning, match="it does not compute what it should: 3 elements of param"):
            optimizer.step()
        assert optimizer.executor == "for-loop" and len(asked) == 1
