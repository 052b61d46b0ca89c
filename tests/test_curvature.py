"""Estimates of the Hessian's diagonal: AdaHessian and SophiaH beside the authors' formula, and what they refuse."""

import pytest
import torch

import compiledopt

KINDS = {"AdaHessian": ("exp_hessian_diag_sq", True), "SophiaH": ("hessian_moment", False)}
CURVATURE = torch.tensor([[2.0, 8.0, 0.5], [1.0, 4.0, 16.0]])


def quadratic(param):
    return (CURVATURE / 2 * param.square()).sum()


def prepared(name, **options):
    """An optimizer of a parameter, whose Hessian is diagonal (random signs tell it exactly), and of one without a gradient."""
    param, other = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))
    return getattr(compiledopt, name)([param, other], foreach=False, **options), param, other


@pytest.mark.parametrize("name", KINDS)
def test_an_estimate_goes_into_the_average(name):
    state, squared = KINDS[name]
    torch.manual_seed(0)
    optimizer, param, other = prepared(name, betas=(0.9, 0.75))
    quadratic(param).backward(create_graph=True)
    optimizer.update_hessian(n_samples=1 if squared else 20_000)
    wanted = 0.25 * (CURVATURE.square() if squared else CURVATURE)
    torch.testing.assert_close(optimizer.state[param][state], wanted, rtol=1e-5 if squared else 0.05, atol=0)
    before = optimizer.state[param][state].clone()
    optimizer.update_hessian(hessian=[2 * CURVATURE])
    given = (2 * CURVATURE).square() if squared else 2 * CURVATURE
    torch.testing.assert_close(optimizer.state[param][state], 0.75 * before + 0.25 * given)
    assert state not in optimizer.state[other] or not optimizer.state[other][state].any()
    start = param.detach().clone()
    optimizer.step()
    assert (param.detach() - start).abs().min() > 0


def test_adahessian_finds_the_least_of_what_is_ill_conditioned():
    optimizer, param, _ = prepared("AdaHessian", lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        quadratic(param).backward(create_graph=True)
        optimizer.update_hessian()
        optimizer.step()
    assert quadratic(param) < 1e-2 * quadratic(torch.ones(2, 3))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_estimate_is_refused(name):
    optimizer, param, _ = prepared(name)
    quadratic(param).backward()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        optimizer.update_hessian()
    with pytest.raises(ValueError, match="one estimate, of its shape, for each of the 1 parameters"):
        optimizer.update_hessian(hessian=[torch.ones(3)])
    with pytest.raises(ValueError, match="n_samples value: 0"):
        optimizer.update_hessian(n_samples=0)
    assert not optimizer.state[param]
