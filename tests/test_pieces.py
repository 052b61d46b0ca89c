"""Pieces of rules that are not elementwise: the same as the functions, written where their operands stand, and never early."""

import copy
import warnings

import catalog
import pytest
import torch
from helpers import Gradients, copies, flat, parameters, rms, run, same

import compiledopt
from compiledopt.backends.cpp import matrices, pieces
from compiledopt.backends.cpp.pieces import Compiled
from compiledopt.backends.eager.stacked import PiecedBatch
from compiledopt.backends.eager.tape import Tape
from compiledopt.backends.layout import is_dense
from compiledopt.errors import CompileError
from compiledopt.rules.pieces import piece
from compiledopt.rules.products import add_product, product

HIDDEN = [name for name, one in {**catalog.CATALOG, **catalog.MENU}.items() if one.takes("ns_steps")]
MATRICES = sorted([*catalog.MATRICES, *HIDDEN])


@piece("change", "average")
def weighed(grad, average, *, beta, size, negative):
    average = average.lerp(-grad if negative else grad, 1 - beta[0])
    return size * average / (average.abs() + beta[1]), average


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)])
def test_a_piece_is_its_function(dtypes):
    """Alone, in a stack with a number for each, column after column, and where an operand lies in memory otherwise."""
    numbers = {"beta": (torch.tensor(0.9, dtype=torch.float64), 0.1), "negative": True}
    pieces.make(weighed, {**numbers, "size": 1.0}, dtypes)
    sizes = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    for turn in (lambda x: x, lambda x: x.transpose(-1, -2), lambda x: x[..., ::2]):
        grad, average = (turn(torch.randn(3, 6, 10, dtype=torch.float64)).to(dtype) for dtype in dtypes)
        expected = [
            weighed.function(g.double(), a.double(), size=s, **numbers) for g, a, s in zip(grad, average, sizes, strict=True)
        ]
        tolerance = 1e-12 if dtypes[0] == torch.float64 else 1e-2 if dtypes[0] == torch.bfloat16 else 1e-5
        before = average.clone()
        with Compiled([]):
            alone = [weighed(g, a, size=s, **numbers) for g, a, s in zip(grad, average, sizes, strict=True)]
            stacked = torch.vmap(lambda g, a, s: weighed(g, a, size=s, **numbers))(grad, average, sizes)
        assert torch.equal(average, before)
        for i, (change, new) in enumerate(expected):
            for found in (alone[i], (stacked[0][i], stacked[1][i])):
                torch.testing.assert_close(found[0].double(), change, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(found[1].double(), new, rtol=tolerance, atol=tolerance)
        version, home = average[0]._version, average[0]
        with Compiled([home]):
            _, new = weighed(grad[0], home, size=1.0, **numbers)
        assert (new is home) == is_dense(home)
        if new is home:
            assert home._version > version
            torch.testing.assert_close(home.double(), expected[0][1], rtol=tolerance, atol=tolerance)


@piece("param")
def stepped(param, update, *, size):
    return param - size * update


def late(param, grad, total, *, lr=0.1):
    """Reads the parameter and the state after what takes their place was computed."""
    new = stepped(param, grad @ grad.mT @ grad, size=lr)[0]
    summed = add_product(total, grad, grad.mT, 0.5, 0.25)
    return new + 0.0 * param.mT.mT, summed + 0.1 * total


@pytest.mark.parametrize("count", [1, 3])
def test_an_old_value_that_is_read_stays(count):
    made = compiledopt.define(elementwise=False, initial={"total": lambda param: torch.ones_like(param)})(late)
    params = parameters(shapes=[(4, 4)] * count)
    others = [param.detach().double() for param in copies(params)]
    totals = [torch.ones(4, 4, dtype=torch.float64) for _ in others]
    optimizer = made(params)
    for step in range(3):
        Gradients().set(params, step)
        optimizer.step()
        for i, param in enumerate(params):
            grad = param.grad.double()
            others[i] = others[i] - 0.1 * grad @ grad.mT @ grad
            totals[i] = 0.5 * totals[i] + 0.25 * grad @ grad.mT + 0.1 * totals[i]
    for param, other, total in zip(params, others, totals, strict=True):
        torch.testing.assert_close(param.double(), other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(optimizer.state[param]["total"].double(), total, rtol=1e-5, atol=1e-5)


def trained(name, shapes=((24, 16), (24, 16), (16, 24), (9, 9)), steps=7, dtype=torch.float32, **options):
    params = parameters(dtype, shapes)
    run(getattr(compiledopt, name)(params, lr=0.01, **options), params, Gradients(), range(steps))
    return flat(params)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * {**catalog.CATALOG, **catalog.MENU}[name].brief) for name in MATRICES],
)
def test_with_kernels_and_without(name):
    promised = catalog.MATRICES[name].promised if name in catalog.MATRICES else {}
    options = {option: value for option, value in promised.items() if option != "lr"}
    start, found, plain = (
        flat(parameters(shapes=[(24, 16), (24, 16), (16, 24), (9, 9)])),
        trained(name, **options),
        trained(name, **options, foreach=True),
    )
    assert rms(plain - start) > 1e-3
    assert (found - plain).abs().max() <= (2e-2 if "uon" in name else 1e-3) * rms(plain - start)  # Muon's products round


