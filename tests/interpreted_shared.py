"""Rules whose parameters share states, or sum over a group, under Triton's interpreter: run by test_triton.py."""

import pytest
import torch
from catalog import MENU
from helpers import Gradients, flat, parameters, rms, run
from interpreter import round_to_nearest
from simulated import capture

import compiledopt
from compiledopt.backends.triton import capturable, refusal
from compiledopt.backends.triton.shared import DeviceSharing
from compiledopt.errors import CompileError
from compiledopt.rules.traced import traced

round_to_nearest()
SHAPES = [(9, 5), (3, 2, 3, 3), (0,), (17,), ()]
SHARING = [one for one in MENU.values() if one.rule is not None and one.rule.shared]


def kind(one):
    """What is shared follows from numbers alone, or from sums over the model, or over a group."""
    program = traced(one.rule, one.ours([torch.nn.Parameter(torch.zeros(2, 3))], **one.promised).param_groups[0]).program
    return bool(program.totals), any(node.is_of_group for node in program.totals)


HERE = [str(one) for one in {kind(one): one for one in SHARING}.values()]
EACH = [pytest.param(one, marks=() if str(one) in HERE else pytest.mark.slow) for one in SHARING]
LATE = {"RAdamScheduleFree": 5}  # steps that move nothing


def pair(one, **flags):
    """(for-loop, its parameters, compiled, its parameters): of two groups, one without decay."""
    found = []
    for chosen in ({"foreach": False}, {"compiled": True, **flags}):
        params = parameters(shapes=SHAPES)
        groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0}]
        found += [one.ours(groups, **one.promised, **chosen), params]
    return found


def held(optimizer):
    """What the parameters of each group share."""
    return [{name: float(group[name]) for name in optimizer.rule.shared} for group in optimizer.param_groups]


def near(optimizer, expected, mine, reference):
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-5, atol=1e-6)
    for found, wanted in zip(held(optimizer), held(expected), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    ("one", "capturable"),
    [
        pytest.param(one, capturable, marks=() if str(one) in HERE[: None if capturable else 1] else pytest.mark.slow)
        for one in SHARING
        for capturable in (False, True)
    ],
    ids=str,
)
def test_against_the_for_loop(one, capturable):
    """In steps that some parameters are left out of, and in one that all are left out of."""
    expected, reference, optimizer, mine = pair(one, capturable=capturable)
    start, shared = flat(reference), held(expected)
    for step in range(4 + LATE.get(str(one), 0)):
        for which, params in ((expected, reference), (optimizer, mine)):
            run(which, params, Gradients(skip=step % 2 == 1), [step])
            if step == 1:
                kept = [param.grad for param in params]
                for param in params:
                    param.grad = None
                which.step()
                for param, grad in zip(params, kept, strict=True):
                    param.grad = grad
    assert optimizer.executor == "compiled" and bool(optimizer._plan.shared.sharing) is capturable
    assert rms(flat(reference) - start) > 1e-5 and held(expected) != shared
    near(optimizer, expected, mine, reference)


@pytest.mark.parametrize("one", EACH, ids=str)
def test_in_a_graph(one, monkeypatch):
    """Each replay goes on from the shared states that the last one left, and follows a rate that changed."""
    expected, reference, optimizer, mine = pair(one, capturable=True)
    for which, params in ((expected, reference), (optimizer, mine)):
        run(which, params, Gradients(), range(2 + LATE.get(str(one), 0)))
    before = held(optimizer)
    with capture(monkeypatch) as graph:
        optimizer.step()
    assert held(optimizer) == before
    for step in range(3):
        for params in (reference, mine):
            kept = [param.grad for param in params]
            Gradients().set(params, step + 20)
            for param, grad in zip(params, kept, strict=True):
                param.grad = grad.copy_(param.grad)
        for which in (expected, optimizer):
            for group in which.param_groups:
                group["lr"] = group["lr"] * (0.5 if step else 1)
        optimizer.refresh()
        expected.step()
        graph.replay()
        near(optimizer, expected, mine, reference)
    assert held(optimizer) != before


def test_a_capture_of_numbers_that_changed_is_refused(monkeypatch):
    """Of a group without parameters too, which no batch knows."""
    _, _, optimizer, mine = pair(MENU["SGDScheduleFree"], capturable=True)
    optimizer.add_param_group({"params": []})
    run(optimizer, mine, Gradients(), range(2))
    for group in optimizer.param_groups[::2]:
        group["lr"] = 0.25
        before = held(optimizer)
        with pytest.raises(RuntimeError, match=r"call refresh\(\) first"), capture(monkeypatch):
            optimizer.step()
        optimizer.refresh()
    assert held(optimizer) == before


def test_a_kernel_that_cannot_be_had(monkeypatch):
    """Another executor takes over, and says so."""

    def refused(*_):
        raise CompileError("the kernel cannot run: refused")

    monkeypatch.setattr(refusal, "check_shared", refused)
    _, _, optimizer, mine = pair(MENU["SGDScheduleFree"], capturable=True)
    optimizer.param_groups[0]["compiled"] = optimizer.param_groups[1]["compiled"] = None
    with pytest.warns(UserWarning, match="the kernel cannot run: refused"):
        run(optimizer, mine, Gradients(), [0])
    assert optimizer.executor != "compiled" and not optimizer._plan.shared.sharing


def test_states_of_the_model_are_written_once():
    """The second group has a program of its own, since it decays nothing, and no part in what the first one writes."""
    _, _, optimizer, mine = pair(MENU["Prodigy"], capturable=True)
    run(optimizer, mine, Gradients(), range(2))
    (sharing,) = optimizer._plan.shared.sharing
    assert type(sharing) is DeviceSharing and sharing.groups == [0]
    assert capturable.lives_on(optimizer.param_groups[1]["d"], mine[0].device)
    assert optimizer.param_groups[1]["d"] is optimizer.param_groups[0]["d"]


@compiledopt.define(shared={"of_all": "model", "of_group": "group"}, initial={"of_all": 0.5})
def Mixed(param, grad, of_all, of_group, *, lr=0.05, weight_decay=0.0):
    grad = grad + weight_decay * param
    return param - lr * grad / (1 + of_all + of_group), of_all * 0.5 + lr, of_group + of_all


def test_one_shared_by_all_and_one_by_a_group():
    """No launch of rows: the second would write what is the first's. By operators, with one value for all."""
    expected, reference, optimizer, mine = pair(MENU["SGDScheduleFree"])
    groups = [[{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.1}] for params in (reference, mine)]
    expected, optimizer = Mixed(groups[0], foreach=False), Mixed(groups[1], compiled=True, capturable=True)
    for which, params in ((expected, reference), (optimizer, mine)):
        run(which, params, Gradients(), range(3))
    assert optimizer.executor == "compiled" and not optimizer._plan.shared.sharing
    near(optimizer, expected, mine, reference)
