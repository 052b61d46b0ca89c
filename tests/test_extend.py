"""The house is open: a backend and a transformation are added from this file, by what the interfaces say, and keep
every promise of those that the library brings. CONTRIBUTING.md shows these."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from catalog import BASELINE, CASES, DTYPES, in_every_dtype
from helpers import Gradients, copies, flat, parameters, rms, run, snapshot

import compiledopt
from compiledopt import around
from compiledopt.around.transformation import Transformation, asked, named, results
from compiledopt.backends import registry
from compiledopt.backends.batch import Backend, Batch, Description, bytes_moved
from compiledopt.backends.checks import check_gradient, check_state
from compiledopt.backends.inductor import compute_dtype, evaluate
from compiledopt.backends.layout import as_real, kernel_dtypes
from compiledopt.rules.ops import apply

# ---- a backend ----


class TensorBatch(Batch):
    """Runs a program on whole tensors by torch's operators: slow, and one screen long."""

    executor = "compiled"

    def __init__(self, entries, context):
        self.entries, self.context = entries, context
        self.known = [entry.param.shape for entry in entries]

    def prepare(self):
        if self.known != [entry.param.shape for entry in self.entries]:
            return False
        self.work = []
        for entry in self.entries:
            if entry.param.grad is None:
                continue
            check_gradient(entry.traced, entry.param, entry.param.grad, self.context.owner)
            check_state(entry, self.context.owner)
            self.work.append((entry, *self._scalars(entry)))
        return True

    def _scalars(self, entry):
        """The scalar part: what the kernel reads, and the new 0-dim states."""
        states = [entry.state[name].item() for name in entry.traced.scalar_names]
        return entry.traced.scalars(self.context.numbers[entry.group], self.context.step, (float(entry.first), *states))

    def renew(self):
        self.work = [(entry, *self._scalars(entry)) for entry, _, _ in self.work]

    @torch.no_grad()
    def launch(self):
        for entry, columns, fresh in self.work:
            program = entry.traced.program
            operands = {"param": entry.param, "grad": entry.param.grad, **entry.state}
            tensors = {node.name: as_real(operands[node.name]) for node in program.tensors}
            wide = compute_dtype([tensor.dtype for tensor in tensors.values()])
            inputs = [tensor.to(wide, copy=True) for tensor in tensors.values()]
            numbers = [torch.full((), value, dtype=wide) for value in columns]
            for name, value in zip(program.tensor_outputs, evaluate(program, inputs, numbers, None), strict=True):
                tensors[name].copy_(value)
            for name, value in zip(program.scalar_outputs, fresh, strict=True):
                entry.state[name].fill_(value)
            entry.first = False


class TensorBackend(Backend):
    """The second compiled executor of the CPU."""

    executor = "compiled"

    def serves(self, device):
        return device.type == "cpu"

    def batch(self, entries, context):
        return TensorBatch(entries, context)

    def describe(self, entries, group):
        program = entries[0].traced.program
        return Description(len(program.nodes) * len(entries), 0, 0, *bytes_moved(entries[0]), program, lambda: program.text)


@pytest.fixture
def second_backend(monkeypatch):
    monkeypatch.setattr(registry, "COMPILED", [TensorBackend(), *registry.COMPILED])


def test_a_backend_is_short():
    assert sum(len(inspect.getsource(part).splitlines()) for part in (TensorBatch, TensorBackend)) <= 80


@pytest.mark.usefixtures("second_backend")
@pytest.mark.parametrize(("case", "dtype"), in_every_dtype(CASES, DTYPES))
def test_a_second_backend_computes_what_torch_does(case, dtype):
    """In float32 and float64 to a hundredth of the effect, and all but as near in the half types as the dtype allows."""
    start = parameters(dtype)
    theirs, mine = copies(start), copies(start)
    run(case.torch(theirs, dtype, **BASELINE.get(case.label, {})), theirs, Gradients(dtype, skip=True), range(6))
    optimizer = case.ours(mine, "compiled", dtype)
    run(optimizer, mine, Gradients(dtype, skip=True), range(6))
    assert type(optimizer._plan.batches[0]) is TensorBatch and optimizer.executor == "compiled"
    effect = rms(flat(theirs) - flat(start))
    assert effect > 0
    eps = torch.finfo(dtype).eps
    assert rms(flat(mine) - flat(theirs)) <= 0.01 * effect + 4 * eps * rms(flat(start))


