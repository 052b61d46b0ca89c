"""An optimizer that follows a signal, asked for at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compiledopt.optimizer import Optimizer

SIGNAL = "grokking_signal"


class Signalled(Optimizer):
    """One whose groups have a `grokking_signal`, which functions say, or losses in the group. signals: the functions."""

    signals: tuple[Callable[[], float | None], ...] = ()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            signal = self._signal(group)
            if signal is not None and signal != group[SIGNAL]:
                group[SIGNAL] = signal
        super().step()
        return loss

    def _signal(self, group: dict[str, Any]) -> float | None:
        """How far training is ahead of generalizing, as functions or losses in the group say it; None where nothing does."""
        if self.signals:
            found = [float(value) for value in (function() for function in self.signals) if value is not None]
            return sum(found) / len(found) if found else 0.0
        train, evaluated = group.get("train_loss"), group.get("eval_loss")
        if train is None or evaluated is None:
            return None
        most = max(float(train), float(evaluated))
        return max(0.0, float(evaluated) - float(train)) / most if most > 0 else 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "signals": self.signals}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.signals = state.pop("signals", self.signals)
        super().__setstate__(state)
