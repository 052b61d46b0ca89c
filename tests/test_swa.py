"""compiledopt.swa_utils against torch.optim.swa_utils."""

import copy
import io

import pytest
import torch
from torch.optim import swa_utils as torchs

import compiledopt
from compiledopt import swa_utils as ours

FUNCTIONS = {
    "default": {},
    "swa": {"avg_fn": "get_swa_avg_fn"},
    "swa_multi": {"multi_avg_fn": "get_swa_multi_avg_fn"},
    "ema": {"avg_fn": "get_ema_avg_fn"},
    "ema_multi": {"multi_avg_fn": "get_ema_multi_avg_fn"},
}


def arguments(module, label):
    return {key: getattr(module, name)(*([0.9] if "ema" in name else [])) for key, name in FUNCTIONS[label].items()}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(3, 3)).to(dtype)
    model[4].weight = model[4].weight  # shared below
    model.register_parameter("tied", model[0].weight)
    return model


def shaken(model, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            value.add_(noise.to(value.dtype) if value.is_floating_point() else 1)


def same_averages(a, b, tolerance=1e-6):
    for (name, p), (other, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert name == other and p.dtype == q.dtype
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("label", FUNCTIONS)
def test_against_torch(label, use_buffers):
    model = network()
    if label == "swa_multi" and use_buffers:
        model[1].num_batches_tracked = None  # torch's own function raises for integers
    theirs = torchs.AveragedModel(model, use_buffers=use_buffers, **arguments(torchs, label))
    mine = ours.AveragedModel(model, use_buffers=use_buffers, **arguments(ours, label))
    start = copy.deepcopy(mine.state_dict())
    for step in range(6):
        shaken(model, step)
        theirs.update_parameters(model)
        mine.update_parameters(model)
        same_averages(theirs, mine)
    assert mine.n_averaged == 6 and (mine.module[0].weight - start["module.0.weight"]).abs().max() > 0.1
    assert isinstance(mine, torchs.AveragedModel)
    if not use_buffers:
        assert mine.__dict__["_known"].reason is None, "the fused call was not taken"
    x = torch.randn(4, 7)
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    model = network(dtype)
    theirs, mine = torchs.AveragedModel(model), ours.AveragedModel(model)
    for step in range(4):
        shaken(model, step)
        theirs.update_parameters(model)
        mine.update_parameters(model)
    same_averages(theirs, mine, 3e-2 if dtype is torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("label", FUNCTIONS)
def test_the_first_model_is_copied(label):
    """Whatever the average was made from: an EMA does not begin at the values of the model that it was built with."""
    model = network()
    mine = ours.AveragedModel(model, **arguments(ours, label))
    shaken(model, 0)
    mine.update_parameters(model)
    for average, current in zip(mine.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, current)


def test_functions_of_ones_own_run_as_torchs():
    model = network()
    calls = []

    def avg_fn(average, current, count):
        calls.append(count)
        return 0.5 * average + 0.5 * current

    theirs, mine = torchs.AveragedModel(model, avg_fn=avg_fn), ours.AveragedModel(model, avg_fn=avg_fn)
    for step in range(3):
        shaken(model, step)
        theirs.update_parameters(model)
        mine.update_parameters(model)
    same_averages(theirs, mine)
    assert calls and "_known" not in mine.__dict__


@pytest.mark.parametrize("label", ["default", "ema_multi"])
def test_our_functions_in_torchs_class_and_states_both_ways(label):
    model = network()
    mixed = torchs.AveragedModel(model, **arguments(ours, label))
    theirs = torchs.AveragedModel(model, **arguments(torchs, label))
    for step in range(3):
        shaken(model, step)
        mixed.update_parameters(model)
        theirs.update_parameters(model)
    same_averages(mixed, theirs)
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    mine = ours.AveragedModel(model, **arguments(ours, label))
    mine.load_state_dict(torch.load(buffer, weights_only=True))
    for step in range(3, 6):
        shaken(model, step)
        mine.update_parameters(model)
        theirs.update_parameters(model)
    same_averages(mine, theirs)


def test_between_updates():
    """Parameters replaced in the model, a model given anew, deepcopy and pickle in the middle."""
    model = network()
    theirs, mine = torchs.AveragedModel(model), ours.AveragedModel(model)
    for step in range(2):
        shaken(model, step)
        theirs.update_parameters(model)
        mine.update_parameters(model)
    model[3].weight = torch.nn.Parameter(torch.ones(3, 5))
    theirs.update_parameters(model)
    mine.update_parameters(model)
    same_averages(theirs, mine)
    other = copy.deepcopy(model)
    shaken(other, 9)
    theirs.update_parameters(other)
    mine.update_parameters(other)
    same_averages(theirs, mine)
    for average in (theirs, mine):
        average.module[3].weight = torch.nn.Parameter(torch.full((3, 5), 2.0))  # in the average itself
        shaken(other, 10)
        average.update_parameters(other)
        shaken(other, 11)
    other.load_state_dict(model.state_dict())
    assert not torch.equal(mine.module[3].weight, torch.full((3, 5), 2.0))
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(mine), torch.load(buffer, weights_only=False)):
        twin.update_parameters(model)
        assert twin.n_averaged == 6 and mine.n_averaged == 5


def test_no_kernel_more_for_another_weight():
    model = network()
    mine = ours.AveragedModel(model)
    for _ in range(2):
        mine.update_parameters(model)
    before = compiledopt.compile_stats()
    for _ in range(5):
        mine.update_parameters(model)
    after = compiledopt.compile_stats()
    assert all(before[key] == after[key] for key in ("kernels_compiled", "kernels_lowered", "programs_traced"))


def test_errors():
    for make in (ours.get_ema_avg_fn, ours.get_ema_multi_avg_fn):
        with pytest.raises(ValueError, match=r"Invalid decay value 1\.5 provided"):
            make(1.5)
    with pytest.raises(AssertionError, match="Only one of avg_fn and multi_avg_fn should be provided"):
        ours.AveragedModel(network(), avg_fn=ours.get_ema_avg_fn(), multi_avg_fn=ours.get_ema_multi_avg_fn())
    assert set(torchs.__all__) == set(ours.__all__)
