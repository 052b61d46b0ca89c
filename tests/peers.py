"""Where the published algorithms come from: of each the package, its class, and how its options are called there."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from typing import Any

import torch

import compiledopt


@functools.cache
def timm_optim() -> Any:
    """timm's optimizers alone: its models import torchvision, which has to be of the same build as torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'timm'")
    timm, models = types.ModuleType("timm"), types.ModuleType("timm.models")
    timm.__spec__, models.__spec__ = spec, importlib.machinery.ModuleSpec("timm.models", None)
    timm.__path__, models.group_parameters = list(spec.submodule_search_locations), None
    sys.modules.update({"timm": timm, "timm.models": models})
    return importlib.import_module("timm.optim")


def alone(package: str, module: str | None = None) -> Any:
    """A package; or one module of it, without what the package itself imports and this one does not need."""
    spec = importlib.util.find_spec(package)
    if module is None or package in sys.modules or spec is None or spec.submodule_search_locations is None:
        return importlib.import_module(package if module is None else f"{package}.{module}")
    sys.modules[package] = empty = types.ModuleType(package)
    empty.__path__ = list(spec.submodule_search_locations)
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        del sys.modules[package]


# {ours: (the package, its class, the options that differ in name, those that only one of them has)}
TIMM, OPTIMI, COLLECTION = "timm", "optimi", "pytorch_optimizer"
THEIRS = {
    "ADOPT": (TIMM, "Adopt", {}),
    "AdEMAMix": (COLLECTION, "AdEMAMix", {"weight_decouple": True}),
    "AdaBelief": (TIMM, "AdaBelief", {}),
    "AdaBound": (COLLECTION, "AdaBound", {"weight_decouple": False}),
    "AdamP": (TIMM, "AdamP", {}),
    "Adan": (TIMM, "Adan", {}),
    "CAME": (COLLECTION, "CAME", {}),
    "DiffGrad": (COLLECTION, "DiffGrad", {"weight_decouple": False}),
    "Grams": (COLLECTION, "Grams", {}),
    "LAMB": (TIMM, "Lamb", {"max_grad_norm": None}),
    "LARS": (TIMM, "Lars", {}),
    "LaProp": (TIMM, "LaProp", {}),
    "Lion": (TIMM, "Lion", {}),
    "MADGRAD": (TIMM, "MADGRAD", {}),
    "MARS": (TIMM, "Mars", {}),
    "NAdamW": (TIMM, "NAdamW", {}),
    "NovoGrad": (TIMM, "NvNovoGrad", {}),
    "QHAdam": (COLLECTION, "QHAdam", {}),
    "RMSpropTF": (TIMM, "RMSpropTF", {}),
    "SGDP": (TIMM, "SGDP", {}),
    "SGDW": (TIMM, "SGDW", {}),
    "SM3": (COLLECTION, "SM3", {}),
    "Signum": (COLLECTION, "SignSGD", {}),
    "StableAdamW": (OPTIMI, "StableAdamW", {"triton": False}),
    "Tiger": (COLLECTION, "Tiger", {}),
    "AdaGC": (COLLECTION, "AdaGC", {}),
    "Adai": (COLLECTION, "Adai", {}),
    "AdaMod": (COLLECTION, "AdaMod", {"weight_decouple": True}),
    "AdaNorm": (COLLECTION, "AdaNorm", {"weight_decouple": True}),
    "AdaPNM": (COLLECTION, "AdaPNM", {"weight_decouple": True}),
    "AdamG": (COLLECTION, "AdamG", {"weight_decouple": False}),
    "AggMo": (COLLECTION, "AggMo", {"weight_decouple": False}),
    "Amos": (COLLECTION, "Amos", {}),
    "Ano": (COLLECTION, "Ano", {"weight_decouple": True}),
    "EXAdam": (COLLECTION, "EXAdam", {"weight_decouple": True}),
    "FAdam": (COLLECTION, "FAdam", {"momentum_dtype": None, "fim_dtype": None}),
    "FTRL": (COLLECTION, "FTRL", {}),
    "Fromage": (COLLECTION, "Fromage", {}),
    "GrokFastAdamW": (COLLECTION, "GrokFastAdamW", {"weight_decouple": True, "normalize_lr": False}),
    "Kate": (COLLECTION, "Kate", {"weight_decouple": True}),
    "PAdam": (COLLECTION, "PAdam", {"weight_decouple": False}),
    "PID": (COLLECTION, "PID", {"weight_decouple": False}),
    "PNM": (COLLECTION, "PNM", {"weight_decouple": True}),
    "QHM": (COLLECTION, "QHM", {"weight_decouple": False}),
    "StableSPAM": (COLLECTION, "StableSPAM", {}),
    "SimplifiedAdEMAMix": (COLLECTION, "SimplifiedAdEMAMix", {"weight_decouple": True}),
    "AccSGD": (COLLECTION, "AccSGD", {}),
    "AdaSmooth": (COLLECTION, "AdaSmooth", {"weight_decouple": False}),
    "AdaShift": (COLLECTION, "AdaShift", {}),
    "AdamS": (COLLECTION, "AdamS", {"weight_decouple": True}),
    "AvaGrad": (COLLECTION, "AvaGrad", {"weight_decouple": False}),
    "Aida": (COLLECTION, "Aida", {}),
    "DualAdam": (COLLECTION, "DualAdam", {"weight_decouple": True}),
    "FOCUS": (COLLECTION, "FOCUS", {}),
    "Gravity": (COLLECTION, "Gravity", {}),
    "MSVAG": (COLLECTION, "MSVAG", {}),
    "Nero": (COLLECTION, "Nero", {}),
    "Rose": (COLLECTION, "ROSE", {"weight_decouple": True}),
    "VSGD": (COLLECTION, "VSGD", {}),
    "Yogi": (COLLECTION, "Yogi", {}),
}
# Ours, then theirs.
SPELLED = {
    "AccSGD": {"smallConst": "constant"},
    "Aida": {"K": "k"},
    "AdaBound": {"amsbound": "ams_bound"},
    "Adai": {"decoupled": "weight_decouple"},
    "QHAdam": {"decouple_weight_decay": "weight_decouple"},
}
# The authors' defaults, where the package of the comparison has others.
OTHER_DEFAULTS = {"AdEMAMix": {"alpha"}, "AdaShift": {"reduce_func"}, "Gravity": {"lr"}, "PID": {"momentum"}}
OTHER_DEFAULTS |= {"QHM": {"momentum", "nu"}, "SGDP": {"lr"}}


def class_of(name: str) -> Any:
    module, title, _ = THEIRS[name]
    return getattr(timm_optim() if module == TIMM else importlib.import_module(module), title)


def theirs(name: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    """Theirs with our options: foreach, where it is given, only where theirs has it."""
    more = dict(THEIRS[name][2])
    options = {SPELLED.get(name, {}).get(key, key): value for key, value in options.items()}
    for key in OTHER_DEFAULTS.get(name, ()):
        options.setdefault(key, inspect.signature(getattr(compiledopt, name)).parameters[key].default)
    if name == "AdaShift":
        options["reduce_func"] = {"max": torch.max, "mean": torch.mean, None: None}[options["reduce_func"]]
    if name == "CAME":
        more["eps1"], more["eps2"] = options.pop("eps", (1e-30, 1e-16))
    if "foreach" not in inspect.signature(class_of(name)).parameters:
        options.pop("foreach", None)
    return class_of(name)(params, **more, **options)
