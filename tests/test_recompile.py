"""One kernel whatever the numbers: nothing that may change between steps compiles anything again."""

import pytest
import torch
from catalog import one_per_algorithm
from helpers import Gradients, flat, parameters, run

import compiledopt
from compiledopt import compile_stats

COUNTED = ("programs_traced", "kernels_lowered", "kernels_compiled", "launchers_compiled", "disk_hits", "fallbacks")


def counts():
    stats = compile_stats()
    return {name: stats[name] for name in COUNTED}


@pytest.mark.parametrize("case", one_per_algorithm(), ids=str)
def test_numbers_never_compile(case):
    params = parameters()
    optimizer = case.ours(params)
    run(optimizer, params, Gradients(), range(3))
    before = counts()
    group = optimizer.param_groups[0]
    for step, lr in enumerate([0.3, 0.1, 0.0, torch.tensor(0.2), torch.tensor([0.1]), 1]):
        group["lr"] = lr
        run(optimizer, params, Gradients(), range(step, step + 1))
    group["weight_decay"] = 0.7
    if "betas" in group:
        for betas in ((0.5, 0.6), (torch.tensor(0.5), torch.tensor(0.6)), (0.0, 0.0)):
            group["betas"] = betas
            run(optimizer, params, Gradients(), range(3))
        group["eps"] = 1e-3
    else:
        group["momentum"], group["dampening"] = 0.123, 0.456
    run(optimizer, params, Gradients(skip=True), range(10))
    optimizer.add_param_group({"params": parameters(seed=5), "lr": 0.7})
    run(optimizer, [*params, *optimizer.param_groups[1]["params"]], Gradients(skip=True), range(5))
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, params, Gradients(), range(3))
    twin = case.ours(parameters(shapes=[(3, 3, 3), (1,), (100_000,)]))
    run(twin, twin.param_groups[0]["params"], Gradients(), range(3))
    assert counts() == before
    assert optimizer.executor == "compiled"


def test_a_kernel_of_codes_is_one_for_any_number_of_tensors():
    """Of any shape, in any order in memory."""
    run(compiledopt.AdamW(first := parameters(shapes=[(64, 64)]), state_dtype="int8"), first, Gradients(), range(2))
    before = counts()
    params = parameters(shapes=[(64 + index, 70 + index) for index in range(40)])
    params[7].data = params[7].data.t().contiguous().t()
    optimizer = compiledopt.AdamW(params, state_dtype="int8")
    run(optimizer, params, Gradients(), range(3))
    assert counts() == before and optimizer.executor == "compiled"
    assert all(optimizer.state[param]["exp_avg"].dtype is torch.int8 for param in params)


def test_steps_reuse_their_plan():
    """No plan is made again for steps without change, nor for gradients that come and go."""
    params = parameters()
    optimizer = compiledopt.AdamW(params)
    run(optimizer, params, Gradients(), range(2))
    before = compile_stats()["plans_built"]
    run(optimizer, params, Gradients(skip=True), range(20))
    optimizer.param_groups[0]["lr"] = 0.5
    run(optimizer, params, Gradients(), range(5))
    assert compile_stats()["plans_built"] == before


def test_a_flag_or_a_zero_is_another_program():
    """Flags select programs; of the numbers only those on whose zero torch's formula branches do."""
    params = parameters()
    optimizer = compiledopt.Adam(params, weight_decay=0.1)
    run(optimizer, params, Gradients(), range(2))
    texts = {optimizer._plan.batches[0].traced.program.text}
    for change in ({"weight_decay": 0.0}, {"weight_decay": 0.1, "maximize": True}, {"amsgrad": True}):
        optimizer.param_groups[0].update(change)
        run(optimizer, params, Gradients(), range(2))
        texts.add(optimizer._plan.batches[0].traced.program.text)
    assert len(texts) == 4


def test_stats_are_a_copy():
    compile_stats()["kernels_compiled"] = -1
    assert compile_stats()["kernels_compiled"] >= 0


def test_compile_ahead():
    class Fresh(compiledopt.SGD):
        pass

    params = parameters(torch.float64)
    optimizer = Fresh(params, momentum=0.25, maximize=True, weight_decay=0.125, nesterov=True)
    optimizer.compile()
    before = counts()
    assert not optimizer.state
    run(optimizer, params, Gradients(torch.float64), range(2))
    assert counts() == before


def test_what_changes_in_place_is_seen():
    """A plan compares the objects that a group holds; a list, or a tensor that a program branches on, may change within."""
    betas, decay = [0.9, 0.99], torch.tensor(0.0)
    params, expected = parameters(), parameters()
    optimizer = compiledopt.AdamW(params, lr=0.1)
    optimizer.param_groups[0].update(betas=betas, weight_decay=decay)
    reference = torch.optim.AdamW(expected, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
    for step in range(6):
        if step == 2:
            betas[0] = 0.5
            reference.param_groups[0]["betas"] = (0.5, 0.99)
        if step == 4:
            decay.fill_(0.5)
            reference.param_groups[0]["weight_decay"] = 0.5
        for one, those in ((optimizer, params), (reference, expected)):
            run(one, those, Gradients(), [step])
    torch.testing.assert_close(flat(params), flat(expected), rtol=1e-5, atol=1e-6)
