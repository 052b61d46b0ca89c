"""Inside torch.compile: the rest of a training step is compiled, the step runs as it is, and nothing is compiled again."""

import copy

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

import compiledopt


def problem():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    return model, torch.randn(8, 16), torch.randn(8, 4)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_compiled_training_step_under_a_schedule(name, tensor_lr):
    model, x, y = problem()
    twin = copy.deepcopy(model)
    runs = []
    for net, compiled in ((model, False), (twin, True)):
        lr = torch.tensor(0.01) if tensor_lr else 0.01
        optimizer = getattr(compiledopt, name)(net.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

        def train(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        step = torch.compile(train, backend="eager") if compiled else train
        losses = []
        for number in range(20):
            losses.append(step().item())
            scheduler.step()
            if number == 1:
                graphs = counters["stats"]["unique_graphs"]
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5) and runs[0][-1] < runs[0][0]
    assert counters["stats"]["unique_graphs"] == graphs >= 1, "recompiled under a schedule"
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_compiling_the_step_itself():
    """As users of torch.optim write today: it works, and Dynamo makes no graph of our Python."""
    params = [torch.nn.Parameter(torch.ones(10)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(10)
    expected = compiledopt.AdamW([torch.nn.Parameter(torch.ones(10))], lr=0.1)
    expected.param_groups[0]["params"][0].grad = torch.ones(10)
    optimizer = compiledopt.AdamW(params, lr=0.1)
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(12):
        optimizer.param_groups[0]["lr"] *= 0.9
        expected.param_groups[0]["lr"] *= 0.9
        step()
        expected.step()
    torch.testing.assert_close(params[0], expected.param_groups[0]["params"][0])
    assert counters["stats"]["unique_graphs"] <= 1
    assert optimizer.executor == "compiled"
