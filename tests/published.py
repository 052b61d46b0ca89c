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
exponential = either(sympy.exp, torch.exp)
logarithm = either(sympy.log, torch.log)
mean = either(sympy.Function("mean", real=True), torch.mean)
total = either(sympy.Function("sum", real=True), torch.sum)


both = either(sympy.And, torch.logical_and)


def norm(x: Any) -> Any:
    return sqrt(total(x**2))


def clipped(x: Any, low: Any, high: Any) -> Any:
    return smallest(largest(x, low), high)


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


def adabound(x: Any) -> dict[str, Any]:
    """Algorithm 2: η̂ = clip(α/√V, η_l, η_u), with Adam's corrections as in the authors' code."""
    t, g = x.step + 1, x.grad + x.weight_decay * x.param
    m, v = average(x.betas0, x.exp_avg, g), average(x.betas1, x.exp_avg_sq, g**2)
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    if x.amsbound:
        new["max_exp_avg_sq"] = v = largest(x.max_exp_avg_sq, v)
    final = x.final_lr * where(x.base_lr > 0, x.lr / x.base_lr, 1)
    size = x.lr * sqrt(1 - x.betas1**t) / (1 - x.betas0**t) / (sqrt(v) + x.eps)
    eta = clipped(size, final * (1 - 1 / (x.gamma * t + 1)), final * (1 + 1 / (x.gamma * t)))
    return new | {"param": x.param - eta * m}


def diffgrad(x: Any) -> dict[str, Any]:
    g = x.grad + x.weight_decay * x.param
    m_hat, v_hat, _, new = adam_moments(x, g)
    xi = 1 / (1 + exponential(-abs(x.previous_grad - g)))
    return new | {"previous_grad": g, "param": x.param - x.lr * xi * m_hat / (sqrt(v_hat) + x.eps)}


def laprop(x: Any) -> dict[str, Any]:
    """Algorithm 1, with γ in the average of scaled gradients, whose correction is then the average of γ."""
    n = average(x.betas1, x.exp_avg_sq, x.grad**2)
    c1, c2 = average(x.betas0, x.exp_avg_lr_1, x.lr), average(x.betas1, x.exp_avg_lr_2, 1)
    m = average(x.betas0, x.exp_avg, x.lr * x.grad / (sqrt(n / c2) + x.eps))
    theta = x.param - where(c1 > 0, x.lr / c1, 0) * m
    new = {"step": x.step + 1, "exp_avg": m, "exp_avg_lr_1": c1, "exp_avg_lr_2": c2, "exp_avg_sq": n}
    return new | {"param": theta - x.lr * x.weight_decay * theta}


def madgrad(x: Any) -> dict[str, Any]:
    third = sympy.Rational(1, 3) if isinstance(x.step, sympy.Expr) else 1 / 3
    theta, g = decayed(x, x.decoupled_decay)
    t, rate = x.step + 1, (x.lr + x.eps) * sqrt(x.step + 1)
    start = theta + x.s / (x.grad_sum_sq**third + x.eps) if x.momentum == 0 else x.x0
    v, s = x.grad_sum_sq + rate * g**2, x.s + rate * g
    z = start - s / (v**third + x.eps)
    new = {"step": t, "grad_sum_sq": v, "s": s, "param": (1 - (1 - x.momentum)) * theta + (1 - x.momentum) * z}
    return new if x.momentum == 0 else new | {"x0": x.x0}


def adan(x: Any) -> dict[str, Any]:
    """Algorithm 1, where β is 1 − β, with the authors' corrections."""
    g, t = x.grad, x.step + 1
    change = where(x.first > 0, 0, g + x.neg_pre_grad)
    m, d = average(x.betas0, x.exp_avg, g), average(x.betas1, x.exp_avg_diff, change)
    n = average(x.betas2, x.exp_avg_sq, (g + x.betas1 * change) ** 2)
    scale = x.lr / (sqrt(n / (1 - x.betas2**t)) + x.eps)
    update = scale * (m / (1 - x.betas0**t) + x.betas1 * d / (1 - x.betas1**t))
    theta = (
        x.param - x.lr * x.weight_decay * x.param - update if x.no_prox else (x.param - update) / (1 + x.lr * x.weight_decay)
    )
    return {"param": theta, "step": t, "exp_avg": m, "exp_avg_diff": d, "exp_avg_sq": n, "neg_pre_grad": -g}


