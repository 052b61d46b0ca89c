"""Inside torch.compile: the rest of a training step is compiled, the step runs as it is, and nothing is compiled again."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from catalog import one_per_kind
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


@pytest.mark.parametrize("of", one_per_kind(lambda one: one.rule.dense and one.takes_vectors), ids=str)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_compiled_training_step_under_a_schedule(of, tensor_lr):
    model, x, y = problem()
    twin = copy.deepcopy(model)
    runs = []
    for net, compiled in ((model, False), (twin, True)):
        lr = torch.tensor(0.01) if tensor_lr else 0.01
        optimizer = of.ours(net.parameters(), lr=lr)
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


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_fullgraph(backend, tensor_lr):
    """One graph with the step as an operator in it: gradients made in the graph, parameters read before and after, one of
    them without a gradient, under a schedule; nothing is compiled again."""

    def make():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7)), torch.nn.Parameter(torch.ones(2))]
        lr = torch.tensor(0.1) if tensor_lr else 0.1
        optimizer = compiledopt.AdamW(params, lr=lr, ema_decay=0.9, max_grad_norm=1.0)
        return params, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def train(params, optimizer, x):
        optimizer.zero_grad()
        with torch.no_grad():
            params[1].mul_(0.99)
            params[0].grad = params[0] * x
            params[1].grad = params[1] - x
            before = params[0].sum()
        optimizer.step()
        return before, params[0].sum() + params[1].sum()

    found = []
    for compiled in (False, True):
        params, optimizer, scheduler = make()
        step = torch.compile(train, backend=backend, fullgraph=True) if compiled else train
        params[2].grad = torch.ones(2)  # zero_grad takes it away
        rows = []
        for number in range(20):
            rows.append([value.item() for value in step(params, optimizer, torch.tensor(0.5))])
            scheduler.step()
            if number == 2:
                graphs = counters["stats"]["unique_graphs"]
        found.append((rows, [p.detach().clone() for p in params], optimizer.ema_parameters(), len(optimizer.state)))
    assert counters["stats"]["unique_graphs"] == graphs >= 1 and not counters["graph_break"]
    assert found[0][3] == found[1][3] == 2
    assert found[0][0][0] != found[0][0][-1]
    for own, other in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-6)


def test_fullgraph_of_the_step_and_what_it_raises():
    params = [torch.nn.Parameter(torch.ones(10))]
    params[0].grad = torch.ones(10)
    optimizer = compiledopt.SGD(params, lr=0.5)
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    step()
    assert params[0].tolist() == [0.5] * 10 and params[0].grad.tolist() == [1.0] * 10
    params[0].grad = torch.ones(10).to_sparse()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(RuntimeError, match="weight_decay"):
        torch.compile(optimizer.step, backend="eager")()


def test_states_that_a_constructor_makes_are_not_traced():
    """Adagrad's, within a compiled function: it took a hundred frames, and Dynamo warned of what it met on the way."""
    param = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.compile(lambda param: compiledopt.Adagrad([param]), backend="eager")(param)
    assert optimizer.state[param]["sum"].tolist() == [0.0] * 10
    assert 0 < counters["frames"]["total"] < 30


def test_error_on_graph_break_is_the_same_wish():
    param = torch.nn.Parameter(torch.ones(10))
    param.grad = torch.ones(10)
    optimizer = compiledopt.SGD([param], lr=0.5)

    @torch.compile(backend="eager")
    def train():
        with torch._dynamo.error_on_graph_break(True):
            optimizer.step()
        return param.sum()

    assert train().item() == 5.0 and not counters["graph_break"]


def test_fullgraph_where_dynamo_does_not_tell(monkeypatch):
    """Without the private attribute the step breaks the graph, and Dynamo says so."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    monkeypatch.setattr(InstructionTranslator, "current_tx", None)
    assert compiledopt.optimizer.wants_whole_graph() is False
    monkeypatch.undo()
    assert compiledopt.optimizer.wants_whole_graph() is False, "nothing is being traced"


@pytest.mark.slow  # test_kernel.py asks the same of Inductor itself
def test_a_users_inductor_is_left_as_it_was(tmp_path):
    """In a process where our lowering was the first to import Inductor."""
    program = """
import torch, compiledopt
param = torch.nn.Parameter(torch.ones(1000))
param.grad = torch.ones(1000)
optimizer = compiledopt.SGD([param], lr=0.5)
optimizer.step()
assert optimizer.executor == "compiled" and compiledopt.compile_stats()["kernels_lowered"] == 1
assert torch.compile(lambda x: (x.sin() * 2).sum())(torch.zeros(10007)).item() == 0
import sys
from torch._inductor import cpu_vec_isa
modules = [module for name, module in list(sys.modules.items()) if name.startswith("torch._inductor")]
taken = [module.pick_vec_isa for module in modules if hasattr(module, "pick_vec_isa")]
assert len(taken) > 1 and all(one is cpu_vec_isa.pick_vec_isa for one in taken)
# Or a user's own kernels are no longer vectorized.
assert bool(cpu_vec_isa.pick_vec_isa()) is bool(cpu_vec_isa.valid_vec_isa_list())
"""
    environment = {
        **os.environ,
        "COMPILEDOPT_CACHE_DIR": str(tmp_path / "ours"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "its"),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=Path(compiledopt.__file__).parent.parent)
