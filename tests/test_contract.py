"""Every promise of contract.py, for every algorithm: first that torch.optim keeps it, then that we do."""

import pytest
import torch
from contract import CONTRACTS, Subject

import compiledopt

NAMES = [n for n in torch.optim.__all__ if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("promise", CONTRACTS, ids=lambda promise: promise.__name__)
def test_kept_by_torch_and_here(promise, name):
    promise(Subject(torch.optim, name))
    promise(Subject(compiledopt, name))
