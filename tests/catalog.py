"""One Case per algorithm and configuration. Every contract test runs over CASES: a new algorithm enrols by adding a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import compiledopt

EXECUTORS: dict[str, dict[str, Any]] = {
    "compiled": {"compiled": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """algorithm: the class name, here and in torch.optim; options: a function, so that tensors are made anew."""

    algorithm: str
    label: str
    options: Callable[[], dict[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.label}"

    def kwargs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        options = self.options()
        # As torch's own database: 1e-8 is zero in float16, and the quotient infinite.
        if dtype in (torch.float16, torch.bfloat16) and self.algorithm not in ("SGD", "ASGD", "Rprop"):
            options.setdefault("eps", 1e-3)
        return options

    def ours(self, params: Any, executor: str = "compiled", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        options = {**self.kwargs(dtype), **EXECUTORS.get(executor, {}), **more}
        return getattr(compiledopt, self.algorithm)(params, **options)

    def torch(self, params: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        return getattr(torch.optim, self.algorithm)(params, **{"foreach": False, **self.kwargs(dtype), **more})


def _cases(algorithm: str, configurations: dict[str, Any]) -> Iterator[Case]:
    for label, options in configurations.items():
        yield Case(algorithm, label, options if callable(options) else (lambda options=options: dict(options)))


_SGD = {
    "default": {"lr": 0.1},
    "tensor_lr": lambda: {"lr": torch.tensor(0.05)},
    "one_element_lr": lambda: {"lr": torch.tensor([0.05])},
    "weight_decay": {"lr": 0.1, "weight_decay": 0.5},
    "tensor_weight_decay": lambda: {"lr": 0.1, "weight_decay": torch.tensor(0.5)},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "maximize": {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "momentum_decay": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "all": {"lr": 0.1, "momentum": 0.8, "dampening": 0.25, "weight_decay": 0.1, "maximize": True},
}
_ADAM = {
    "default": {"lr": 0.01},
    "tensor_lr": lambda: {"lr": torch.tensor(0.01)},
    "tensor_betas": lambda: {
        "lr": torch.tensor(0.01),
        "betas": (torch.tensor([[[0.9]]], dtype=torch.float64), torch.tensor([[0.99]], dtype=torch.float64)),
    },
    "weight_decay": {"lr": 0.01, "weight_decay": 0.1},
    "no_decay": {"lr": 0.01, "weight_decay": 0.0},
    "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    "amsgrad": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "all": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    "small_betas": {"lr": 0.01, "betas": (0.0, 0.3)},
    "capturable": {"lr": 0.01, "capturable": True},
}
_COMMON = {
    "default": {"lr": 0.02},
    "tensor_lr": lambda: {"lr": torch.tensor(0.02)},
    "one_element_lr": lambda: {"lr": torch.tensor([0.02])},
    "weight_decay": {"lr": 0.02, "weight_decay": 0.1},
    "capturable": {"lr": 0.02, "capturable": True},
    "all": {"lr": 0.02, "weight_decay": 0.1, "maximize": True},
}
_DECOUPLED = {**_COMMON, "decoupled": {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}}
_ADADELTA = {
    label: {**options, "lr": 1.0} if isinstance(options, dict) else (lambda make=options: {"lr": make()["lr"] * 50})
    for label, options in _COMMON.items()
} | {"all": {"lr": 3.0, "rho": 0.8, "weight_decay": 0.1, "maximize": True}}
_ADAGRAD = {
    **{label: options for label, options in _COMMON.items() if label != "capturable"},
    "lr_decay": {"lr": 0.1, "lr_decay": 0.01},
    "initial": {"lr": 0.1, "initial_accumulator_value": 0.1},
}
_ASGD = {**_COMMON, "averaging": {"lr": 0.02, "t0": 5, "lambd": 0.01, "alpha": 0.5}}
_RMSPROP = {
    **_COMMON,
    "momentum": {"lr": 0.01, "momentum": 0.9},
    "centered": {"lr": 0.01, "centered": True},
    "all": {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1, "maximize": True},
}
_RPROP = {
    **{label: options for label, options in _COMMON.items() if label not in ("weight_decay", "all")},
    "etas": {"lr": 0.02, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.5)},
    "all": {"lr": 0.02, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.5), "maximize": True},
}
CASES: list[Case] = [
    *_cases("SGD", _SGD),
    *_cases("Adam", {**_ADAM, "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}}),
    *_cases("AdamW", _ADAM),
    *_cases("Adadelta", _ADADELTA),
    *_cases("Adagrad", _ADAGRAD),
    *_cases("Adamax", _COMMON),
    *_cases("ASGD", _ASGD),
    *_cases("NAdam", {**_DECOUPLED, "momentum_decay": {"lr": 0.02, "momentum_decay": 0.1}}),
    *_cases("RAdam", _DECOUPLED),
    *_cases("RMSprop", _RMSPROP),
    *_cases("Rprop", _RPROP),
]
ALGORITHMS = list(dict.fromkeys(case.algorithm for case in CASES))
# torch refuses capturable=True on the CPU; the baseline runs without it.
BASELINE: dict[str, dict[str, Any]] = {"capturable": {"capturable": False}}


def one_per_algorithm() -> list[Case]:
    """The richest configuration of each, for tests that need not see all."""
    return [next(case for case in reversed(CASES) if case.algorithm == name and case.label == "all") for name in ALGORITHMS]
