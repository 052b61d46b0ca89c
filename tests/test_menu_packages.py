"""The menu beside the packages it comes from: pip install '.[menu]' && pytest -m menu

50 steps each against the authors' package, timm's, optimi's or pytorch_optimizer's; the same argument names and defaults;
timm's registry and Transformers' Trainer with our classes; and every name of theirs either made or refused with a reason.
"""

import importlib
import importlib.util
import inspect
import sys

import peers
import pytest
import torch
from catalog import EXECUTORS, PUBLISHED
from helpers import Gradients, copies, flat, parameters, rms, run

import compiledopt
from compiledopt.menu import CAUTIOUS, CORRECTED
from compiledopt.rules import random

pytestmark = pytest.mark.menu


def class_of(name):
    try:
        return peers.class_of(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}; the extra `menu` brings it")


def package(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; the extra `menu` brings it")


def timm_optim():
    package("timm")
    return peers.timm_optim()


CASES = [case for one in PUBLISHED.values() if one.name in peers.THEIRS for case in one.cases]
LEFT_OUT = {
    "AdEMAMix-warm": "theirs has one warm-up for both",
    "AdEMAMix-all": "theirs has one warm-up for both",
    "Aida-all": "theirs adds eps outside of the root too",
    **{f"FOCUS-{label}": "theirs takes the sign of rounding" for label in ("default", "maximize", "all")},
    "AdaBelief-rectified": "timm's does not look at amsgrad where it rectifies",
}


@pytest.mark.parametrize("case", [case for case in CASES if str(case) not in LEFT_OUT], ids=str)
def test_fifty_steps_beside_the_package(case):
    start = parameters(torch.float64, shapes=[(40, 50), (301,), (1, 7)])
    mine, other = copies(start), copies(start)
    options = case.kwargs()
    maximize = options.pop("maximize", False)
    if maximize and "maximize" not in inspect.signature(class_of(case.algorithm)).parameters:
        pytest.skip(f"theirs has no maximize: {peers.THEIRS[case.algorithm]}")
    optimizer = case.ours(mine, "for-loop")
    torch.set_default_dtype(torch.float64)  # for their 0-dim states
    try:
        reference = peers.theirs(
            case.algorithm, other, foreach=False, **{**options, **({"maximize": True} if maximize else {})}
        )
        run(reference, other, Gradients(torch.float64), range(50))
    finally:
        torch.set_default_dtype(torch.float32)
    run(optimizer, mine, Gradients(torch.float64), range(50))
    effect = rms(flat(other) - flat(start))
    assert effect > 0.01
    assert (flat(mine) - flat(other)).abs().max() <= 1e-3 * effect  # DiffGrad's ε stands within the correction here


# Of timm's names with caution (c before) or corrected decay (c behind), those whose update is another than the class's here.
OTHERWISE = {
    "cadafactor": "timm's Adafactor is not torch's",
    "kronc": "Kron draws random numbers, and timm others; below both draw the same",
}
# And those whose caution stands inside: before LAMB's trust ratio, before AdamP's projection, for Adan's first momentum alone.
INSIDE = ("clamb", "clambw", "cadamp", "csgdp", "cadan", "cadanw")


def beside_timm(name, **options):
    """(parameters at the start, theirs, ours) after 50 steps under a rate that falls."""
    timm, start = timm_optim(), parameters(torch.float64, shapes=[(40, 50), (301,), (1, 7)])
    theirs, mine = copies(start), copies(start)
    own = {"max_grad_norm": None} if "lamb" in name else {}
    takes = inspect.signature(timm.get_optimizer_class(name, bind_defaults=False)).parameters
    one_by_one = {"foreach": False} if "foreach" in takes else {}
    reference = timm.create_optimizer_v2(theirs, opt=name, lr=0.01, weight_decay=0.1, **one_by_one, **own)
    known = inspect.signature(type(compiledopt.create_optimizer(name, copies(start), lr=0.01))).parameters
    decided = {"params", "lr", "weight_decay", "foreach", "maximize", "capturable", "differentiable", *own}
    options |= {key: value for key, value in reference.param_groups[0].items() if key in known and key not in decided}
    optimizer = compiledopt.create_optimizer(name, mine, lr=0.01, weight_decay=0.1, **options)
    for step in range(50):
        for one, params in ((reference, theirs), (optimizer, mine)):
            one.param_groups[0]["lr"] = 0.01 * (1 - step / 60)
            run(one, params, Gradients(torch.float64), range(step, step + 1))
    return flat(start), flat(theirs), flat(mine)


@pytest.mark.parametrize("executor", ["compiled", "for-loop"])
@pytest.mark.parametrize("name", [*CORRECTED, *(f"c{name}" for name in CAUTIOUS)])
def test_timms_letters_are_transformations(name, executor):
    if name in OTHERWISE:
        pytest.skip(OTHERWISE[name])
    start, theirs, mine = beside_timm(name, **EXECUTORS[executor])
    _, plain, _ = beside_timm(name[1:] if name[0] == "c" else CORRECTED[name])
    effect = rms(theirs - plain)  # of the letter
    assert effect > 1e-4 * rms(theirs - start) > 0
    if name in INSIDE:
        assert rms(mine - theirs) > 1e-3 * effect  # docs/training-loop.md says so
    else:
        assert (mine - theirs).abs().max() <= 1e-5 * effect


# Of all sides the products have full rank at once: eigenvectors of equal values are anybody's choice.
MATRIX_SHAPES = [(12, 12), (9,), (4, 3, 2, 2)]
LOW_RANK = {"rank": 3, "update_proj_gap": 60, "scale": 0.25}
# {ours: (the package, its class, our options, its own, shapes)}
MATRIX_PEERS = {
    "SOAP": ("pytorch_optimizer", "SOAP", {"lr": 0.01, "weight_decay": 0.1}, {}, MATRIX_SHAPES),
    "SOAP-merged": (
        "pytorch_optimizer",
        "SOAP",
        {"lr": 0.01, "merge_dims": True, "max_precond_dim": 12},
        {"max_precondition_dim": 12},
        [(4, 3, 4, 3), (2, 6, 12)],
    ),
    "Shampoo": ("pytorch_optimizer", "Shampoo", {"lr": 0.1, "weight_decay": 0.1}, {}, MATRIX_SHAPES),
    "GaLoreAdamW": (
        "pytorch_optimizer",
        "GaLore",
        {"lr": 0.05, **LOW_RANK},
        {**LOW_RANK, "projection_type": "std"},
        [(9, 12), (12, 9)],
    ),
    "FiraAdamW": (
        "pytorch_optimizer",
        "Fira",
        {"lr": 0.05, "rank": 3, "update_proj_gap": 60},
        {"scale": 1.0, "projection_type": "std"},
        [(9, 12), (12, 9)],
    ),
    "Conda": (
        "pytorch_optimizer",
        "Conda",
        {"lr": 0.05, "weight_decay": 0.1, "update_proj_gap": 60, "scale": 0.5},
        {},
        [(9, 12), (12, 9), (7,)],
    ),
    "SPlus": (
        "pytorch_optimizer",
        "SPlus",
        {"lr": 0.5, "weight_decay": 0.1, "inverse_every": 60},
        {"inverse_steps": 60},
        [(12, 12), (9,)],
    ),
    **{
        f"DAdapt{name}": ("dadaptation", f"DAdapt{name}", {"weight_decay": 0.1, **more}, {}, [(40, 50), (301,)])
        for name, more in (
            ("AdaGrad", {"d0": 0.1}),
            ("SGD", {"d0": 5.0, "momentum": 0.5}),
            ("Lion", {"d0": 0.1}),
            ("Adan", {"d0": 0.1}),
        )
    },
    "Kron": ("timm", "Kron", {"lr": 0.02, "weight_decay": 0.1}, {}, [*MATRIX_SHAPES, (), (1, 7)]),
    "GrokAdamW": ("grokadamw", "GrokAdamW", {"lr": 0.01, "weight_decay": 0.1}, {}, [(40, 50), (301,), (1, 7)]),
}


@pytest.mark.parametrize("name", MATRIX_PEERS)
def test_fifty_steps_of_matrices_beside_the_package(name, monkeypatch):
    module, title, options, more, shapes = MATRIX_PEERS[name]
    package(module)
    if module == "timm":
        timm_optim()
    cls = getattr(importlib.import_module("timm.optim.kron" if module == "timm" else module), title)
    start = parameters(torch.float64, shapes=shapes)
    mine, other = copies(start), copies(start)
    optimizer = getattr(compiledopt, name.partition("-")[0])(mine, foreach=True, **options)
    takes = inspect.signature(cls).parameters
    given = {**options, **more}
    reference = cls(other, **{key: value for key, value in given.items() if key in takes or "kwargs" in takes})
    reference.param_groups[0].update(given if name == "FiraAdamW" else {})
    if name == "Kron":  # our noise, and none of its torch.compile
        numbers = iter((step, place) for step in range(50) for place in range(len(shapes)))

        def noise(shape, **_):
            words = random.key(*(torch.tensor(value) for value in (0, *next(numbers))))
            return random.normal(words, tuple(shape)).double()

        theirs = sys.modules[cls.__module__]
        for function in ("_calc_A_and_conjB", "_q_terms", "_precond_grad", "_balance_Q"):
            monkeypatch.setattr(reference, function, getattr(theirs, function))
    run(optimizer, mine, Gradients(torch.float64), range(50))
    for step in range(50):
        Gradients(torch.float64).set(other, step)
        with monkeypatch.context() as patch:
            if name == "Kron":
                patch.setattr(torch, "randn", noise)
            reference.step()
    effect = rms(flat(other) - flat(start))
    assert effect > 0.01
    assert (flat(mine) - flat(other)).abs().max() <= 5e-3 * effect


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 5), (0.8, 1)])
def test_lookahead_beside_the_package(alpha, k):
    package("pytorch_optimizer")
    import pytorch_optimizer

    start = parameters(torch.float64, shapes=[(40, 50), (301,)])
    mine, other = copies(start), copies(start)
    optimizer = compiledopt.Lookahead(compiledopt.AdamW(mine, lr=0.01, foreach=True), alpha=alpha, k=k)
    reference = pytorch_optimizer.Lookahead(torch.optim.AdamW(other, lr=0.01), alpha=alpha, k=k)
    run(optimizer, mine, Gradients(torch.float64), range(50))
    run(reference, other, Gradients(torch.float64), range(50))
    effect = rms(flat(other) - flat(start))
    assert effect > 0.01 and (flat(mine) - flat(other)).abs().max() <= 1e-4 * effect


