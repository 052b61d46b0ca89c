"""L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from compiledopt.algorithms.line_search import Point, StrongWolfe, divide
from compiledopt.optimizer import Optimizer
from compiledopt.rules.options import as_float

Closure = Callable[[], Any]
CURVED = 1e-10  # the least y·s at which a pair enters the history


class LBFGS(Optimizer):
    """L-BFGS: steps along −H·g, with H from the last changes of parameters and gradients.

        d ← −H·g by the two-loop recursion over pairs (s, y);  θ ← θ + t·d;  s = t·d;  y = change of g
        t = γ, or by a line search for the strong Wolfe conditions; at first γ·min(1, 1/Σ|g|)

    params: parameters or one group of them, on one device. lr (γ): float or 1-element tensor.
    max_iter: iterations a step. max_eval: evaluations a step, 1.25·max_iter where it is None. history_size: pairs kept.
    tolerance_grad: least largest |g|. tolerance_change: least change of loss or parameters.
    line_search_fn: None or "strong_wolfe".
    State, with the first parameter: `d`, `t`, `old_dirs` (y), `old_stps` (s), `ro`, `H_diag`, `prev_flat_grad`,
    `prev_loss`, `n_iter`, `func_evals`.
    Mutates: the parameters and the state; an exception from the closure leaves both as they were. The history and the
    recursion stay on the device; the loss, and what is compared with a tolerance, is read on the host.
    Raises: ValueError for more than one group; RuntimeError for an unknown line search. Source: Liu and Nocedal 1989.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
        super().__init__(params, locals())

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if len(self.param_groups) > 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    # ---- flat vectors ----

    @property
    def _params(self) -> list[Tensor]:
        return self.param_groups[0]["params"]  # type: ignore[no-any-return]

    def _flat_gradient(self) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        flat = torch.cat([_flat(grad.to_dense() if grad.layout is not torch.strided else grad) for grad in grads])
        return flat.neg_() if self.param_groups[0]["maximize"] else flat

    def _place(self, flat: Tensor) -> None:
        for param, part in zip(self._params, torch.split(flat, [_flat(p).numel() for p in self._params]), strict=True):
            target = torch.view_as_real(param) if param.is_complex() else param
            target.copy_(part.view(target.shape))

    def _evaluate(self, closure: Closure) -> tuple[float, Tensor]:
        loss = self._minimized(closure())
        return loss, self._flat_gradient()

    def _minimized(self, loss: Any) -> float:
        """The loss, or with maximize what is least where it is largest."""
        return -float(loss) if self.param_groups[0]["maximize"] else float(loss)

    # ---- stepping ----

    @torch.no_grad()
    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """Minimize for up to `max_iter` iterations; `closure` evaluates the model again and returns the loss.

        Returns: the loss at the start, also where there are no parameters. Mutates: parameters and state. Raises: what the
        closure raises, after bringing parameters and state back to where they were.
        """
        group = self.param_groups[0]
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")
        if not self._params:
            return torch.enable_grad()(closure)()
        position = torch.cat([_flat(param) for param in self._params])
        before = {k: list(v) if isinstance(v, list) else v for k, v in self.state[self._params[0]].items()}
        try:
            first_loss = torch.enable_grad()(closure)()
            self._minimize(torch.enable_grad()(closure), group, position.clone(), self._minimized(first_loss))
        except BaseException:
            self._place(position)
            self.state[self._params[0]].clear()
            self.state[self._params[0]].update(before)
            raise
        return first_loss

    def _minimize(self, closure: Closure, group: Mapping[str, Any], position: Tensor, loss: float) -> None:
        state = self.state[self._params[0]]
        state["func_evals"] = state.get("func_evals", 0) + 1
        state.setdefault("n_iter", 0)
        grad, evaluations = self._flat_gradient(), 1
        lr, small = as_float(group["lr"]), group["tolerance_change"]
        for iteration in range(1, group["max_iter"] + 1):
            if grad.abs().max() <= group["tolerance_grad"]:
                return
            state["n_iter"] += 1
            first = state["n_iter"] == 1
            direction = state["d"] = self._direction(state, grad, group["history_size"])
            previous = state["prev_loss"] = loss
            state["prev_flat_grad"] = grad
            t = state["t"] = min(1.0, divide(1.0, float(grad.abs().sum()))) * lr if first else lr
            slope = float(grad.dot(direction))
            if slope > -small:
                return
            used = 0
            if group["line_search_fn"] is not None:
                start = Point(0.0, loss, grad, slope)
                point, used = self._search(closure, group, position, direction, start, t, group["max_eval"] - evaluations)
                t, loss, grad = point.t, point.f, point.g
            state["t"] = t
            position = position.add(direction, alpha=t)
            self._place(position)
            if group["line_search_fn"] is None and iteration != group["max_iter"]:
                loss, grad = self._evaluate(closure)
                used = 1
            evaluations += used
            state["func_evals"] += used
            if evaluations >= group["max_eval"] or abs(loss - previous) < small:
                return
            if (direction * t).abs().max() <= small:
                return

    def _direction(self, state: dict[str, Any], grad: Tensor, history_size: int) -> Tensor:
        """−H·g, after the last change entered the history. Nothing but y·s is read on the host."""
        if state["n_iter"] == 1:
            state |= {"old_dirs": [], "old_stps": [], "ro": [], "H_diag": 1}
            return grad.neg()
        change, moved = grad - state["prev_flat_grad"], state["d"] * state["t"]
        product = change.dot(moved)
        if product > CURVED:
            for name, value in (("old_dirs", change), ("old_stps", moved), ("ro", 1.0 / product)):
                kept = [*state[name], value]
                state[name] = kept[max(0, len(kept) - history_size) :]
            state["H_diag"] = product / change.dot(change)
        pairs = list(zip(state["old_dirs"], state["old_stps"], state["ro"], strict=True))
        direction, weights = grad.neg(), []
        for y, s, rho in reversed(pairs):
            weights.append(s.dot(direction) * rho)
            direction = torch.addcmul(direction, y, weights[-1], value=-1)
        direction = direction * state["H_diag"]
        for (y, s, rho), weight in zip(pairs, reversed(weights), strict=True):
            direction = torch.addcmul(direction, s, weight - y.dot(direction) * rho)
        return direction

    def _search(
        self,
        closure: Closure,
        group: Mapping[str, Any],
        position: Tensor,
        direction: Tensor,
        start: Point,
        t: float,
        most: int,
    ) -> tuple[Point, int]:
        def evaluate(t: float) -> Point:
            self._place(position.add(direction, alpha=t))
            loss, grad = self._evaluate(closure)
            return Point(t, loss, grad, float(grad.dot(direction)))

        largest = float(direction.abs().max())
        search = StrongWolfe(evaluate, start, largest, group["tolerance_change"], most)
        return search.search(t), search.evaluations

    # ---- knowing ----

    _step_supports_amp_scaling = False

    def make_states(self) -> None:
        """Nothing to make: the history begins with the first step."""

    def compile(self) -> None:
        """Nothing is compiled: the recursion is a chain of products of whole vectors."""

    @property
    def executor(self) -> str:
        """Always "for-loop"."""
        return "for-loop"

    def explain(self, *, source: bool = False) -> str:
        """What runs, and why, as text."""
        size = sum(_flat(param).numel() for param in self._params)
        kept = max((len(state.get("old_dirs", ())) for state in self.state.values()), default=0)
        return (
            f"LBFGS: for-loop, {len(self._params)} tensors as one vector of {size:,} elements, {kept} pairs in its history\n"
            "products of whole vectors: not one pass over memory, so nothing is compiled"
        )


def _flat(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).detach().reshape(-1)
