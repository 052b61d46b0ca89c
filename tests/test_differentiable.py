"""differentiable=True: autograd through the step, to gradients, lr, betas and weight_decay, as in torch."""

import pytest
import torch
from catalog import CATALOG

import compiledopt

UNROLLED = [(one.name, options) for one in CATALOG.values() for options in one.unrolled]
# Those whose decay and betas torch differentiates too; the others have the judgement of finite differences alone.
CASES = [(name, options) for name, options in UNROLLED if CATALOG[name].tensor_options]


def unrolled(library, name, options, lr, weight_decay, betas, start, steps=3):
    """A few steps on a quadratic, from `start`, with everything in the graph."""
    param = start.clone()
    extra = {"betas": betas} if CATALOG[name].takes("betas") else {}
    optimizer = getattr(library, name)([param], lr=lr, weight_decay=weight_decay, differentiable=True, **extra, **options)
    for step in range(steps):
        param.grad = (start * (step + 1)).sin() + 0.1 * start
        optimizer.step()
    return param


# torch detaches SGD's first momentum from the graph, and fails in backward with dampening: gradcheck below is the judge.
@pytest.mark.parametrize(("name", "options"), [c for c in CASES if not c[1].get("momentum")], ids=str)
def test_gradients_flow_as_in_torch(name, options):
    found = []
    for library in (torch.optim, compiledopt):
        torch.manual_seed(0)
        start = torch.randn(6, dtype=torch.float64, requires_grad=True)
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        decay = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        betas = tuple(torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (0.8, 0.9))
        # torch's own amsgrad fails in backward after two steps; one step is where the two can be compared.
        steps = 1 if options.get("amsgrad") else 3
        # In torch, SGD's tensor decay and Adam's are differentiable only through the same tensors as here.
        result = unrolled(library, name, options, lr, decay, betas, start, steps)
        wanted = [start, lr, decay, *betas] if CATALOG[name].takes("betas") else [start, lr, decay]
        gradients = torch.autograd.grad(result.square().sum(), wanted, allow_unused=True)
        found.append([result.detach(), *gradients])
    for index, (theirs, mine) in enumerate(zip(*found, strict=True)):
        assert theirs is not None and mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
        if index < 3 or not options.get("amsgrad"):  # a first step depends on neither betas nor, but for eps, decay
            assert mine.abs().sum() > 1e-6


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_gradcheck(name, options):
    """Against finite differences, amsgrad over several steps included."""
    torch.manual_seed(0)
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)
    lr, decay, b1, b2 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.2, 0.8, 0.9))

    def function(start, lr, decay, b1, b2):
        return unrolled(compiledopt, name, options, lr, decay, (b1, b2), start)

    if not CATALOG[name].takes("betas"):
        assert torch.autograd.gradcheck(lambda s, a, d: function(s, a, d, b1, b2), (start, lr, decay))
    else:
        assert torch.autograd.gradcheck(function, (start, lr, decay, b1, b2))


@pytest.mark.parametrize(("name", "options"), UNROLLED, ids=str)
def test_values_are_the_for_loops(name, options):
    """In a graph or not, first step or later: finite differences alone would agree with a wrong update."""
    options = {"lr": 0.1, **({"weight_decay": 0.2} if CATALOG[name].takes("weight_decay") else {}), **options}
    results = []
    for more in ({"differentiable": True}, {"foreach": False}):
        torch.manual_seed(0)
        start = torch.randn(6, dtype=torch.float64)
        param = start.clone()
        optimizer = getattr(compiledopt, name)([param], **options, **more)
        for step in range(7):
            param.grad = (start * (step + 1)).sin()
            optimizer.step()
        results.append(param)
        assert (param - start).abs().max() > 1e-3
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_one_element_lr_keeps_shapes():
    param = torch.ones(3).clone()
    param.grad = torch.ones(3)
    compiledopt.SGD([param], lr=torch.tensor([[0.5]]), differentiable=True).step()
    assert param.shape == (3,) and torch.equal(param, torch.full((3,), 0.5))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    start, grad = torch.randn(5).to(dtype), torch.randn(5).to(dtype)
    results = []
    for options in ({"differentiable": True}, {"foreach": False}):
        param = start.clone()
        param.grad = grad.clone()
        compiledopt.AdamW([param], lr=0.1, **options).step()
        results.append(param)
    torch.testing.assert_close(*results)


def test_step_that_requires_grad_is_refused():
    param = torch.ones(3).clone()
    param.grad = torch.ones(3)
    optimizer = compiledopt.AdamW([param], differentiable=True)
    optimizer.step()
    optimizer.state[param]["step"] = optimizer.state[param]["step"].detach().requires_grad_()
    with pytest.raises(RuntimeError, match="`requires_grad` is not supported for `step` in differentiable mode"):
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), [case for case in UNROLLED if case not in CASES], ids=str)
def test_gradcheck_of_the_others(name, options):
    """Eight steps, so that RAdam rectifies and ASGD averages: to the start, lr and weight_decay."""
    torch.manual_seed(0)
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)
    lr, decay = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.2))

    def function(start, lr, decay):
        param = start.clone()
        extra = {"weight_decay": decay} if CATALOG[name].takes("weight_decay") else {}
        optimizer = getattr(compiledopt, name)([param], lr=lr, differentiable=True, **extra, **options)
        for step in range(8):
            param.grad = (start * (step + 1)).sin() + 0.1 * start
            optimizer.step()
        return param

    if CATALOG[name].moves_without_rate:  # their first step sizes are states made from lr, outside of the graph, as in torch
        lr = lr.detach()
    assert torch.autograd.gradcheck(function, (start, lr, decay))


def test_a_rule_of_one_value():
    @compiledopt.define
    def Plain(param, grad, *, lr=0.1):
        return param - lr * grad

    lr = torch.tensor(0.1, requires_grad=True)
    param = torch.ones(3, requires_grad=True).clone()
    param.grad = torch.ones(3)
    Plain([param], lr=lr, differentiable=True).step()
    assert torch.autograd.grad(param.sum(), lr)[0] == -3.0


def test_a_rule_that_reduces():
    """Gradients reach lr and the start through a norm."""

    @compiledopt.define
    def Normed(param, grad, *, lr=0.1):
        return param - lr * grad / grad.norm()

    torch.manual_seed(0)
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def function(start, lr):
        param = start.clone()
        optimizer = Normed([param], lr=lr, differentiable=True)
        for step in range(3):
            param.grad = (start * (step + 1)).sin()
            optimizer.step()
        return param

    assert torch.autograd.gradcheck(function, (start, lr))


def test_a_product_with_a_gradient():
    """NAdam's mu_product depends on the betas: only `step` is refused where it requires a gradient, as in torch."""
    torch.manual_seed(0)
    start = torch.randn(3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def function(start, beta):
        param = start.clone()
        optimizer = compiledopt.NAdam([param], lr=0.1, betas=(beta, 0.9), differentiable=True)
        for step in range(3):
            param.grad = (start * (step + 1)).sin() + 0.1 * start
            optimizer.step()
        assert optimizer.state[param]["mu_product"].requires_grad
        return param

    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # mu_product in float32 would spoil the finite differences
    try:
        assert torch.autograd.gradcheck(function, (start, beta))
    finally:
        torch.set_default_dtype(previous)
