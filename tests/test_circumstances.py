"""Some of what circumstances.py tries of every algorithm; `python tests/circumstances.py` tries all."""

import pytest
import torch
from catalog import MENU
from circumstances import ALGORITHMS, CHECKS, HOW, faults

import compiledopt
from compiledopt.rules.matrix_program import matrix_program
from compiledopt.rules.traced import traced


def first(wanted):
    return next(name for name, one in MENU.items() if wanted(one))


MATRICES = first(lambda one: not one.takes_vectors)  # whole ones, between two programs
OTHERS = [first(lambda one: one.rule.lists), first(lambda one: one.rule.shared), first(lambda one: one.rule.every)]
SORTS = [MATRICES, *OTHERS]
EAGER = [(check, SORTS[number % len(SORTS)]) for number, check in enumerate(CHECKS) if check != "graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(("check", "name"), EAGER)
def test_an_algorithm_in_a_circumstance(check, name, monkeypatch):
    monkeypatch.delitem(HOW, "compiled")  # kernels of other tests' are none of these
    assert faults(ALGORITHMS[name], CHECKS[check]) == []


def test_a_part_of_a_rule_has_the_options_that_its_states_are_made_of():
    """Those too that nothing else in it reads."""
    param = torch.nn.Parameter(torch.ones(3, 4))
    group = compiledopt.AdaGO([param], v=0.5).param_groups[0]
    found = matrix_program(traced(compiledopt.AdaGO.rule, group), param)
    assert found.after.shapes_of(param)["v_sq"] == (1, 1)
