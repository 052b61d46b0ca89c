"""Some of what circumstances.py tries of every algorithm; `python tests/circumstances.py` tries all."""

import pytest
from catalog import MENU
from circumstances import ALGORITHMS, CHECKS, HOW, faults


def first(wanted):
    return next(name for name, one in MENU.items() if wanted(one))


MATRICES = first(lambda one: not one.takes_vectors)  # whole ones, between two programs
OTHERS = [first(lambda one: one.rule.lists), first(lambda one: one.rule.shared), first(lambda one: one.rule.every)]
SORTS = [MATRICES, *OTHERS]
EAGER = [(check, SORTS[number % len(SORTS)]) for number, check in enumerate(CHECKS) if check not in ("graphs", "executors")]


@pytest.mark.parametrize(
    ("check", "name"), [("executors", MATRICES), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in EAGER)]
)
def test_an_algorithm_in_a_circumstance(check, name, monkeypatch):
    if check != "executors":  # kernels of other tests' are none of these
        monkeypatch.delitem(HOW, "compiled")
    assert faults(ALGORITHMS[name], CHECKS[check]) == []