@pytest.mark.parametrize("name", peers.THEIRS)
def test_names_and_defaults_are_theirs(name):
    ours, other = (inspect.signature(cls).parameters for cls in (getattr(compiledopt, name), class_of(name)))
    for key, parameter in ours.items():
        key = peers.SPELLED.get(name, {}).get(key, key)
        known = key in other and parameter.empty not in (parameter.default, other[key].default)
        if known and key not in {*peers.OTHER_DEFAULTS.get(name, ()), "foreach", "maximize"}:
            assert other[key].default == parameter.default, key


def test_every_name_of_timm_is_made_or_refused():
    for name in timm_optim().list_optimizers():
        made_or_refused(name)


def test_every_name_of_transformers_is_made_or_refused():
    package("transformers")
    from transformers.training_args import OptimizerNames

    for name in OptimizerNames:
        made_or_refused(name.value)


def test_every_name_of_pytorch_optimizer_is_made_or_refused():
    package("pytorch_optimizer")
    from pytorch_optimizer import get_supported_optimizers

    for name in get_supported_optimizers():
        made_or_refused(name)


def made_or_refused(name):
    params = [torch.nn.Parameter(torch.ones(4, 3))]
    if name in compiledopt.list_optimizers():
        assert compiledopt.create_optimizer(name, params, lr=0.1).param_groups
        return
    with pytest.raises(ValueError) as refused:
        compiledopt.create_optimizer(name, params)
    assert "no optimizer" not in str(refused.value), name


def test_timms_registry_takes_ours():
    timm = timm_optim()
    registry = timm._optim_factory.default_registry
    registry.register(timm.OptimInfo(name="ours", opt_class=compiledopt.Lion, has_betas=True, description="compiled"))
    model = torch.nn.Linear(4, 3)
    optimizer = timm.create_optimizer_v2(model, opt="ours", lr=1e-3, weight_decay=0.1)
    assert type(optimizer) is compiledopt.Lion and {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.executor == "compiled"


def test_transformers_trainer_takes_ours(tmp_path):
    package("transformers"), package("accelerate")
    from transformers import Trainer, TrainingArguments

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 1)

        def forward(self, x, labels):
            return {"loss": (self.layer(x) - labels).square().mean()}

    x = torch.randn(32, 6)
    data = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=20, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    before, model = None, Net()
    before = model.layer.weight.detach().clone()
    chosen = (compiledopt.Lion, {"lr": 0.01, "weight_decay": 0.1})
    trainer = Trainer(model=model, args=arguments, train_dataset=data, optimizer_cls_and_kwargs=chosen)
    trainer.train()
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(inner) is compiledopt.Lion and (model.layer.weight - before).abs().max() > 0.01
