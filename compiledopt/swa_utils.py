"""torch.optim.swa_utils: averages of a model's parameters, as one fused call over the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import swa_utils as torchs
from torch.optim.swa_utils import SWALR, update_bn

from compiledopt.around.average import towards
from compiledopt.interrupts import Whole
from compiledopt.rules.rule import rule
from compiledopt.step.averaging import Averages
from compiledopt.torch_private import watched_by

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]


@rule()
def average(param: Any, grad: Any, *, weight: Any) -> Any:
    return towards(param, grad, weight)


class Averaging:
    """a ← a + w·(θ − a), with w = 1 − decay (EMA), or 1 / (n + 1) after n models (SWA, without decay).

    Called as torch calls it: on two tensors (`multi` False), returning the new average, or on two lists, changing the first.
    """

    def __init__(self, decay: float | None, multi: bool) -> None:
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")
        self.decay, self.multi = decay, multi

    def weight(self, averaged: float) -> float:
        return 1.0 / (averaged + 1.0) if self.decay is None else 1.0 - self.decay

    @torch.no_grad()
    def __call__(self, averages: Any, currents: Any, num_averaged: Tensor | int) -> Any:
        weight = self.weight(float(num_averaged))
        if not self.multi:
            return _averaged(averages, currents, weight)
        for one, current in zip(averages, currents, strict=True):
            one.copy_(_averaged(one, current, weight))
        return None


def _averaged(one: Tensor, current: Tensor, weight: float) -> Any:
    """The rule on two tensors, in the wider dtype of the two; integers, as of buffers, in the default one."""
    wide = torch.promote_types(one.dtype, current.dtype)
    if not (wide.is_floating_point or wide.is_complex):
        wide = torch.get_default_dtype()
    return average(one.to(wide), current.to(wide), weight=weight)


def get_ema_avg_fn(decay: float = 0.999) -> Averaging:
    """The exponential moving average of one parameter: a ← decay·a + (1 − decay)·θ. Raises: ValueError."""
    return Averaging(decay, multi=False)


def get_ema_multi_avg_fn(decay: float = 0.999) -> Averaging:
    """The exponential moving average of a list: a ← decay·a + (1 − decay)·θ. Raises: ValueError."""
    return Averaging(decay, multi=True)


def get_swa_avg_fn() -> Averaging:
    """The equally weighted average of one parameter: a ← a + (θ − a) / (n + 1)."""
    return Averaging(None, multi=False)


def get_swa_multi_avg_fn() -> Averaging:
    """The equally weighted average of a list: a ← a + (θ − a) / (n + 1)."""
    return Averaging(None, multi=True)


class _Places:
    """Where a model keeps its parameters, so that reading them again walks no modules; other tensors put there are seen."""

    def __init__(self, model: Module, use_buffers: bool) -> None:
        self.model = model
        self.items = list(_places(model, "_parameters"))
        self.items += list(_places(model, "_buffers")) if use_buffers else []

    def read(self) -> list[Tensor]:
        return [place[name] for place, name in self.items]


def _places(model: Module, kind: str) -> Iterator[tuple[dict[str, Tensor], str]]:
    """(dict, name) of each parameter or buffer, in the order and with the deduplication of `parameters()`."""
    seen: set[int] = set()
    for module in model.modules():
        for name, value in getattr(module, kind).items():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield getattr(module, kind), name


class AveragedModel(torchs.AveragedModel):
    """A copy of a model whose parameters are a running average of that model's.

        a ← θ at first, then  a ← a + (θ − a) / (n + 1), or what `avg_fn` or `multi_avg_fn` says

    model: what to average. device: where to keep the average. avg_fn, multi_avg_fn: one of `get_ema_avg_fn` and its kin, or
    a function as torch takes it. use_buffers: average buffers too, instead of copying them.
    Mutates: at `update_parameters`, the average and `n_averaged`. Raises: AssertionError for both functions at once.
    Source: Izmailov et al. 2018, arXiv:1803.05407. Deviations from torch: the averages that this module names are one fused
    call where the compiled executor can have it; else, and for other functions, torch's own code runs.
    """

    def update_parameters(self, model: Module) -> None:
        """Take `model` into the average. Mutates: the average and `n_averaged`."""
        function = self.multi_avg_fn or self.avg_fn or Averaging(None, multi=True)
        if not isinstance(function, Averaging) or watched_by() is not None or not self._fused(model, function):
            with Whole():
                super().update_parameters(model)

    @torch.no_grad()
    def _fused(self, model: Module, function: Averaging) -> bool:
        """One call over the whole model; False, with nothing written, where that cannot be had."""
        mine, theirs = self._tensors(model)
        if len(mine) != len(theirs) or any(a.device != b.device for a, b in zip(mine, theirs, strict=True)):
            return False
        count = int(self.n_averaged)
        averages = self._averages(mine, theirs) if count else None
        if averages is not None and averages.reason is not None:
            return False
        with Whole():
            if averages is None:
                torch._foreach_copy_(mine, theirs)
            elif not averages.run(theirs, function.weight(count)):
                return False
            if not self.use_buffers:
                for kept, current in zip(self.module.buffers(), model.buffers(), strict=False):
                    kept.copy_(current)
            self.n_averaged += 1
        return True

    def _tensors(self, model: Module) -> tuple[list[Tensor], list[Tensor]]:
        places = self.__dict__.get("_places")
        if places is None or places[1].model is not model:
            places = self.__dict__["_places"] = (_Places(self.module, self.use_buffers), _Places(model, self.use_buffers))
        return places[0].read(), places[1].read()

    def _averages(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Averages:
        known = self.__dict__.get("_known")
        if known is None or len(known.targets) != len(mine) or not all(map(is_, known.targets, mine)):
            known = self.__dict__["_known"] = Averages(average, mine, theirs)
        return known  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_places", "_known")}
