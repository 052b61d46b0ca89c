"""Some of what circumstances.py tries of every algorithm; `python tests/circumstances.py` tries all."""

import pytest
from circumstances import ALGORITHMS, CHECKS, HOW, faults

# One of each sort: whole matrices between two programs, a list of states, sums over the model, work that is not always due.
SORTS = ["AdaGO", "AdaShift", "DAdaptAdaGrad", "SPlus"]
EAGER = [(check, SORTS[number % len(SORTS)]) for number, check in enumerate(CHECKS) if check not in ("graphs", "executors")]


@pytest.mark.parametrize(
    ("check", "name"), [("executors", "AdaGO"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in EAGER)]
)
def test_an_algorithm_in_a_circumstance(check, name, monkeypatch):
    if check != "executors":  # kernels of other tests' are none of these
        monkeypatch.delitem(HOW, "compiled")
    assert faults(ALGORITHMS[name], CHECKS[check]) == []
