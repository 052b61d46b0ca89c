"""`noise`, an argument of rules: the same numbers for every executor and number of threads, and after loading."""

import math
import warnings

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, rms, run, same
from test_random import MASK, by_hand

import compiledopt
from compiledopt import total
from compiledopt.rules.noise import Noise
from compiledopt.rules.random import bits, key

SHAPES = ((7, 5), (300,), ())


@compiledopt.define
def Perturbed(param, grad, exp_avg, *, lr=0.1, size=0.5, noise):
    exp_avg = exp_avg.lerp(grad + size * noise.normal(), 0.5)
    return param - lr * (exp_avg + noise.uniform() - 0.5), exp_avg


@compiledopt.define(scalars=("step",))
def Reducing(param, grad, step, *, lr=0.1, noise):
    direction = grad + noise.normal()
    return param - lr * direction / direction.norm(), step + 1


@compiledopt.define
def Summing(param, grad, *, lr=0.1, noise):
    """A derivative along a random direction, over the whole model."""
    direction = noise.normal()
    return param - lr * total(grad * direction) * direction


@compiledopt.define(elementwise=False)
def OnTensors(param, grad, *, lr=0.1, noise):
    return param - lr * (grad + noise.normal() * (noise.uniform() < 0.5))


@compiledopt.define(elementwise=False)
def Sorting(param, grad, *, lr=0.1, noise):
    return param - lr * (grad + noise.normal()).reshape(-1).sort().values.reshape(param.shape)


RULES = (Perturbed, Reducing, Summing, OnTensors, Sorting)