def test_what_cannot_be_compiled_is_said(monkeypatch):
    """A piece, and all of them; the steps are those of torch's operations."""
    plain = trained("Shampoo", grafting=True, foreach=True)

    def refused(*_):
        raise CompileError("there is a hole in the kernel")

    monkeypatch.setattr("compiledopt.backends.eager.stacked.make", refused)
    monkeypatch.setattr(pieces, "_made", {})
    with pytest.warns(UserWarning, match="moved, a piece of the update, runs by torch's operations, because there is a hole"):
        found = trained("Shampoo", grafting=True)
    assert same(found, plain)
    monkeypatch.setattr("compiledopt.backends.eager.stacked.pieces_driver", refused)
    with pytest.warns(UserWarning, match="of what is pointwise in it there are no kernels: there is a hole"):
        assert same(trained("Shampoo", grafting=True), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(trained("Shampoo", grafting=True, foreach=True), plain)


# ---- calls that are written down ----


@pytest.fixture
def played(monkeypatch):
    """How many parameters were updated from a tape."""
    counted = []

    plain = Tape.play

    def play(self, columns, numbers):
        counted.append(len(columns["param"]))
        return plain(self, columns, numbers)

    monkeypatch.setattr(Tape, "play", play)
    return counted


TAPED = {
    "SOAP": {"precondition_frequency": 3},
    "Shampoo": {"preconditioning_compute_steps": 3, "weight_decay": 0.1, "weight_decouple": True},
    "GaLoreAdamW": {"rank": 4, "update_proj_gap": 3},
    "APOLLOAdamW": {"rank": 4, "update_proj_gap": 3, "scale": 2.0},
}


def interrupted(name, flag, dtype=torch.float64):
    """Updates between which all that may change does: numbers, where tensors lie, gradients that are absent, states."""
    params = parameters(dtype, [(24, 16), (24, 16), (16, 24), (9, 9), (7,), (7,)])
    optimizer = getattr(compiledopt, name)(params, lr=0.01, **TAPED[name], **flag)
    for step in range(9):
        Gradients(dtype).set(params, step)
        if step == 2:
            optimizer.param_groups[0]["lr"] = 0.03
            params[0].data = params[0].data.clone()
            params[1].grad = params[1].grad.mT.contiguous().mT
        if step == 4:
            params[1].grad = None
        if step == 5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            params[2].data = params[2].data.mT.contiguous().mT
        if step == 7:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(24, 16, dtype=dtype))], "lr": 0.02})
            params.append(optimizer.param_groups[1]["params"][0])
            Gradients(dtype).set(params, step)
            for param in params[:2]:
                param.data, param.grad = param.data.mT.contiguous().mT, param.grad.mT.contiguous().mT
        optimizer.step()
    return flat(params), [optimizer.state[param] for param in params]


@pytest.mark.parametrize("name", TAPED)
def test_calls_that_are_written_down_are_the_rule(name, played):
    found, states = interrupted(name, {})
    assert sum(played) > 12
    number = len(played)
    expected, others = interrupted(name, {"foreach": True})
    assert len(played) == number
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(states, others, strict=True):
        assert {key: value.dtype for key, value in one.items()} == {key: value.dtype for key, value in other.items()}
        assert one["step"] == other["step"]


def swapped(param, grad, one, other, *, lr=0.1):
    """Returns each state in the place of the other, and reads the old one after its new value is known."""
    new = add_product(one, grad, grad.mT, 0.5, 1.0)
    return stepped(param, one, size=lr)[0], other, new


def between(param, grad, one, *, lr=0.1, beta=0.9):
    """Takes norms, means and extremes between products, and hands a number of its own for each parameter to a piece."""
    low = product(grad.mT, grad)
    rows = low.square().sum(-1, keepdim=True).sqrt()
    size = torch.where(low.abs().amax() > 2.0, 1 / (1.0 + low.norm()), 1 - beta * low.mean(0).amin())
    update = product(grad, low * (rows + lr) / rows.amax((0, 1), keepdim=True) ** 2 - low.amin(dim=(0, 1)))
    return stepped(param, update, size=lr * size / update.norm())[0], beta * one + size.clamp_max(3.0) * rows.mT


def indexing(param, grad, one, *, lr=0.1, beta=0.9):
    """Takes an element, which nothing takes of stacks."""
    return stepped(param, product(grad, grad.mT) @ grad, size=lr)[0], beta * one + grad[0, :]


