"""Sizes, strides, dtypes and groups of all kinds in one optimizer, and tensors that change between steps."""

import random

import pytest
import torch
from catalog import CATALOG, EXECUTORS, by_kind
from helpers import Gradients, flat, run

import compiledopt


def leaf(tensor):
    return tensor.detach().requires_grad_()


def channels_last():
    return leaf(torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last))


def transposed():
    return leaf(torch.randn(6, 7).t())


def permuted():
    return leaf(torch.randn(2, 3, 4).permute(2, 0, 1))


def strided():
    return leaf(torch.randn(6, 8)[:, ::2])


def offset():
    return leaf(torch.randn(50)[7:40])


def single():
    return leaf(torch.randn(15).as_strided((3, 1, 5), (1, 77, 3)))


LAYOUTS = [channels_last, transposed, permuted, strided, offset, single]


def pair_of_runs(case, executor, make, steps=6, gradient=None, **more):
    results = []
    for library in ("torch", "ours"):
        torch.manual_seed(3)
        params = make()
        optimizer = case.torch(params, **more) if library == "torch" else case.ours(params, executor, **more)
        for step in range(steps):
            Gradients().set(params, step)
            for param in params:
                if gradient:
                    param.grad = gradient(param.grad)
            optimizer.step()
        results.append((params, optimizer))
    (theirs, _), (mine, optimizer) = results
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5
    assert [p.stride() for p in theirs] == [p.stride() for p in mine]
    return optimizer


@pytest.mark.parametrize("executor", ["default", "foreach", "for-loop"])
@pytest.mark.parametrize("case", by_kind())
@pytest.mark.filterwarnings("ignore:compiledopt")
def test_every_layout_in_one_optimizer(case, executor):
    optimizer = pair_of_runs(case, executor, lambda: [make() for make in LAYOUTS])
    assert optimizer.executor == {"default": "compiled + for-loop"}.get(executor, executor)


def test_a_parameter_that_is_not_dense_says_so():
    param = strided()
    param.grad = torch.ones(6, 4)
    optimizer = compiledopt.AdamW([param])
    with pytest.warns(UserWarning, match="a parameter is not dense in memory"):
        optimizer.step()
    assert optimizer.executor == "for-loop" and "not dense" in optimizer.explain()
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: a parameter is not dense"):
        compiledopt.AdamW([param], compiled=True).step()