def parameters(shapes=SHAPES, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def trained(rule, steps=3, shapes=SHAPES, dtype=torch.float32, **options):
    params = parameters(shapes, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = rule(params, **options)
        run(optimizer, params, Gradients(torch.float32), range(steps))
    return optimizer, params


def numbers_of(seed, step, parameter, count, draw=1):
    """(uniform, normal) of a draw in float64, from whole numbers."""
    words = bits(key(*(torch.tensor(value) for value in (seed, step, parameter))), torch.arange(count)).tolist()

    def drawn(place):
        return [by_hand(word ^ (place * 0x9E3779B9 & MASK)) for word in words]

    uniform = [(word >> 8) / 2**24 for word in drawn(2 * draw)]
    signed = [word - 2**32 if word >= 2**31 else word for word in drawn(2 * draw + 1)]
    pairs = zip(drawn(2 * draw), signed, strict=True)
    normal = [math.sqrt(-2 * math.log(((a >> 1) + 0.5) / 2**31)) * math.cos(math.pi * b / 2**31) for a, b in pairs]
    return torch.tensor(uniform, dtype=torch.float64), torch.tensor(normal, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_noise_is_the_hash(executor, dtype):
    starts = parameters(dtype=dtype)
    optimizer = Perturbed(params := copies(starts), lr=1.0, size=1.0, seed=5, **EXECUTORS[executor])
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.executor == executor
    for number, (param, start) in enumerate(zip(params, starts, strict=True)):
        _, normal = numbers_of(5, 0, number, param.numel())
        uniform, _ = numbers_of(5, 0, number, param.numel(), draw=2)
        expected = normal / 2 + uniform - 0.5
        found = (start - param).detach().double().reshape(-1)
        assert rms(expected) > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_normal_numbers_are_normal():
    count = 1 << 20
    drawn = Noise(lambda: bits(key(*map(torch.tensor, (3, 1, 4))), torch.arange(count)))
    first, second, uniform = drawn.normal().double(), drawn.normal().double(), drawn.uniform().double()
    for values in (first, second):
        assert values.mean().abs() < 5 / count**0.5 and (values.var() - 1).abs() < 5 * (2 / count) ** 0.5
        assert (values**4).mean().sub(3).abs() < 5 * (96 / count) ** 0.5 and 4.5 < values.abs().max() < 6.7
        places = torch.special.ndtr(values).sort().values
        apart = (places - (torch.arange(count) + 0.5) / count).abs().max()  # Kolmogorov and Smirnov: 1.95 / √n is 1 in 1000
        assert apart < 1.95 / count**0.5
    pairs = torch.stack([first, second, uniform, first.roll(1), first**2, second**2, uniform**2])
    correlations = torch.corrcoef(pairs)
    known = {(0, 0), (2, 6)}
    for i in range(7):
        for j in range(i):
            if (j, i) not in known:
                assert correlations[i, j].abs() < 5 / count**0.5, (i, j)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_executor_and_number_of_threads_has_the_same(rule):
    shapes = ((1 << 9, 1 << 8), (1 << 17,), (33, 3))
    expected = None
    for executor, options in EXECUTORS.items():
        for threads in (1, 2):
            if rule in (OnTensors, Sorting) and executor == "compiled":
                continue
            torch.set_num_threads(threads)
            optimizer, params = trained(rule, 2, shapes, torch.float64, seed=3, lr=1e-3, **options)
            assert optimizer.executor == ("foreach" if rule is Reducing and executor == "foreach" else executor)
            found = flat(params)
            if expected is None:
                expected = found
                moved = rms(found - flat(parameters(shapes, torch.float64)))
                assert moved > 1e-6
            assert (found - expected).abs().max() < 1e-4 * moved, (executor, threads)


def test_threads_give_the_same_bits():
    shapes = ((1 << 9, 1 << 8), (1 << 17,))
    for rule in (Perturbed, Reducing):
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(trained(rule, 2, shapes, compiled=True)[1])
        assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_loaded_run_goes_on(rule, tmp_path):
    options = {"foreach": True} if rule in (OnTensors, Sorting) else {"compiled": True}
    optimizer, params = trained(rule, seed=7, **options)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = copies(params)
    other = rule(others, **options)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert other.param_groups[0]["seed"] == 7 and all(state["step"] == 3 for state in other.state.values())
    run(optimizer, params, Gradients(torch.float32), range(3, 5))
    run(other, others, Gradients(torch.float32), range(3, 5))
    assert same(params, others)
    assert not torch.equal(flat(trained(rule, seed=8, **options)[1]), flat(trained(rule, seed=7, **options)[1]))


def test_steps_parameters_and_draws_differ():
    params = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(2)]
    optimizer, found = Perturbed(params, lr=1.0, size=0.0), []
    for _ in range(3):
        before = copies(params)
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        found += [(now - old).detach() for now, old in zip(params, before, strict=True)]
    correlations = torch.corrcoef(torch.stack(found)) - torch.eye(6)
    assert correlations.abs().max() < 5 / 1000**0.5 and min(map(rms, found)) > 0.25


def test_with_what_stands_around_a_rule():
    """Rounding draws from the same stream, other bits; a step that is left out draws the same numbers again."""
    options = {"rounding": "stochastic", "state_dtype": "bfloat16", "max_grad_norm": 1.0, "ema_decay": 0.9}
    optimizer, params = trained(Perturbed, shapes=((64, 50),), dtype=torch.bfloat16, compiled=True, **options)
    assert optimizer.executor == "compiled" and params[0].isfinite().all()
    found = []
    for broken in (False, True):
        params = [torch.nn.Parameter(torch.zeros(100))]
        optimizer = Perturbed(params, skip_nonfinite=True)
        for value in ([torch.inf] if broken else []) + [1.0]:
            params[0].grad = torch.full((100,), value)
            optimizer.step()
        found.append(params)
    assert same(*found) and rms(found[0][0]) > 0


def test_no_order_in_memory_is_another():
    """Elements count in the order of memory, for every executor."""
    for rule in (Perturbed, OnTensors):
        found = []
        for executor in ("compiled", "for-loop") if rule is Perturbed else ("foreach", "for-loop"):
            params = [torch.nn.Parameter(torch.zeros(6, 4).t()), torch.nn.Parameter(torch.zeros(2, 3, 4, 5)[:, :, ::2])]
            params[1:] = params[1:] if rule is OnTensors else []
            for param in params:
                param.grad = torch.zeros_like(param)
            rule(params, **EXECUTORS[executor]).step()
            found.append(flat(params))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
        assert rms(found[0]) > 0.01


def test_what_it_says():
    optimizer, _ = trained(Perturbed)
    text = optimizer.explain()
    assert "normal(seed, t, 1)" in text and "uniform(seed, t, 2)" in text
    assert "seed" in str(compiledopt.define(Perturbed.rule.function.__wrapped__.__wrapped__).__init__.__signature__)
    with pytest.raises(ValueError, match="Invalid seed value: -1"):
        Perturbed(parameters(), seed=-1)


def test_what_is_refused():
    def with_count(param, grad, step, *, lr=0.1, noise):
        return param - lr * noise.normal(), step + 1

    with pytest.raises(TypeError, match=r"noise is a function of the state 'step', .*; say scalars=\('step',\)"):
        compiledopt.define(with_count)
    with pytest.raises(TypeError, match="noise is for dense gradients, and sparse='rows'"):
        compiledopt.define(sparse="rows")(lambda param, grad, *, lr=0.1, noise: param - lr * noise.normal())
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)

    @compiledopt.define
    def AsNumber(param, grad, *, lr=0.1, noise):
        return param - lr * noise

    @compiledopt.define
    def Torchs(param, grad, *, lr=0.1):
        return param - lr * torch.randn_like(param)

    with pytest.raises(TypeError, match=r"test_noise.py:\d+: .* not with Noise; write noise.normal\(\)"):
        AsNumber([param]).step()
    with pytest.warns(match=r"take the keyword argument `noise`, and write noise.normal\(\)"):
        Torchs([param]).step()