def adopt(x: Any) -> dict[str, Any]:
    """Algorithm 1: v₀ = g₀², then steps from t = 1 on; x.step counts the gradients before this one."""
    theta, g = decayed(x, x.decoupled)
    scaled = g / largest(sqrt(x.exp_avg_sq), x.eps)
    if x.clip_exp is not None:
        scaled = clipped(scaled, -(x.step**x.clip_exp), x.step**x.clip_exp)
    m = average(x.betas0, x.exp_avg, scaled)
    started = x.step > 0
    return {
        "param": where(started, theta - x.lr * m, x.param),
        "step": x.step + 1,
        "exp_avg": where(started, m, x.exp_avg),
        "exp_avg_sq": where(started, average(x.betas1, x.exp_avg_sq, g**2), g**2),
    }


def ademamix(x: Any) -> dict[str, Any]:
    """Algorithm 1 and the schedules of appendix A.1: α linear, β₃ linear in its half-life."""
    half = sympy.Rational(1, 2) if isinstance(x.step, sympy.Expr) else torch.tensor(0.5, dtype=torch.float64)
    tiny = sympy.Rational(1, 10**8) if isinstance(x.step, sympy.Expr) else 1e-8

    def steps(beta: Any) -> Any:
        return logarithm(half) / logarithm(beta + tiny) - 1

    t, alpha, beta3 = x.step + 1, x.alpha, x.betas2
    if x.alpha_warmup is not None:
        alpha = alpha * smallest(t / x.alpha_warmup, 1)
    if x.beta3_warmup is not None:
        part = smallest(t / x.beta3_warmup, 1)
        beta3 = where(t < x.beta3_warmup, half ** (1 / ((1 - part) * steps(x.betas0) + part * steps(beta3) + 1)), beta3)
    m1, m2 = average(x.betas0, x.exp_avg_fast, x.grad), average(beta3, x.exp_avg_slow, x.grad)
    v = average(x.betas1, x.exp_avg_sq, x.grad**2)
    update = (m1 / (1 - x.betas0**t) + alpha * m2) / (sqrt(v / (1 - x.betas1**t)) + x.eps)
    new = {"step": t, "exp_avg_fast": m1, "exp_avg_slow": m2, "exp_avg_sq": v}
    return new | {"param": x.param - x.lr * (update + x.weight_decay * x.param)}


def grams(x: Any) -> dict[str, Any]:
    m_hat, v_hat, _, new = adam_moments(x, x.grad)
    update = sign(x.grad) * abs(m_hat / (sqrt(v_hat) + x.eps))
    return new | {"param": x.param - x.lr * (update + x.weight_decay * x.param)}


def heavy_ball(x: Any, theta: Any, g: Any) -> dict[str, Any]:
    """SGD's step with momentum, from θ along g."""
    if x.momentum == 0:
        return {"param": theta - x.lr * g}
    later = x.momentum * x.momentum_buffer + (1 - x.dampening) * g
    b = where(x.first > 0, g, later)
    return {"momentum_buffer": b, "param": theta - x.lr * (g + x.momentum * b if x.nesterov else b)}


def sgdw(x: Any) -> dict[str, Any]:
    return heavy_ball(x, x.param - x.lr * x.weight_decay * x.param, x.grad)


def rmsprop_tf(x: Any) -> dict[str, Any]:
    """ε within the root, v from 1, and the learning rate within the momentum."""
    theta, g = decayed(x, x.decoupled_decay)
    v = average(x.alpha, x.square_avg, g**2)
    new, variance = {"step": x.step + 1, "square_avg": v}, v
    if x.centered:
        new["grad_avg"] = average(x.alpha, x.grad_avg, g)
        variance = v - new["grad_avg"] ** 2
    update = g / sqrt(variance + x.eps)
    if x.momentum == 0:
        return new | {"param": theta - x.lr * update}
    b = x.momentum * x.momentum_buffer + (x.lr * update if x.lr_in_momentum else update)
    return new | {"momentum_buffer": b, "param": theta - (b if x.lr_in_momentum else x.lr * b)}


