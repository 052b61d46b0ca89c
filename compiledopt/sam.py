"""Sharpness-aware minimization: two gradients at each step, of which the second is taken uphill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiledopt.arguments import Extras, Unpack
from compiledopt.combined import Combined
from compiledopt.interrupts import Whole
from compiledopt.optimizer import Optimizer, StateDict
from compiledopt.own import define
from compiledopt.rules.totals import total

Closure = Callable[[], Any]


@define(name="SAM")
def _Ascent(param, grad, old, *, rho=0.05, adaptive=False):  # type: ignore[no-untyped-def]
    """θ + ρ·g/‖g‖, and θ as it was."""
    weight = param * param if adaptive else 1.0
    length = torch.sqrt(total(weight * grad * grad))
    return param + (rho / (length + 1e-12)) * weight * grad, param


class SAM(Combined):
    """SAM: the gradient of a point uphill, where the loss is worst nearby, moves the parameters.

        ε = ρ·g(θ)/‖g(θ)‖, or adaptive  ρ·θ²·g(θ)/‖θ·g(θ)‖,  norms over all parameters;  θ ← base(θ, g(θ + ε))

    optimizers: those that take the step, as for Combined. rho: (ρ) float ≥ 0. adaptive: bool; both are in the groups as well.
    `step(closure)` calls the closure twice: it zeroes the gradients, evaluates, and goes backward. Or, in a loop of one's own,
    `first_step()` after the first gradients and `second_step()` after the second.
    State: the base's. One more tensor for each parameter, where it was, is not saved.
    Mutates: the parameters and the state. An exception in the closure leaves the parameters where they were.
    Raises: RuntimeError for a step without a closure, and a second step without a first; ValueError for a negative rho.
    Source: Foret et al. 2020, arXiv:2010.01412; Kwon et al. 2021, arXiv:2102.11600.
    Deviations from davda54/sam: it takes optimizers, not a class.
    """

    def __init__(self, *optimizers: Optimizer, rho: float = 0.05, adaptive: bool = False, **extras: Unpack[Extras]) -> None:
        if not rho >= 0.0:
            raise ValueError(f"Invalid rho, should be non-negative: {rho}")
        super().__init__(*optimizers, **extras)
        for group in self.param_groups:
            group.setdefault("rho", rho)
            group.setdefault("adaptive", adaptive)
        self._rho, self._adaptive = rho, adaptive
        self._ascent: Optimizer | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        own: dict[str, Any] = {name: param_group[name] for name in ("rho", "adaptive") if name in param_group}
        before = len(self.param_groups)
        super().add_param_group({name: value for name, value in param_group.items() if name not in own})
        for group in self.param_groups[before:]:
            group.update(own)

    @torch.no_grad()
    def first_step(self) -> None:
        """Go uphill. Mutates: the parameters."""
        groups = [
            (group["params"], group.get("rho", self._rho), group.get("adaptive", self._adaptive)) for group in self.param_groups
        ]
        known = self._ascent
        if known is None or [id(p) for g in known.param_groups for p in g["params"]] != [
            id(p) for ps, *_ in groups for p in ps
        ]:
            self._ascent = known = _Ascent([{"params": list(params)} for params, *_ in groups])
        for group, (_, rho, adaptive) in zip(known.param_groups, groups, strict=True):
            group["rho"], group["adaptive"] = rho, adaptive
        with Whole():
            known.step()
            self._moved = [(param, state["old"]) for param, state in known.state.items() if param.grad is not None]

    @torch.no_grad()
    def second_step(self) -> None:
        """Come back, and take the step of the gradients that there are now. Mutates: the parameters and the state."""
        if not self.__dict__.get("_moved"):
            raise RuntimeError("second_step() of SAM without a first_step() before it")
        self._return()
        super().step()

    def _return(self) -> None:
        """To where the parameters were before `first_step`, if they are not there."""
        with Whole(), torch.no_grad():
            moved: list[tuple[torch.Tensor, torch.Tensor]] = self.__dict__.pop("_moved", [])
            if moved:
                torch._foreach_copy_([param for param, _ in moved], [old for _, old in moved])

    def step(self, closure: Closure | None = None) -> Any:
        """Two evaluations and one update. closure: zeroes the gradients, evaluates the model, goes backward, returns the loss.

        Returns: the loss of the first evaluation.
        """
        if closure is None:
            raise RuntimeError("SAM needs a closure for its second gradient: step(closure), or first_step() and second_step()")
        with torch.enable_grad():
            loss = closure()
        try:
            self.first_step()
            with torch.enable_grad():
                closure()
            self.second_step()
        except BaseException:
            self._return()
            raise
        return loss

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_rho": self._rho, "_adaptive": self._adaptive}

    def __setstate__(self, state: StateDict) -> None:
        for name in ("_rho", "_adaptive"):
            if name in state:
                setattr(self, name, state[name])
        self._ascent = None
        super().__setstate__(state)
