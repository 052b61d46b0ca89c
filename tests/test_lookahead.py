"""Lookahead around any optimizer, against the paper's loop; slow weights that are evaluated; GrokAdamW's signals."""

import copy
import io
import pickle

import pytest
import torch
from catalog import EXECUTORS, with_and_without_count
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import SGD, AdamW, Combined, Lookahead, Muon, SGDScheduleFree, create_optimizer

SHAPES = [(6, 5), (7,), (3, 4)]


def by_hand(params, base, steps, k=6, alpha=0.5):
    """The paper's: an inner optimizer, and weights that begin where it does."""
    slow = [p.detach().clone() for p in params]
    for step in range(steps):
        Gradients(torch.float64).set(params, step)
        base.step()
        if (step + 1) % k == 0:
            with torch.no_grad():
                for p, s in zip(params, slow, strict=True):
                    s.add_(p - s, alpha=alpha)
                    p.copy_(s)
    return slow


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("algorithm", with_and_without_count(), ids=str)
def test_against_the_paper(algorithm, executor):
    mine, theirs, plain = (parameters(torch.float64, SHAPES) for _ in range(3))
    optimizer = Lookahead(algorithm.ours(mine, **algorithm.promised, **EXECUTORS[executor]), alpha=0.7, k=5)
    slow = by_hand(theirs, algorithm.counterpart(theirs, **algorithm.promised), 23, k=5, alpha=0.7)
    run(algorithm.counterpart(plain, **algorithm.promised), plain, Gradients(torch.float64), range(23))
    run(optimizer, mine, Gradients(torch.float64), range(23))
    assert optimizer.executor == executor
    effect = rms(flat(theirs) - flat(plain))
    assert effect > 0.01 and rms(flat(mine) - flat(theirs)) <= 1e-9 * effect
    fast = flat(mine)
    with optimizer.evaluating():
        assert rms(flat(mine) - flat(slow)) <= 1e-9 * effect < rms(flat(mine) - fast)
        with pytest.raises(RuntimeError, match="eval mode"):
            optimizer.step()
    assert same(flat(mine), fast)


def test_between_turns_no_slow_weights_are_read():
    params = parameters(shapes=SHAPES)
    optimizer = Lookahead(SGD(params, lr=0.1), k=3)
    written = []
    for step in range(6):
        run(optimizer, params, Gradients(), range(step, step + 1))
        written.append(optimizer._explanation().parts[0].bytes_written_per_element)
    assert written == [4, 8, 4, 4, 8, 4]  # of the step that comes next


def test_several_and_their_matrices():
    mine = parameters(torch.float64, SHAPES)
    inner = Combined(Muon([mine[0]], lr=0.02), AdamW(mine[1:], lr=0.01))
    optimizer = Lookahead(inner, k=2, max_grad_norm=5.0)
    start = flat(mine)
    run(optimizer, mine, Gradients(torch.float64), range(4))
    assert {group["algorithm"] for group in optimizer.param_groups} == {"Muon", "AdamW"}
    for param in mine:
        assert torch.equal(optimizer.state[param]["slow_params"], param)
    assert rms(flat(mine) - start) > 1e-3
    more = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [more], "algorithm": "AdamW", "lookahead_k": 4})
    assert [group["lookahead_k"] for group in optimizer.param_groups] == [2, 2, 4]


@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle", "in eval mode"])
def test_it_goes_on_as_it_was(way):
    params = parameters(torch.float64, SHAPES)
    optimizer = Lookahead(AdamW(params, lr=0.02), k=3)
    run(optimizer, params, Gradients(torch.float64), range(4))
    if way in ("file", "in eval mode"):
        if way == "in eval mode":
            optimizer.eval()
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        others = copies(params)
        other = Lookahead(AdamW(others, lr=0.5), k=5)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        optimizer.train(), other.train()
    else:
        other = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        others = [p for group in other.param_groups for p in group["params"]]
    for one, its in ((optimizer, params), (other, others)):
        run(one, its, Gradients(torch.float64), range(4, 9))
    assert same(snapshot(optimizer), snapshot(other))


def test_what_the_base_saved_is_loaded():
    params, others = parameters(torch.float64, SHAPES), parameters(torch.float64, SHAPES)
    base = AdamW(params, lr=0.02)
    run(base, params, Gradients(torch.float64), range(3))
    optimizer = Lookahead(AdamW(others, lr=0.5), k=3)
    for theirs, mine in zip(params, others, strict=True):
        mine.data.copy_(theirs)
    optimizer.load_state_dict(base.state_dict())
    by_hand_from = copies(params)
    reference = torch.optim.AdamW(by_hand_from, lr=0.02)
    reference.load_state_dict(base.state_dict())
    for step in range(3, 5):
        for one, its in ((optimizer, others), (reference, by_hand_from)):
            run(one, its, Gradients(torch.float64), range(step, step + 1))
    assert rms(flat(others) - flat(by_hand_from)) <= 1e-9 and optimizer.param_groups[0]["lookahead_k"] == 3
    assert torch.equal(optimizer.state[others[0]]["slow_params"], params[0])


def test_by_name_and_what_it_refuses():
    params = parameters(shapes=SHAPES)
    optimizer = create_optimizer("lookahead_adamw", params, lr=0.1, lookahead_alpha=0.8)
    assert type(optimizer) is Lookahead and optimizer.param_groups[0]["lookahead_alpha"] == 0.8
    assert optimizer.param_groups[0]["lookahead_k"] == 6 and optimizer.param_groups[0]["algorithm"] == "AdamW"
    with pytest.raises(ValueError, match="no optimizer 'adamx'"):
        create_optimizer("lookahead_adamx", params)
    with pytest.raises(ValueError, match="an evaluation of its own"):
        Lookahead(SGDScheduleFree(params))
    for wrong, message in (({"alpha": 1.5}, "Invalid alpha value: 1.5"), ({"k": 0}, "Invalid k value: 0")):
        with pytest.raises(ValueError, match=message):
            Lookahead(SGD(params, lr=0.1), **wrong)
    with pytest.raises(TypeError, match="one rule for each parameter"):
        Lookahead(torch.optim.SGD(params, lr=0.1))


# ---- GrokAdamW ----


def test_groks_signals():
    signals = [0.5, None, 1.5]
    params, others = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
    optimizer = compiledopt.GrokAdamW(params, lr=0.01, grokking_signal_fns=[lambda i=i: signals[i] for i in range(3)])
    other = compiledopt.GrokAdamW(others, lr=0.01)
    other.param_groups[0]["grokking_signal"] = 1.0
    run(optimizer, params, Gradients(), range(3))
    run(other, others, Gradients(), range(3))
    assert same(flat(params), flat(others)) and optimizer.param_groups[0]["grokking_signal"] == 1.0
    other.param_groups[0].update(train_loss=1.0, eval_loss=4.0)
    run(other, others, Gradients(), range(1))
    assert other.param_groups[0]["grokking_signal"] == 0.75
    again = pickle.loads(pickle.dumps(other))
    assert again.param_groups[0]["grokking_signal"] == 0.75 and again.signals == ()
    assert "grokking_signal_fns" not in optimizer.state_dict()["param_groups"][0]
    loss = optimizer.step(lambda: torch.tensor(3.0))
    assert loss == 3.0
    layers = [optimizer.state[param]["layer"].item() for param in params]
    assert layers == [0.0, 1.0, 2.0]