def stable_adamw(x: Any) -> dict[str, Any]:
    """Algorithm 2."""
    t, g = x.step + 1, x.grad
    beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (x.betas0, x.betas1))
    v, u = average(beta1, x.exp_avg, g), average(beta2, x.exp_avg_sq, g**2)
    eta = x.lr / largest(1, sqrt(mean(g**2 / largest(u, x.eps**2))))
    theta = x.param - eta * x.weight_decay * x.param - eta * v / (sqrt(u) + x.eps)
    return {"param": theta, "step": t, "exp_avg": v, "exp_avg_sq": u}


def lamb(x: Any) -> dict[str, Any]:
    t, m = x.step + 1, x.betas0 * x.exp_avg + ((1 - x.betas0) if x.grad_averaging else 1) * x.grad
    v = average(x.betas1, x.exp_avg_sq, x.grad**2)
    new, m_hat, v_hat = {"step": t, "exp_avg": m, "exp_avg_sq": v}, m, v
    if x.bias_correction:
        m_hat, v_hat = m / (1 - x.betas0**t), v / (1 - x.betas1**t)
    theta, u = x.param, m_hat / (sqrt(v_hat) + x.eps)
    if x.decoupled_decay:
        theta = theta - x.lr * x.weight_decay * theta
    else:
        u = u + x.weight_decay * theta
    ratio = 1
    if x.weight_decay != 0 or x.always_adapt:
        long, short = norm(theta), norm(u)
        ratio = where(both(long > 0, short > 0), long / short, 1)
        ratio = smallest(ratio, 1) if x.trust_clip else ratio
    return new | {"param": theta - x.lr * ratio * u}


def lars(x: Any) -> dict[str, Any]:
    g = x.grad
    if x.weight_decay != 0 or x.always_adapt:
        w, length = norm(x.param), norm(g)
        ratio = x.trust_coeff * w / (length + x.weight_decay * w + x.eps)
        ratio = where(both(x.trust_coeff * w > 0, length > 0), ratio, 1)
        ratio = smallest(ratio / x.lr, 1) if x.trust_clip else ratio
        g = ratio * (g + x.weight_decay * x.param)
    return heavy_ball(x, x.param, g)


# {class: (the update, {state: what it starts from: the name of an option, or a function of the parameter}, its 0-dim states)}
PAPERS: dict[str, tuple[Callable[[Any], dict[str, Any]], Mapping[str, Any]]] = {
    "ADOPT": (adopt, {}),
    "AdEMAMix": (ademamix, {}),
    "AdaBelief": (adabelief, {}),
    "AdaBound": (adabound, {}),
    "Adan": (adan, {}),
    "DiffGrad": (diffgrad, {}),
    "Grams": (grams, {}),
    "LAMB": (lamb, {}),
    "LARS": (lars, {}),
    "LaProp": (laprop, {}),
    "Lion": (lion, {}),
    "MADGRAD": (madgrad, {"x0": lambda param: param.detach().clone()}),
    "QHAdam": (qhadam, {}),
    "RMSpropTF": (rmsprop_tf, {"square_avg": 1.0}),
    "SGDW": (sgdw, {}),
    "Signum": (signum, {}),
    "StableAdamW": (stable_adamw, {}),
    "Tiger": (tiger, {}),
    "Yogi": (yogi, {"exp_avg": "initial_accumulator", "exp_avg_sq": "initial_accumulator"}),
}
NUMBERS = ("step", "beta1_weight", "beta2_weight", "exp_avg_lr_1", "exp_avg_lr_2")  # the states that are 0-dim


class Quantities:
    """What an update reads: the parameter, its gradient, the numbers and flags of a group, and the states, zero at first."""

    def __init__(self, param: Any, grad: Any, group: Mapping[str, Any], state: dict[str, Any], initial: Any) -> None:
        self.param, self.grad, self.group, self.state, self.initial = param, grad, group, state, initial
        self.first = torch.tensor(float(not state), dtype=torch.float64)

    def __getattr__(self, name: str) -> Any:
        if name == "base_lr":  # a group's first lr, where nobody changed it
            return as_number(self.group["lr"])
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
                    quantities = Quantities(param, grad, group, state, initial)
                    new = update(quantities)
                    param.copy_(new.pop("param"))
                    for name, value in new.items():
                        state[name].copy_(value)
            return loss

    return Written
