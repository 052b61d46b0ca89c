"""Every promise of contract.py, for every algorithm: first that its counterpart in torch.optim keeps it, then that we do."""

import pytest
from catalog import CATALOG
from contract import CONTRACTS, Subject


def kept(promise, algorithm):
    promise(Subject(algorithm, ours=False))
    promise(Subject(algorithm, ours=True))


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("promise", CONTRACTS, ids=lambda promise: promise.__name__)
def test_kept_by_torch_and_here(promise, name):
    kept(promise, CATALOG[name])
