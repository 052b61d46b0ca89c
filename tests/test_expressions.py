"""What people write in an optimizer compiles, and gives what torch gives (tests/expressions.py)."""

import math

import pytest
import torch
from catalog import EXECUTORS
from expressions import POINTWISE

import compiledopt

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
    optimizer.step()
    assert optimizer.executor == executor
    for state, expression in zip(states, expressions, strict=True):
        found, wanted = optimizer.state[param][state], expected(expression, p, g)
        torch.testing.assert_close(
            found, wanted, rtol=1e-5, atol=2e-6, equal_nan=True, msg=lambda words, text=expression: f"{text}: {words}"
        )


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("expressions", batches(POINTWISE), ids=lambda expressions: expressions[0])
def test_pointwise(expressions, executor):
    check(expressions, executor)