@pytest.mark.usefixtures("second_backend")
def test_a_second_backend_has_what_stands_around_a_rule():
    """Clipping, an average, a schedule and a loss scale, without knowing of them; and explain tells of it."""
    found = []
    for backends in (registry.COMPILED, registry.COMPILED[1:]):
        registry.COMPILED[:] = backends
        params = parameters()
        lr = 0.1 * compiledopt.schedules.linear(1.0, 0.5, 4)
        optimizer = compiledopt.AdamW(params, lr=lr, max_grad_norm=1.0, ema_decay=0.9, fused=True)
        optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0), torch.zeros(())
        run(optimizer, params, Gradients(), range(5))
        found.append((flat(params), flat(optimizer.ema_parameters()), optimizer.grad_norm))
        assert "compiled" in optimizer.explain()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("second_backend")
def test_a_second_backend_writes_nothing_where_a_check_fails():
    params = parameters()
    optimizer = compiledopt.AdamW(params, compiled=True)
    run(optimizer, params, Gradients(), range(2))
    params[0].grad = torch.ones(40, 50).to_sparse()
    before = snapshot(optimizer)[1:]
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert str(snapshot(optimizer)[1:]) == str(before)


def test_kernel_dtypes_of_complex_numbers():
    assert kernel_dtypes([torch.complex64, torch.float32]) == (torch.float32, torch.float32)


def test_contributing_shows_these():
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    for part in (TensorBatch, TensorBackend, ValueClipped):
        assert inspect.getsource(part) in page, part.__name__


# ---- a transformation ----


class ValueClipped(Transformation):
    """g ← each element of g within ±max_grad_value, as torch.nn.utils.clip_grad_value_."""

    option = "max_grad_value"
    described = "clip each element of the gradients, as they are read, to this size"
    letters = {"max_grad_value": "C"}

    def wanted(self, rule, group):
        return asked(rule, group, "max_grad_value") or None

    def derive(self, rule, wanted):
        def clipped(param, grad, *states, max_grad_value, **options):
            within = apply("maximum", apply("minimum", grad, max_grad_value), -max_grad_value)
            return results(rule, param, within, states, options)

        return named(replace(rule, function=clipped, options=(*rule.options, "max_grad_value")), rule)


@pytest.fixture
def value_clipped(monkeypatch):
    monkeypatch.setattr(around, "TRANSFORMATIONS", [*around.TRANSFORMATIONS, ValueClipped()])


def test_a_transformation_is_short():
    assert len(inspect.getsource(ValueClipped).splitlines()) <= 30


@pytest.mark.usefixtures("value_clipped")
@pytest.mark.parametrize("executor", ["compiled", "foreach", "for-loop"])
@pytest.mark.parametrize("case", [case for case in CASES if case.label in ("default", "momentum", "amsgrad")], ids=str)
def test_a_transformation_of_any_rule(case, executor):
    """Against torch's clip_grad_value_ before torch's step."""
    if case.algorithm == "Lion":
        pytest.skip("its reference is not one of torch's")
    start = parameters(torch.float64)
    theirs, mine, unclipped = copies(start), copies(start), copies(start)
    baseline, free = case.torch(theirs, torch.float64), case.torch(unclipped, torch.float64)
    optimizer = case.ours(mine, executor, torch.float64, max_grad_value=0.5)
    run(free, unclipped, Gradients(torch.float64), range(6))
    for step in range(6):
        for params in (theirs, mine):
            Gradients(torch.float64).set(params, step)
        torch.nn.utils.clip_grad_value_(theirs, 0.5)
        baseline.step()
        optimizer.step()
    effect = rms(flat(theirs) - flat(unclipped))
    assert effect > 1e-5 or case.algorithm == "Rprop"  # which reads signs alone
    assert rms(flat(mine) - flat(theirs)) <= 1e-6 * (effect or rms(flat(theirs) - flat(start)))


@pytest.mark.usefixtures("value_clipped")
def test_an_option_of_a_transformation_is_one_of_the_constructor():
    mine = compiledopt.define(lambda param, grad, *, lr=0.1: param - lr * grad)
    assert "max_grad_value" in inspect.signature(mine).parameters
    assert "min(C, g)" in compiledopt.SGD(parameters(), max_grad_value=1.0).explain()
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_grad_value'"):
        compiledopt.AdamW(parameters(), min_grad_value=1.0)
    with pytest.raises(ValueError, match="max_grad_value is for optimizers that are one rule"):
        compiledopt.LBFGS([{"params": parameters(), "max_grad_value": 1.0}])
