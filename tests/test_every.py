"""Work that is due every so many steps, and flags that turn: plans are kept, and what is not due is not done."""

import copy
import io

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import schedules
from compiledopt.stats import STATS

CALLS = []


@compiledopt.define(initial={"slow": lambda param: param.clone()}, every={"sync": "k"})
def Slow(param, grad, slow, *, lr=0.1, k=3, alpha=0.5, sync):
    """Gradient descent that is drawn back every k steps."""
    param = param - lr * grad
    if sync:
        param = slow = slow + alpha * (param - slow)
    return param, slow


def square(param):
    return param.new_zeros(param.shape[0], param.shape[0])


@compiledopt.define(elementwise=False, every={"refresh": ("often", 1)}, initial={"gram": square, "root": square})
def Whitened(param, grad, gram, root, *, lr=0.1, often=4, refresh):
    """Gradient descent in a basis that is made anew at the first step and at each `often` from there."""
    gram = gram + grad @ grad.mT if grad.ndim == 2 else gram
    if refresh:
        CALLS.append(tuple(param.shape))
        root = torch.linalg.qr(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).Q
    return param - lr * (root @ grad), gram, root


def slow_by_hand(params, steps, k=3, alpha=0.5, lr=0.1):
    slow = [p.detach().clone() for p in params]
    for step in range(steps):
        Gradients(torch.float64).set(params, step)
        with torch.no_grad():
            for p, s in zip(params, slow, strict=True):
                p.sub_(p.grad, alpha=lr(step) if callable(lr) else lr)
                if (step + 1) % k == 0:
                    s.add_(p - s, alpha=alpha)
                    p.copy_(s)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_due_is_done_then(executor):
    mine, theirs = parameters(torch.float64), parameters(torch.float64)
    optimizer = Slow(mine, **EXECUTORS[executor])
    slow_by_hand(theirs, 14)
    run(optimizer, mine, Gradients(torch.float64), range(6))
    built, lowered = STATS.plans_built, STATS.kernels_lowered
    run(optimizer, mine, Gradients(torch.float64), range(6, 14))
    assert (STATS.plans_built, STATS.kernels_lowered) == (built, lowered), "a plan or a kernel was made again"
    assert optimizer.executor == executor and optimizer.param_groups[0]["steps"] == 14
    effect = rms(flat(theirs) - flat(parameters(torch.float64)))
    assert effect > 0.1 and rms(flat(mine) - flat(theirs)) <= 1e-12 * effect


def test_the_program_that_is_not_due_reads_no_slow_weights():
    params = parameters(torch.float32)
    optimizer = Slow(params, k=2)
    run(optimizer, params, Gradients(), range(2))
    read = [part.bytes_written_per_element for part in optimizer._explanation().parts]
    run(optimizer, params, Gradients(), range(2, 3))
    assert read == [4] and [part.bytes_written_per_element for part in optimizer._explanation().parts] == [8]


@pytest.mark.parametrize("executor", ["foreach", "for-loop"])
def test_matrix_work_only_when_due_and_stacked(executor):
    params = parameters(torch.float64, [(6, 6), (6, 6), (4, 5)])
    optimizer = Whitened(params, **EXECUTORS[executor])
    counts = []
    for step in range(9):
        CALLS.clear()
        run(optimizer, params, Gradients(torch.float64), range(step, step + 1))
        counts.append(sum(1 for shape in CALLS if shape))
    due = [count for step, count in enumerate(counts) if step % 4 == 0]
    assert all(counts[step] == 0 for step in range(9) if step % 4) and all(due)
    assert due[1] == (2 if executor == "foreach" else 3), "one call for each stack"


@pytest.mark.parametrize("way", ["file", "deepcopy"])
def test_the_count_goes_through_a_file(way):
    params = parameters(torch.float64)
    optimizer = Slow(params)
    run(optimizer, params, Gradients(torch.float64), range(4))
    if way == "file":
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        others = copies(params)
        other = Slow(others)
        other.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        other = copy.deepcopy(optimizer)
        others = [p for group in other.param_groups for p in group["params"]]
    run(optimizer, params, Gradients(torch.float64), range(4, 7))
    run(other, others, Gradients(torch.float64), range(4, 7))
    assert same(snapshot(optimizer), snapshot(other)) and other.param_groups[0]["steps"] == 7


def test_with_what_stands_around():
    mine, theirs = parameters(torch.float64), parameters(torch.float64)
    lr = 0.1 * schedules.linear(0.2, 1.0, 5)
    optimizer = Slow(mine, lr=lr, max_grad_norm=1e9, ema_decay=0.9)
    slow_by_hand(theirs, 9, lr=lr)
    run(optimizer, mine, Gradients(torch.float64), range(9))
    assert rms(flat(mine) - flat(theirs)) <= 1e-12
    with pytest.raises(TypeError, match="every names 'often'"):
        compiledopt.define(every={"sync": "often"})(lambda param, grad, *, sync: param)


# ---- flags and gradients that turn ----


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_flag_that_turns_builds_no_plans(executor):
    mine, theirs = parameters(), parameters()
    optimizer, reference = (
        compiledopt.SGD(mine, lr=0.1, momentum=0.9, **EXECUTORS[executor]),
        torch.optim.SGD(theirs, lr=0.1, momentum=0.9),
    )
    for step in range(12):
        if step == 4:
            built = STATS.plans_built
        for one, params in ((optimizer, mine), (reference, theirs)):
            one.param_groups[0]["nesterov"] = step % 2 == 1
            one.param_groups[0]["lr"] = 0.1 / (1 + step)
            run(one, params, Gradients(), range(step, step + 1))
    assert STATS.plans_built == built
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-5, atol=1e-6)


def test_gradients_that_take_turns_build_no_plans():
    mine, theirs = parameters(), parameters()
    optimizer, reference = compiledopt.AdamW(mine), torch.optim.AdamW(theirs)
    for step in range(12):
        if step == 4:
            built = STATS.plans_built
        for one, params in ((optimizer, mine), (reference, theirs)):
            Gradients().set(params, step)
            for index, param in enumerate(params):
                param.grad = param.grad if (index + step // 2) % 2 else None
            one.step()
    assert STATS.plans_built == built
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-5, atol=1e-6)


def test_kept_plans_keep_nothing_alive():
    params = parameters()
    optimizer = compiledopt.SGD(params, lr=0.1, momentum=0.9)
    for step in range(8):
        optimizer.param_groups[0]["nesterov"] = step % 2 == 1
        optimizer.param_groups[0]["maximize"] = step % 3 == 1
        run(optimizer, params, Gradients(), range(1))
    assert 1 <= len(optimizer._stepper.kept) <= 3
    others = parameters()
    optimizer.param_groups[0]["params"] = others
    run(optimizer, others, Gradients(), range(1))
    assert not optimizer._stepper.kept
