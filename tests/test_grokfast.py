"""`grokfast`: against the authors' filter around torch's optimizers, with every executor and beside what else stands around."""

import copy
import io

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import schedules


def filtered(params, averages, alpha=0.98, lamb=2.0):
    """The authors' gradfilter_ema: an average that begins with the first gradient, some times over in each."""
    for param in params:
        if param.grad is not None:
            before = averages.get(param, param.grad)
            averages[param] = alpha * before + (1 - alpha) * param.grad
            param.grad = param.grad + lamb * averages[param]


def trained(make, steps, around=lambda params: None, absent=True, dtype=torch.float64):
    params = parameters(dtype)
    optimizer = make(params)
    for step in range(steps):
        Gradients(dtype).set(params, step)
        for index, param in enumerate(params):
            if absent and (step + index) % 5 == 3:
                param.grad = None
        around(params)
        optimizer.step()
    return optimizer, flat(params)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_against_the_authors_filter(executor):
    """Clipped before it, scheduled and averaged; parameters miss gradients in turns; some have other numbers."""
    for options in ({}, {"max_grad_norm": 1.5, "ema_decay": 0.9, "lr": 0.05 * schedules.linear(0.5, 1.0, 5)}):
        lr, averages, clips = options.get("lr", 0.05), {}, "max_grad_norm" in options

        def around(params, averages=averages, clips=clips):
            if clips:
                torch.nn.utils.clip_grad_norm_(params, 1.5)
            filtered(params[:2], averages, 0.9, 3.0)
            filtered(params[2:], averages)

        def theirs(params, lr=lr, clips=clips):
            optimizer = torch.optim.AdamW(params, lr=0.05, weight_decay=0.1)
            if clips:
                counts = {}

                def rate(optimizer, *_):
                    counts["t"] = counts.get("t", -1) + 1
                    optimizer.param_groups[0]["lr"] = lr(counts["t"])

                optimizer.register_step_pre_hook(rate)
            return optimizer

        def ours(params, options=options):
            groups = [{"params": params[:2], "grokfast": (0.9, 3.0)}, {"params": params[2:], "grokfast": (0.98, 2.0)}]
            return compiledopt.AdamW(groups, weight_decay=0.1, **{"lr": 0.05, **options}, **EXECUTORS[executor])

        absent = not clips  # a schedule counts the steps of each parameter
        _, expected = trained(theirs, 12, around, absent)
        optimizer, found = trained(ours, 12, absent=absent)
        _, plain = trained(lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.1), 12, absent=absent)
        effect = rms(expected - plain)
        assert optimizer.executor == executor and effect > 1e-3 and rms(found - expected) <= 1e-9 * effect, options


RULES = {
    "Muon": (compiledopt.Muon, {"lr": 0.05}, torch.optim.Muon, [(6, 5), (4, 7)]),
    "SGD": (compiledopt.SGD, {"lr": 0.05, "momentum": 0.9}, torch.optim.SGD, [(6, 5), (9,)]),
    "Adafactor": (compiledopt.Adafactor, {"lr": 0.05}, torch.optim.Adafactor, [(6, 5), (9,)]),
}


@pytest.mark.parametrize("name", RULES)
def test_around_every_kind_of_rule(name):
    """One that multiplies matrices, one that asks for its first update, one that reduces."""
    make, options, torchs, shapes = RULES[name]
    mine, theirs, averages = parameters(torch.float32, shapes), parameters(torch.float32, shapes), {}
    ours, reference = make(mine, grokfast=(0.9, 2.0), **options), torchs(theirs, **options)
    for step in range(6):
        Gradients().set(mine, step)
        Gradients().set(theirs, step)
        filtered(theirs, averages, 0.9, 2.0)
        ours.step()
        reference.step()
    assert rms(flat(mine) - flat(theirs)) <= 1e-2 * rms(flat(theirs) - flat(parameters(torch.float32, shapes)))
    assert all("grok_exp_avg" in ours.state[param] for param in mine)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_copied_and_switched_on_and_off(executor, dtype):
    """It begins with the gradient of the step in which it is switched on; off, its average stays as it was."""
    params = parameters(dtype)
    optimizer = compiledopt.AdamW(params, lr=0.01, **EXECUTORS[executor])
    run(optimizer, params, Gradients(dtype), range(3))
    optimizer.param_groups[0]["grokfast"] = (0.9, 2.0)
    run(optimizer, params, Gradients(dtype), range(3, 4))
    assert all(torch.equal(optimizer.state[p]["grok_exp_avg"], p.grad) for p in params)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    others, copied = copies(params), copy.deepcopy(optimizer)
    loaded = compiledopt.AdamW(others, lr=0.01, **EXECUTORS[executor])
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    held = [p for group in copied.param_groups for p in group["params"]]
    for one, own in ((optimizer, params), (loaded, others), (copied, held)):
        run(one, own, Gradients(dtype), range(4, 7))
    assert same(snapshot(optimizer), snapshot(loaded)) and same(snapshot(optimizer), snapshot(copied))
    optimizer.param_groups[0]["grokfast"] = None
    kept = optimizer.state[params[0]]["grok_exp_avg"].clone()
    run(optimizer, params, Gradients(dtype), range(7, 8))
    assert torch.equal(kept, optimizer.state[params[0]]["grok_exp_avg"])


def test_what_is_refused():
    for value, words in (
        (2.0, "it is"),
        ((0.9,), "it is"),
        (("a", 1.0), "it is"),
        ((1.0, 2.0), "alpha must"),
        ((0.9, -1.0), "alpha"),
    ):
        with pytest.raises(ValueError, match=f"Invalid grokfast value.*{words}"):
            compiledopt.AdamW(parameters(), grokfast=value)


def test_the_formula_and_int8():
    params = parameters(shapes=[(64, 128)])
    optimizer = compiledopt.AdamW(params, grokfast=(0.98, 2.0), state_dtype="int8", compiled=True)
    run(optimizer, params, Gradients(), range(6))
    plain = parameters(shapes=[(64, 128)])
    run(compiledopt.AdamW(plain, grokfast=(0.98, 2.0), compiled=True), plain, Gradients(), range(6))
    effect = rms(flat(plain) - flat(parameters(shapes=[(64, 128)])))
    assert effect > 1e-3 and rms(flat(plain) - flat(params)) <= 0.05 * effect
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.int8
    assert optimizer.state[params[0]]["grok_exp_avg"].dtype == torch.float32
    assert "λₑ" in optimizer.explain()