GRADIENTS = {
    # Of three dimensions too, where one stride stays as it is.
    "transposed": lambda g: g.transpose(-1, -2).contiguous().transpose(-1, -2) if g.dim() > 1 else g,
    "expanded": lambda g: g.mean().expand(g.shape),
    "negated lazily": lambda g: torch._neg_view(g),
    "part of more": lambda g: torch.stack([g, g], -1)[..., 1],
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_gradients_of_another_layout(case, executor, gradient):
    def make():
        return [leaf(torch.randn(5, 6)), leaf(torch.randn(9)), transposed(), leaf(torch.randn(3, 2, 2))]

    optimizer = pair_of_runs(case, executor, make, gradient=GRADIENTS[gradient])
    assert optimizer.executor == executor


@pytest.mark.parametrize("executor", EXECUTORS)
def test_conjugate_gradients(executor):
    case = CATALOG["SGD"].cases[0]
    results = []
    for library in ("torch", "ours"):
        torch.manual_seed(1)
        param = leaf(torch.randn(4, 4, dtype=torch.complex64))
        optimizer = case.torch([param]) if library == "torch" else case.ours([param], executor)
        for step in range(3):
            Gradients(torch.complex64).set([param], step)
            param.grad = param.grad.conj()
            optimizer.step()
        results.append(flat([param]))
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_mixed_dtypes_in_one_optimizer(case, executor):
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
    results = []
    for library in ("torch", "ours"):
        torch.manual_seed(1)
        params = [leaf(torch.randn(6, 7, dtype=torch.complex128 if d.is_complex else torch.float64).to(d)) for d in dtypes]
        params.append(leaf(torch.randn(0)))
        optimizer = case.torch(params, torch.float16) if library == "torch" else case.ours(params, executor, torch.float16)
        for step in range(5):
            for index, param in enumerate(params):
                Gradients(param.dtype, seed=index).set([param], step)
            optimizer.step()
        results.append(params)
    for p, q in zip(*results, strict=True):
        limit = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(p.dtype, 1e-5)
        assert q.dtype == p.dtype and (flat([p]) - flat([q])).abs().nan_to_num().max() <= limit if p.numel() else True


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_of_another_dtype(executor):
    """Where torch lets a gradient have its own dtype (grad_dtype), the arithmetic is in the wider one."""
    param = torch.nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
    if not hasattr(param, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    param.grad_dtype = torch.float32
    param.grad = torch.randn(7)
    expected = (param.detach().float() - 0.1 * param.grad).bfloat16()
    compiledopt.SGD([param], lr=0.1, **EXECUTORS[executor]).step()
    assert torch.equal(param.detach(), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_tensors_that_change_between_steps(case, executor):
    """p.data replaced, moved into channels_last, gradients accumulated into: pointers are read anew at each step."""

    def drive(optimizer, params):
        Gradients().set(params, 0)
        optimizer.step()
        params[0].data = params[0].data.clone()
        optimizer.step()
        params[1].data = params[1].data.to(memory_format=torch.channels_last)
        Gradients().set(params, 1)
        optimizer.step()
        params[0].grad.add_(1.0)
        optimizer.step()
        params[0].requires_grad_(False)
        params[0].grad = None
        optimizer.step()
        params[0].requires_grad_(True)
        Gradients().set(params, 2)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        for group in optimizer.param_groups:
            group["params"] = group["params"][::-1]
        optimizer.step()

    results = []
    for library in ("torch", "ours"):
        torch.manual_seed(1)
        params = [leaf(torch.randn(5, 6)), leaf(torch.randn(2, 3, 4, 5)), leaf(torch.randn(()))]
        drive(case.torch(params) if library == "torch" else case.ours(params, executor), params)
        results.append(flat(params))
    assert (results[0] - results[1]).abs().max() < 1e-5


def random_model(rng):
    shapes = [
        tuple(rng.choice([0, 1, 1, 2, 3, 8, 17, 64]) for _ in range(rng.randrange(4))) for _ in range(rng.randrange(1, 9))
    ]
    params = []
    for shape in shapes:
        tensor = torch.randn(shape)
        if len(shape) > 1 and rng.random() < 0.4:
            order = rng.sample(range(len(shape)), len(shape))
            tensor = tensor.permute(order)
        if tensor.dim() == 4 and rng.random() < 0.5:
            tensor = tensor.to(memory_format=torch.channels_last)
        params.append(leaf(tensor))
    groups, rest = [], list(params)
    while rest:
        count = rng.randrange(1, len(rest) + 1)
        groups.append({"params": rest[:count], "lr": rng.choice([0.1, 0.01]), "weight_decay": rng.choice([0.0, 0.1])})
        rest = rest[count:]
    return params, groups


SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", by_kind())
def test_random_models(case, seed, executor):
    """Random shapes, layouts, groups, absent gradients and thread counts, against torch."""
    results = []
    for library in ("torch", "ours"):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        params, groups = random_model(rng)
        torch.set_num_threads(rng.choice([1, 2]))
        optimizer = case.torch(groups) if library == "torch" else case.ours(groups, executor)
        for step in range(8):
            Gradients(seed=seed).set(params, step)
            for param in params:
                if rng.random() < 0.2:
                    param.grad = None
            optimizer.step()
        results.append(flat(params))
    assert (results[0] - results[1]).abs().nan_to_num().sum() <= 1e-5 * max(1, len(results[0]))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit(threads):
    """Above the size where threads pay, with tensors that end inside a thread's share."""
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        params = [leaf(torch.randn(n)) for n in (700_001, 13, 400_000, 1, 900_003)]
        optimizer = compiledopt.AdamW(params, compiled=True)
        run(optimizer, params, Gradients(), range(3))
        results.append(flat(params))
    assert torch.equal(*results)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_parameters(threads):
    """More parameters than one thread gathers, so many that no number of threads divides them, some without gradients, in
    several groups: values, counts and versions of each."""
    torch.set_num_threads(threads)
    results = []
    for library in (torch.optim, compiledopt):
        torch.manual_seed(0)
        params = [leaf(values.clone()) for values in torch.randn(5001, 3).unbind()]
        groups = [{"params": params[:2500]}, {"params": params[2500:], "lr": 0.1}]
        optimizer = (
            torch.optim.AdamW(groups, foreach=True) if library is torch.optim else compiledopt.AdamW(groups, compiled=True)
        )
        for step in range(4):
            gradients = torch.randn(5001, 3).unbind()
            for index, param in enumerate(params):
                param.grad = None if (step + index) % 5 == 3 else gradients[index]
            versions = [param._version for param in params]
            optimizer.step()
            assert all((param._version > old) is (param.grad is not None) for param, old in zip(params, versions, strict=True))
        results.append((flat(params), torch.stack([optimizer.state[param]["step"] for param in params])))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-5 and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("make", [make for make in LAYOUTS if make is not strided], ids=lambda make: make.__name__)
def test_what_is_dense(make):
    """Strides of dimensions with one element do not count."""
    param = make()
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    compiledopt.SGD([param], lr=0.5, compiled=True).step()
    torch.testing.assert_close(param.detach(), before - 0.5)


def test_a_step_in_inference_mode():
    """States made there are plain tensors, so that the next step, outside, is compiled as well."""
    theirs, mine = leaf(torch.ones(3)), leaf(torch.ones(3))
    for library, param in ((torch.optim, theirs), (compiledopt, mine)):
        param.grad = torch.ones(3)
        optimizer = library.AdamW([param], lr=0.1)
        if library is compiledopt:
            with torch.inference_mode():
                optimizer.step()
            optimizer.step()
            assert optimizer.executor == "compiled"
        else:
            optimizer.step()
            optimizer.step()
    torch.testing.assert_close(theirs, mine)


def test_states_that_the_launcher_does_not_take():
    """A state made by the user in inference mode: an eager executor with a warning, an error where compiled=True."""
    param = leaf(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = compiledopt.SGD([param], lr=0.1, momentum=0.5)
    with torch.inference_mode():
        optimizer.state[param]["momentum_buffer"] = torch.ones(3)
        with pytest.warns(UserWarning, match="a gradient or state is not a plain dense tensor"):
            optimizer.step()
    assert torch.allclose(param.detach(), torch.full((3,), 1 - 0.1 * 1.5))
    assert optimizer.executor == "for-loop" and "not a plain dense tensor" in optimizer.explain()
    with pytest.raises(RuntimeError, match="state 'momentum_buffer' is an inference tensor"):
        optimizer.step()  # torch could not write it either, but would have written the parameter first
    assert torch.allclose(param.detach(), torch.full((3,), 1 - 0.1 * 1.5))
    optimizer.param_groups[0]["compiled"] = True
    with torch.inference_mode(), pytest.raises(RuntimeError, match="compiled=True cannot be had: a gradient or state"):
        optimizer.step()


def test_a_parameter_without_storage_waits():
    module = torch.nn.LazyLinear(3)
    optimizer = compiledopt.AdamW(module.parameters())
    optimizer.step()
    optimizer.compile()
    assert optimizer.executor == "none"
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.executor == "compiled" and len(optimizer.state) == 2