@pytest.mark.parametrize(("rule", "is_taped"), [(between, True), (indexing, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_between_are_written_down(rule, is_taped, dtype, played):
    made = compiledopt.define(elementwise=False, initial={"one": lambda param: param.new_zeros(1, param.shape[1])})(rule)
    results = []
    for options in ({}, {"foreach": False}):
        params = parameters(dtype, [(6, 5), (6, 5), (5, 5), (40, 3), (6, 5)])
        optimizer = made(params, **options)
        run(optimizer, params, Gradients(dtype, skip=True), range(6))
        results.append((flat(params), flat([state for param in params for state in optimizer.state[param].values()])))
    assert bool(played) == is_taped
    effect = rms(results[1][0] - flat(parameters(dtype, [(6, 5), (6, 5), (5, 5), (40, 3), (6, 5)])))
    near = 1e-12 if dtype is torch.float64 else 1e-4
    assert effect > 1e-3 and (results[0][0] - results[1][0]).abs().max() <= near * effect
    torch.testing.assert_close(results[0][1], results[1][1], rtol=near, atol=near)


def behind(param, grad, one, other, *, lr=0.1):
    """Reads a state after its new value is known."""
    new = add_product(one, grad, grad.mT, 0.5, 1.0)
    return stepped(param, one, size=lr)[0], new, add_product(other, new, one, 1.0, 0.1)


@pytest.mark.parametrize(("rule", "is_taped"), [(swapped, False), (behind, True)])
def test_a_tape_writes_nothing_that_is_read_later(rule, is_taped, played):
    start = {"one": lambda param: torch.ones_like(param), "other": lambda param: torch.zeros_like(param)}
    made = compiledopt.define(elementwise=False, initial=start)(rule)
    results = []
    for options in ({}, {"foreach": False}):
        params = parameters(torch.float64, [(5, 5)] * 3)
        optimizer = made(params, **options)
        run(optimizer, params, Gradients(torch.float64), range(4))
        results += [flat(params), flat([state for param in params for state in optimizer.state[param].values()])]
    assert bool(played) == is_taped
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-12, atol=1e-12)


# ---- kernels around one function of whole matrices ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HIDDEN)
def test_kernels_around_products_are_the_rule(name, dtype, monkeypatch):
    """Absent gradients, one and no row, column after column, more than one stack and wave, a clip, a copy and other states."""
    monkeypatch.setattr(matrices, "TOGETHER", 2000)
    monkeypatch.setattr(matrices.HostMatrices, "most", 1000)
    shapes = [(24, 16), (24, 16), (16, 24), (9, 9), (1, 7), (0, 5), (24, 16)]
    found = []
    for options in ({}, {"foreach": False}):
        params = parameters(dtype, shapes)
        params[2].data = params[2].data.mT.contiguous().mT
        optimizer = getattr(compiledopt, name)(params, lr=0.02, max_grad_norm=3.0, **options)
        for step in range(7):
            Gradients(dtype, skip=True).set(params, step)
            if step == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                params[0].grad = None if params[0].grad is None else params[0].grad.mT.contiguous().mT
            if step == 4:
                optimizer.param_groups[0]["lr"] = 0.03
                optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(24, 16, dtype=dtype))], "lr": 0.02})
                params.append(optimizer.param_groups[1]["params"][0])
            if step == 5:
                optimizer = copy.deepcopy(optimizer)
                params = [param for group in optimizer.param_groups for param in group["params"]]
                Gradients(dtype, skip=True).set(params, step)
            optimizer.step()
        kinds = {type(batch) is matrices.HostMatrices for batch in optimizer._plan.batches}
        assert kinds == {not options} and optimizer.executor == ("for-loop" if options else "foreach")
        found.append((params, flat(params).double(), optimizer))
    (mine, one, _), (_, other, reference) = found
    start = flat([*parameters(dtype, shapes), torch.ones(24, 16)]).double()
    effect = rms(other - start)
    assert effect > 1e-2 and rms(one - other) <= (0.05 if dtype is torch.bfloat16 else 0.01) * effect
    for param, its in zip(mine, found[1][0], strict=True):
        assert {key: value.dtype for key, value in found[0][2].state[param].items()} == {
            key: value.dtype for key, value in reference.state[its].items()
        }


def test_where_kernels_around_products_cannot_be(monkeypatch):
    """The rule is called, in what stacks there are."""
    shapes = [(24, 16), (24, 16), (9, 9)]
    plain = trained("Muon", shapes, foreach=True)
    params = parameters(shapes=shapes)
    optimizer = compiledopt.Muon(params, lr=0.01, capturable=True)
    run(optimizer, params, Gradients(), range(2))
    assert all(type(batch) is PiecedBatch for batch in optimizer._plan.batches)

    def refused(*_):
        raise CompileError("there is a hole in the kernel")

    monkeypatch.setattr(matrices, "kernel", refused)
    assert rms(trained("Muon", shapes) - plain) <= 0.02 * rms(plain - flat(parameters(shapes=shapes)))


def test_calls_of_torch_are_told():
    told = compiledopt.NorMuon(parameters(shapes=[(24, 16)] * 3 + [(16, 24)])).explain()
    assert "newton_schulz on a stack of 3 of 24 × 16, by calls of torch: 5 bmm, 10 baddbmm, 5 copy" in told
    assert "42 calls of torch operations per step" in told and "2 kernels" in told
