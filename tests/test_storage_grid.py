"""Some cases of the grid of storage_grid.py, which says what is tried of each; `python tests/storage_grid.py` has more."""

import itertools

import pytest
import torch
from storage_grid import Case, drawn, faults

CASES = [
    Case("AdamW", "int8", "nearest", torch.float32, "compiled", 0, ("average",), absent=True),
    Case("Lion", "int4", "stochastic", torch.bfloat16, "foreach", 0, ("schedule",), absent=False),
]
MORE = [pytest.param(case, marks=pytest.mark.slow, id=str(case)) for case in itertools.islice(drawn(15), 24)]


@pytest.mark.parametrize("case", [*(pytest.param(case, id=str(case)) for case in CASES), *MORE])
def test_what_is_kept_in_fewer_bytes_is_what_the_rule_makes(case):
    """By every executor and in every layout, before and after a file."""
    assert faults(case) == []


def test_a_wrong_value_is_a_fault(monkeypatch):
    """What is a quarter too large, for one codec of two."""
    from compiledopt.storage import CODECS

    encode = type(CODECS["int8"]).encode
    case = Case("SGD", "int8", "nearest", torch.float32, "for-loop", 0, (), absent=False)

    def wrong(self, values, bits):
        codes, scale = encode(self, values, bits)
        return codes, scale * 1.25

    monkeypatch.setattr(type(CODECS["int8"]), "encode", wrong)
    assert any("momentum_buffer" in fault and "× the bound off" in fault for fault in faults(case))
