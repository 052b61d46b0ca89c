"""States of which a rule's author says that they are never below zero, and what a rule of matrices keeps in codes."""

import pytest
import torch
from catalog import MATRICES
from helpers import Gradients, flat, parameters, rms, run

import compiledopt
from compiledopt.storage.signs import never_negative

# The state, and a choice of options under which it is like the parameter; bases are made anew every other step.
SAID = {
    "APOLLOAdamW": ("exp_avg_sq", {"update_proj_gap": 2}),
    "AdaMuon": ("v_buffer", {}),
    "GaLoreAdamW": ("exp_avg_sq", {"update_proj_gap": 2}),
    "SOAP": ("exp_avg_sq", {"precondition_frequency": 2}),
    "StableAdamW": ("exp_avg_sq", {}),
    "AdaSmooth": ("exp_avg_sq", {}),
    "VSGD": ("bhg", {}),
}


def trained(kind, shapes, steps=5, **options):
    params = parameters(shapes=shapes)
    optimizer = kind(params, lr=0.01, **options)
    run(optimizer, params, Gradients(), range(steps))
    return optimizer, params


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_a_state_is_so_and_its_root_is_kept(name):
    """In float32 it is never below zero; and kept in 8 bits, the run is near that in float32."""
    kind, (state, options) = getattr(compiledopt, name), SAID[name]
    options = {**options, "foreach": True}
    exact, wanted = trained(kind, [(64, 64), (64, 96)], **options)
    for param in wanted:
        value = exact.state[param][state]
        assert value.min() >= 0 and (value > 0).double().mean() > 0.9
    coded, found = trained(kind, [(64, 64), (64, 96)], state_dtype="int8", **options)
    assert all(coded.state[param][state].dtype == torch.uint8 for param in found)
    moved = rms(flat(wanted) - flat(parameters(shapes=[(64, 64), (64, 96)])))
    assert 0 < rms(flat(found) - flat(wanted)) < 0.1 * moved > 1e-4


SQUARE = [one for one in MATRICES.values() if not (one.takes("rank") or one.takes("proj_type"))]


@pytest.mark.parametrize("name", [pytest.param(one.name, marks=[pytest.mark.slow] * one.brief) for one in SQUARE])
def test_matrices_of_dimensions_are_no_codes_in_square_parameters_either(name):
    """They have the shape of a square parameter by chance; and what is kept how is told before there is a step."""
    made = getattr(compiledopt, name)([torch.nn.Parameter(torch.ones(64, 64))], state_dtype="int8")
    stacked = "not as int8: it is of shape (1, 64, 64) for a parameter of (64, 64)"
    assert "not as int8: it is of shape (64, 64) for a parameter of (64, 128)" in made.explain() or stacked in made.explain()
    optimizer, params = trained(getattr(compiledopt, name), [(64, 64), (64, 96)], 2, state_dtype="int8")
    for param in params:
        matrices = [value for key, value in optimizer.state[param].items() if key[-2:] in ("_0", "_1")]
        assert len(matrices) >= 2 and all(value.dtype == torch.float32 for value in matrices)


def average(param, grad, square, *, lr=0.1, weight=0.1):
    """An average in a form of which nothing is proved."""
    square = square + weight * (grad * grad - square)
    return param - lr * grad / (square.sqrt() + 1e-8), square


def test_an_author_says_what_is_not_proved():
    Plain, Said = compiledopt.define(average), compiledopt.define(average, name="Said", never_negative=("square",))
    groups = [kind([torch.nn.Parameter(torch.zeros(2))]).param_groups[0] for kind in (Plain, Said)]
    assert never_negative(Plain.rule, groups[0]) == set() and never_negative(Said.rule, groups[1]) == {"square"}
    with pytest.raises(ValueError, match="which is not proved of square"):
        Plain(parameters(), state_dtype="uint8")
    _, wanted = trained(Said, [(64, 64)])
    for options in ({"compiled": True}, {"foreach": True}, {"foreach": False}):
        optimizer, found = trained(Said, [(64, 64)], state_dtype="uint8", **options)
        assert optimizer.state[found[0]]["square"].dtype == torch.uint8
        assert 0 < rms(flat(found) - flat(wanted)) < 0.05 * rms(flat(wanted) - flat(parameters(shapes=[(64, 64)])))


def test_what_is_below_zero_after_all_is_seen():
    """It becomes NaN at its element, as the documentation says, and the others stay."""

    def falling(param, grad, square, *, lr=0.1):
        return param - lr * square, square - grad

    Falling = compiledopt.define(falling, never_negative=("square",))
    for options in ({"compiled": True}, {"foreach": False}):
        param = torch.nn.Parameter(torch.zeros(64, 64))
        optimizer = Falling([param], state_dtype="uint8", **options)
        for _ in range(2):
            param.grad = -torch.ones(64, 64)
            param.grad[3, 5] = 1.0
            optimizer.step()
        assert param.isnan().nonzero().tolist() == [[3, 5]] and (param[0] != 0).all()


def test_a_sum_of_weighted_squares_is_proved():
    """MADGRAD's, whose weights grow with a power of the step; in 8 bits it has no zeros to divide by, and the run is near."""
    optimizer, params = trained(compiledopt.MADGRAD, [(64, 96)], foreach=False)
    assert "grad_sum_sq" in never_negative(optimizer.rule, optimizer.param_groups[0])
    assert "s" not in never_negative(optimizer.rule, optimizer.param_groups[0])
    coded, found = trained(compiledopt.MADGRAD, [(64, 96)], state_dtype="int8")
    assert coded.state[found[0]]["grad_sum_sq"].dtype == torch.uint8 and coded.state[found[0]]["s"].dtype == torch.int8
    moved = rms(flat(params) - flat(parameters(shapes=[(64, 96)])))
    assert 0 < rms(flat(found) - flat(params)) < 0.05 * moved > 1e-4


def test_what_cannot_be_said_is_refused():
    with pytest.raises(TypeError, match="never_negative names 'sqare', which is none of"):
        compiledopt.define(average, never_negative=("sqare",))
    with pytest.raises(TypeError, match="never_negative names 'square', which starts from -1"):
        compiledopt.define(average, never_negative=("square",), initial={"square": -1.0})


def test_a_copy_of_the_parameter_is_exact_unasked():
    """Schedule-Free's z: what steps move. Asked for by its name it is kept in codes."""
    for kept, dtype in (("int8", torch.float32), ({"z": "int8"}, torch.int8), (torch.bfloat16, torch.float32)):
        params = [torch.nn.Parameter(torch.randn(64, 64))]
        optimizer = compiledopt.AdamWScheduleFree(params, state_dtype=kept, foreach=False)
        params[0].grad = torch.randn(64, 64)
        optimizer.step()
        assert optimizer.state[params[0]]["z"].dtype is dtype and ("'z'" in str(kept)) == ("z as int8" in optimizer.explain())
    assert "z not as bfloat16: it starts from the parameter" in optimizer.explain()
