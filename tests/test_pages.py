"""The generated pages are what the code says, and each cell of the table of features is what an optimizer does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from catalog import CATALOG
from helpers import parameters

import compiledopt

DOCS = Path(__file__).parent.parent / "docs"
if not DOCS.exists():
    pytest.skip("the tests run without the repository around them", allow_module_level=True)
sys.path.insert(0, str(DOCS))
from differences import DIFFERS, WORKS_HERE  # noqa: E402
from generate import FEATURES, algorithms, features  # noqa: E402


def test_pages_are_generated():
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(Path(compiledopt.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("difference", [*WORKS_HERE, *DIFFERS], ids=lambda one: one.what)
def test_every_difference_has_a_reason_and_a_test(difference):
    file, _, test = difference.shown.partition("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text()
    assert len(difference.why) > 5 and difference.torch != difference.here


def test_public_names():
    """Every public name of torch.optim, and each of them in the table."""
    theirs = {name for name in torch.optim.__all__ if not name.startswith("_")}
    assert theirs <= set(compiledopt.__all__) and all(hasattr(compiledopt, name) for name in compiledopt.__all__)
    classes = {name for name in theirs if isinstance(getattr(torch.optim, name), type)} - {"Optimizer"}
    assert set(algorithms()) == classes
    for name in classes:
        assert issubclass(getattr(compiledopt, name), torch.optim.Optimizer) and getattr(compiledopt, name) is not getattr(
            torch.optim, name
        )


OPTIONS = {
    "compiled": {"compiled": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
    "maximize": {"maximize": True},
    "tensor lr": {"lr": torch.tensor(0.1)},
}


def step_with(name, feature):
    """Take a step that needs the feature; the change of the parameter."""
    options = dict(OPTIONS.get(feature, {}))
    if feature == "for-loop" and not features(name)["foreach"]:
        options = {}
    dtype = torch.complex64 if feature == "complex" else torch.float32
    param = parameters(dtype, [(4, 3)])[0]
    sparse = feature == "sparse" or (CATALOG[name].sparse_only and feature != "foreach")
    grad = torch.ones(4, 3, dtype=dtype)
    param.grad = torch.sparse_coo_tensor([[0, 1, 2, 3]], grad, (4, 3), check_invariants=True) if sparse else grad
    target = param
    if feature == "differentiable":
        target = param.detach().clone().requires_grad_().clone()
        target.retain_grad()
        target.grad = grad
    before = target.detach().clone()
    optimizer = getattr(compiledopt, name)([target], **options)
    for _ in range(2):
        optimizer.step(*[lambda: 0.5] * (CATALOG[name].rule is None))
    if feature in ("compiled", "foreach", "for-loop"):
        assert optimizer.executor == feature
    return target.detach() - before


@pytest.mark.filterwarnings("ignore:.*such rules are not compiled with capturable=True:UserWarning")  # and are said so
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", algorithms())
def test_the_table_is_true(name, feature):
    if features(name)[feature]:
        change = step_with(name, feature)
        assert change.abs().max() > 0
        if feature == "maximize":
            assert torch.sign(change.sum()) == -torch.sign(step_with(name, "for-loop").sum())
    else:
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            step_with(name, feature)
