"""What people write in an optimizer compiles, and gives what torch gives (tests/expressions.py)."""

import math
import re

import pytest
import torch
from catalog import EXECUTORS
from expressions import POINTWISE, REDUCING, REFUSED, SIZES

import compiledopt
from compiledopt.stats import STATS

F = torch.nn.functional
TOGETHER = 12  # expressions of one kernel
SHAPE = (9, 8)
SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, math.inf, -math.inf, math.nan, 1.0]


def batches(expressions):
    return [expressions[at : at + TOGETHER] for at in range(0, len(expressions), TOGETHER)]


def made(expressions, **declarations):
    """An optimizer class that puts the value of each expression into a state of its own."""
    states = [f"e{i}" for i in range(len(expressions))]
    lines = [f"def rule(param, grad, s, {', '.join(states)}, step, *, lr=0.25, k=3.0):", "    p, g = param, grad"]
    lines += [f"    {state} = {expression}" for state, expression in zip(states, expressions, strict=True)]
    lines += [f"    return p, s, {', '.join(states)}, step"]
    namespace = {"torch": torch, "F": F, "math": math, "__name__": __name__}
    exec(compile("\n".join(lines), "author.py", "exec"), namespace)
    return compiledopt.define(scalars=("step",), initial={"s": 0.7, "step": 3.0}, **declarations)(namespace["rule"]), states


def tensors(shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    p, g = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    count = min(len(SPECIAL), p.numel())
    p.view(-1)[:count] = torch.tensor(SPECIAL[:count], dtype=dtype)
    g.view(-1)[-count:] = torch.tensor(SPECIAL[:count], dtype=dtype)
    return p, g


def expected(expression, p, g):
    given = {"torch": torch, "F": F, "math": math, "p": p, "param": p, "g": g, "grad": g, "s": torch.full_like(p, 0.7)}
    numbers = {"lr": 0.25, "k": 3.0, "step": 3.0}
    given |= {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return torch.as_tensor(eval(expression, given)).to(p.dtype).expand(p.shape)


def check(expressions, executor, shape=SHAPE, dtype=torch.float32):
    p, g = tensors(shape, dtype)
    optimizer, states = made(expressions)
    param = torch.nn.Parameter(p.clone())
    param.grad = g.clone()
    optimizer = optimizer([param], **EXECUTORS[executor])
    before = STATS.kernels_with_torch_headers
    optimizer.step()
    assert optimizer.executor == executor and STATS.kernels_with_torch_headers == before
    for state, expression in zip(states, expressions, strict=True):
        found, wanted = optimizer.state[param][state], expected(expression, p, g)
        torch.testing.assert_close(
            found, wanted, rtol=1e-5, atol=2e-6, equal_nan=True, msg=lambda words, text=expression: f"{text}: {words}"
        )


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("expressions", batches(POINTWISE), ids=lambda expressions: expressions[0])
def test_pointwise(expressions, executor):
    check(expressions, executor)


def finite(expression, shape):
    """p, g and the value of an expression, without special values."""
    generator = torch.Generator().manual_seed(1)
    p, g = (torch.randn(shape, generator=generator) for _ in range(2))
    return p, g, expected(expression, p, g)


def check_reducing(expressions, executor="compiled", shape=SHAPE):
    optimizer, states = made(expressions)
    p, g, _ = finite("p", shape)
    param = torch.nn.Parameter(p.clone())
    param.grad = g.clone()
    optimizer = optimizer([param], **EXECUTORS[executor])
    optimizer.step()
    assert optimizer.executor == executor
    for state, expression in zip(states, expressions, strict=True):
        found, wanted = optimizer.state[param][state], expected(expression, p, g)
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-5, msg=lambda words, text=expression: f"{text}: {words}")


@pytest.mark.parametrize("expressions", batches(REDUCING), ids=lambda expressions: expressions[0])
def test_reducing(expressions):
    check_reducing(expressions)


def test_numbers_of_the_parameter_are_entries_of_the_table():
    """Another shape compiles nothing."""
    optimizer, states = made(SIZES)
    shapes = [(9, 8), (3, 5), (2, 2), (9, 8)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    starts = [param.detach().clone() for param in params]
    before = compiledopt.compile_stats()["kernels_lowered"]
    for executor in EXECUTORS:
        stepped = optimizer(params, **EXECUTORS[executor])
        for _ in range(2):
            for param, start in zip(params, starts, strict=True):
                param.grad = torch.ones_like(start)
            stepped.step()
        assert stepped.executor == executor
        for param, start in zip(params, starts, strict=True):
            for state, expression in zip(states, SIZES, strict=True):
                wanted = expected(expression, start, torch.ones_like(start))
                torch.testing.assert_close(stepped.state[param][state], wanted)
    assert compiledopt.compile_stats()["kernels_lowered"] <= before + 1


@pytest.mark.parametrize("expression", REFUSED)
def test_what_has_no_kernel_says_what_to_write(expression):
    optimizer, _ = made([expression])
    param = torch.nn.Parameter(torch.ones(SHAPE))
    param.grad = torch.ones(SHAPE)
    with pytest.raises((RuntimeError, TypeError), match=re.escape(REFUSED[expression])) as caught:
        optimizer([param], compiled=True).step()
    assert "author.py:3" in str(caught.value)
    assert torch.equal(param.detach(), torch.ones(SHAPE))
