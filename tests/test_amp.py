"""torch.amp.GradScaler on the CPU: the scale and its verdict are read by the step itself."""

import pytest
import torch
from catalog import EXECUTORS, by_kind
from helpers import Gradients, flat, parameters, rms, run, same, snapshot

import compiledopt


def scaled_run(scaler, optimizer, params, steps, bad=()):
    for step in steps:
        Gradients().set(params, step)
        with torch.no_grad():
            for param in params:
                param.grad.copy_(scaler.scale(param.grad))
            if step in bad:
                params[1].grad[3] = torch.inf
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_as_if_there_were_no_scale(case, executor):
    """A power of two as scale changes no bit of a gradient, so results are those without a scaler, steps left out included."""
    plain, mine = parameters(), parameters()
    reference, optimizer = case.ours(plain, executor), case.ours(mine, executor)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    assert optimizer._step_supports_amp_scaling is (executor == "compiled")
    start = flat(plain)
    run(reference, plain, Gradients(), [0, 1, 4, 5])
    scaled_run(scaler, optimizer, mine, range(6), bad=(2, 3))
    effect = rms(flat(plain) - start)
    assert effect > 1e-3 and optimizer.executor == executor
    assert (flat(mine) - flat(plain)).abs().max() <= 1e-5 * max(1, effect)
    for p, q in zip(plain, mine, strict=True):
        for name, value in reference.state[p].items():
            torch.testing.assert_close(optimizer.state[q][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flag", ["compiled", "fused"])
def test_gradients_are_not_touched_and_a_bad_step_changes_nothing(flag):
    params = parameters()
    optimizer = compiledopt.AdamW(params, **{flag: True})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled_run(scaler, optimizer, params, range(2))
    before = snapshot(optimizer)
    scaled_run(scaler, optimizer, params, [2], bad=(2,))
    assert same([b[0::2] for b in before], [b[0::2] for b in snapshot(optimizer)])
    Gradients().set(params, 3)
    params[0].grad.copy_(scaler.scale(params[0].grad))
    grads = [p.grad.clone() for p in params]
    scaler.step(optimizer)
    assert same(grads, [p.grad for p in params])


def test_unscaled_before_is_not_divided_again():
    """unscale_ and clipping before the step, as trainers do."""
    plain, mine = parameters(), parameters()
    reference, optimizer = compiledopt.AdamW(plain), compiledopt.AdamW(mine, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        Gradients().set(plain, step)
        torch.nn.utils.clip_grad_norm_(plain, 1.0)
        reference.step()
        Gradients().set(mine, step)
        for param in mine:
            param.grad.copy_(scaler.scale(param.grad))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert (flat(mine) - flat(plain)).abs().max() <= 1e-6


@pytest.mark.parametrize("flag", ["compiled", "fused"])
def test_unscaled_at_some_steps_only(flag):
    """Whoever clips at every other step, say: the scale of the last step is not taken out of gradients that have none."""
    plain, mine = parameters(), parameters()
    reference, optimizer = compiledopt.SGD(plain, lr=0.1), compiledopt.SGD(mine, lr=0.1, **{flag: True})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        run(reference, plain, Gradients(), [step])
        Gradients().set(mine, step)
        for param in mine:
            param.grad.copy_(scaler.scale(param.grad))
        if step % 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert (flat(mine) - flat(plain)).abs().max() <= 1e-6
    run(reference, plain, Gradients(), [6])
    run(optimizer, mine, Gradients(), [6])  # without a scaler at all
    assert (flat(mine) - flat(plain)).abs().max() <= 1e-6


def test_who_leaves_it_to_the_scaler():
    """Rules that have no kernel, sparse gradients, and all that is not asked for by name, as torch's fused=True is:
    Lightning takes an optimizer that unscales by itself for one whose gradients it must not clip."""
    params = parameters(shapes=[(4, 3)])
    assert not compiledopt.Adafactor(params)._step_supports_amp_scaling
    assert not compiledopt.Shampoo(params, compiled=True)._step_supports_amp_scaling
    assert compiledopt.Adafactor(params, compiled=True)._step_supports_amp_scaling
    assert not compiledopt.AdamW(params)._step_supports_amp_scaling
    optimizer = compiledopt.SGD(params, fused=True)
    assert optimizer._step_supports_amp_scaling
    params[0].grad = torch.ones(4, 3).to_sparse()
    assert not optimizer._step_supports_amp_scaling
    for options in ({}, {"compiled": True}):
        plain, mine = parameters(shapes=[(4, 3)]), parameters(shapes=[(4, 3)])
        run(compiledopt.Adafactor(plain), plain, Gradients(), range(3))
        scaled_run(torch.amp.GradScaler("cpu", init_scale=4.0), compiledopt.Adafactor(mine, **options), mine, range(3))
        torch.testing.assert_close(plain[0], mine[0])


def test_no_recompile_when_the_scale_changes():
    params = parameters()
    optimizer = compiledopt.AdamW(params, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    scaled_run(scaler, optimizer, params, range(2))
    before = compiledopt.compile_stats()
    scaled_run(scaler, optimizer, params, range(2, 8))
    after = compiledopt.compile_stats()
    assert all(before[key] == after[key] for key in ("kernels_compiled", "kernels_lowered", "programs_traced", "plans_built"))
