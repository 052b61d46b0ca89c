"""The published algorithms as their papers write them, each update once: for sympy, which proves ours equal to it, and for
tensors, as an optimizer to compare steps with. Written from the paper, in the order the page has it, with no look at our rules.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch


def either(symbolic: Callable[..., Any], numeric: Callable[..., Any]) -> Callable[..., Any]:
    """A function of symbols, and of tensors."""

    def function(*args: Any) -> Any:
        if any(isinstance(arg, torch.Tensor) for arg in args):
            return numeric(*(arg if isinstance(arg, torch.Tensor) else torch.tensor(arg, dtype=torch.float64) for arg in args))
        return symbolic(*args)

    return function


sign = either(sympy.sign, torch.sign)
sqrt = either(sympy.sqrt, torch.sqrt)
largest = either(sympy.Max, torch.maximum)
smallest = either(sympy.Min, torch.minimum)
where = either(lambda condition, a, b: sympy.Piecewise((a, condition), (b, True)), torch.where)


def average(beta: Any, old: Any, new: Any) -> Any:
    return beta * old + (1 - beta) * new


def decayed(x: Any, decoupled: bool) -> tuple[Any, Any]:
    """(θ, g) after weight decay."""
    if decoupled:
        return x.param - x.lr * x.weight_decay * x.param, x.grad
    return x.param, x.grad + x.weight_decay * x.param


def adam_moments(x: Any, g: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """m̂, v̂, t and the new states."""
    t, m, v = x.step + 1, average(x.betas0, x.exp_avg, g), average(x.betas1, x.exp_avg_sq, g**2)
    return m / (1 - x.betas0**t), v / (1 - x.betas1**t), t, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def lion(x: Any) -> dict[str, Any]:
    c = average(x.betas0, x.exp_avg, x.grad)
    return {"param": x.param - x.lr * (sign(c) + x.weight_decay * x.param), "exp_avg": average(x.betas1, x.exp_avg, x.grad)}


def tiger(x: Any) -> dict[str, Any]:
    m = average(x.beta, x.exp_avg, x.grad)
    return {"param": x.param - x.lr * (sign(m) + x.weight_decay * x.param), "exp_avg": m}


def signum(x: Any) -> dict[str, Any]:
    if x.momentum == 0:
        return {"param": x.param - x.lr * (sign(x.grad) + x.weight_decay * x.param)}
    m = average(x.momentum, x.momentum_buffer, x.grad)
    return {"param": x.param - x.lr * (sign(m) + x.weight_decay * x.param), "momentum_buffer": m}


def qhadam(x: Any) -> dict[str, Any]:
    """The weights are 1 + β + β² + …, so that the averages stand corrected."""
    theta, g = decayed(x, x.decouple_weight_decay)
    w1, w2 = 1 + x.betas0 * x.beta1_weight, 1 + x.betas1 * x.beta2_weight
    m, v = average(1 - 1 / w1, x.exp_avg, g), average(1 - 1 / w2, x.exp_avg_sq, g**2)
    step = ((1 - x.nus0) * g + x.nus0 * m) / (sqrt((1 - x.nus1) * g**2 + x.nus1 * v) + x.eps)
    return {"param": theta - x.lr * step, "beta1_weight": w1, "beta2_weight": w2, "exp_avg": m, "exp_avg_sq": v}


def yogi(x: Any) -> dict[str, Any]:
    theta, g = decayed(x, x.weight_decouple)
    t, m = x.step + 1, average(x.betas0, x.exp_avg, g)
    v = x.exp_avg_sq - (1 - x.betas1) * sign(x.exp_avg_sq - g**2) * g**2
    update = m / (1 - x.betas0**t) / (sqrt(v / (1 - x.betas1**t)) + x.eps)
    return {"param": theta - x.lr * update, "step": t, "exp_avg": m, "exp_avg_sq": v}


def adabelief(x: Any) -> dict[str, Any]:
    theta, g = decayed(x, x.decoupled_decay)
    t, m = x.step + 1, average(x.betas0, x.exp_avg, g)
    s = average(x.betas1, x.exp_avg_var, (g - m) ** 2) + x.eps
    new = {"step": t, "exp_avg": m, "exp_avg_var": s}
    if x.amsgrad:
        new["max_exp_avg_var"] = s = largest(x.max_exp_avg_var, s)
    m_hat = m / (1 - x.betas0**t)
    if not x.rectify:
        return new | {"param": theta - x.lr * m_hat / (sqrt(s / (1 - x.betas1**t)) + x.eps)}
    longest = 2 / (1 - x.betas1) - 1
    rho = longest - 2 * t * x.betas1**t / (1 - x.betas1**t)
    r = sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    rectified = theta - x.lr * r * sqrt(1 - x.betas1**t) * m_hat / (sqrt(s) + x.eps)
    return new | {"param": where(rho > 5, rectified, theta - x.lr * m_hat)}


# {class: (the update, {state: what it starts from: the name of an option, or a function of the parameter}, its 0-dim states)}
PAPERS: dict[str, tuple[Callable[[Any], dict[str, Any]], Mapping[str, Any]]] = {
    "AdaBelief": (adabelief, {}),
    "Lion": (lion, {}),
    "QHAdam": (qhadam, {}),
    "Signum": (signum, {}),
    "Tiger": (tiger, {}),
    "Yogi": (yogi, {"exp_avg": "initial_accumulator", "exp_avg_sq": "initial_accumulator"}),
}
NUMBERS = ("step", "beta1_weight", "beta2_weight")  # the states that are 0-dim


class Quantities:
    """What an update reads: the parameter, its gradient, the numbers and flags of a group, and the states, zero at first."""

    def __init__(
        self, param: torch.Tensor, grad: torch.Tensor, group: Mapping[str, Any], state: dict, initial: Mapping
    ) -> None:
        self.param, self.grad, self.group, self.state, self.initial = param, grad, group, state, initial

    def __getattr__(self, name: str) -> Any:
        if name in self.group:
            return as_number(self.group[name])
        if name[-1].isdigit() and isinstance(self.group.get(name[:-1]), (tuple, list)):
            return as_number(self.group[name[:-1]][int(name[-1])])
        if name not in self.state:
            start = self.initial.get(name, 0.0)
            start = self.group[start] if isinstance(start, str) else start
            self.state[name] = (
                start(self.param)
                if callable(start)
                else torch.tensor(start)
                if name in NUMBERS
                else torch.full_like(self.param, start)
            )
        value = self.state[name]
        return value.double() if name in NUMBERS else value


def as_number(value: Any) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    return torch.as_tensor(value, dtype=torch.float64).squeeze()


def written(ours: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """An optimizer of the paper's update, with the options of ours."""
    update, initial = PAPERS[ours.__name__]
    signature = inspect.signature(ours).parameters
    habits = ("params", "foreach", "fused", "compiled", "capturable", "differentiable", "extras")
    defaults = {name: each.default for name, each in signature.items() if name not in habits}

    class Written(torch.optim.Optimizer):
        def __init__(self, params: Any, foreach: bool | None = None, **options: Any) -> None:
            assert set(options) <= set(defaults), set(options) - set(defaults)
            super().__init__(params, {**defaults, **options})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is None:
                        continue
                    grad = -param.grad if group["maximize"] else param.grad
                    state = self.state[param]
                    new = update(Quantities(param, grad, group, state, initial))
                    param.copy_(new.pop("param"))
                    for name, value in new.items():
                        state[name].copy_(value)
            return loss

    return Written
