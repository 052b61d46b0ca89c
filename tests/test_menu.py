"""Optimizers by name: timm's and Transformers' names, what they mean here, and what is refused."""

import pytest
import torch

import compiledopt
from compiledopt import menu


def params():
    return [torch.nn.Parameter(torch.ones(4, 3))]


@pytest.mark.parametrize("name", compiledopt.list_optimizers())
def test_each_name_makes_an_optimizer(name):
    title, meant = menu._entry(name)
    if name.startswith("paged_"):
        with pytest.warns(UserWarning, match="not paged"):
            optimizer = compiledopt.create_optimizer(name, params())
    else:
        optimizer = compiledopt.create_optimizer(name.upper(), params(), lr=0.03)
        assert optimizer.param_groups[0]["lr"] == 0.03
    assert type(optimizer) is getattr(compiledopt, title)
    found = {key: optimizer.param_groups[0][key] for key in meant}
    found["corrected_decay"] = bool(found.get("corrected_decay"))  # which keeps the largest rate in its place
    assert found == {"corrected_decay": False, **meant}


def test_what_names_mean():
    for name, title, options in (
        ("sgd", "SGD", {"momentum": 0, "nesterov": False}),
        ("nesterov", "SGD", {"momentum": 0.9, "nesterov": True}),
        ("sgdw", "SGDW", {"momentum": 0.9, "nesterov": True}),
        ("radabelief", "AdaBelief", {"rectify": True}),
        ("adamw_torch_fused", "AdamW", {"fused": True}),
        ("AdamW-foreach", "AdamW", {"foreach": True}),
        ("lambcw", "LAMB", {"trust_clip": True, "decoupled_decay": True}),
        ("lion_32bit", "Lion", {}),
        ("stable_adamw", "StableAdamW", {}),
    ):
        optimizer = compiledopt.create_optimizer(name, params())
        assert type(optimizer).__name__ == title
        assert {key: optimizer.param_groups[0][key] for key in options} == options
    assert compiledopt.create_optimizer("sgdw", params(), momentum=0.5).param_groups[0]["momentum"] == 0.5


def test_lists_are_filtered():
    every = compiledopt.list_optimizers()
    assert every == sorted(set(every)) and {"adamw", "lion", "yogi", "sgdw"} <= set(every)
    lions = compiledopt.list_optimizers("*lion*")
    assert "lion" in lions and all("lion" in name for name in lions)
    assert "lion" not in compiledopt.list_optimizers("*lion*", exclude_filters=["lion"])
    assert compiledopt.list_optimizers(["yogi", "ti*"]) == ["tiger", "yogi"]


def test_what_is_not_here_says_why():
    for name, message in (
        ("lyon", "no optimizer 'lyon'; near it: lion"),
        ("qqqq", "see list_optimizers"),
        ("lomo", "within backward"),
        ("ranger", "lookahead_radam"),
        ("galore_adamw_layerwise", "within backward"),
        ("lookahead_lyon", "no optimizer 'lyon'"),
        ("adamw_torch_xla", "XLA"),
    ):
        with pytest.raises(ValueError, match=message):
            compiledopt.create_optimizer(name, params())
    with pytest.raises(TypeError, match="no_such"):
        compiledopt.create_optimizer("lion", params(), no_such=1)
    assert not set(menu.REFUSED) & set(compiledopt.list_optimizers())
