"""The published algorithms as their papers write them, each update once: for sympy, which proves ours equal to it, and for
tensors, as an optimizer to compare steps with. Written from the paper, in the order the page has it, with no look at our rules.
"""

from __future__ import annotations

import inspect
import math
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
angle = either(sympy.atan2, torch.atan2)
exponential = either(sympy.exp, torch.exp)
logarithm = either(sympy.log, torch.log)
cosine = either(sympy.cos, torch.cos)
remainder = either(lambda a, b: a - b * sympy.floor(a / b), torch.remainder)
most = either(sympy.Function("amax", real=True), torch.amax)
PI = math.pi
mean = either(sympy.Function("mean", real=True), torch.mean)
total = either(sympy.Function("sum", real=True), torch.sum)


mean_row = either(sympy.Function("mean_row", real=True), lambda x: x.mean(-1, keepdim=True))
mean_column = either(sympy.Function("mean_column", real=True), lambda x: x.mean(-2, keepdim=True))
mean_matrix = either(sympy.Function("mean_matrix", real=True), lambda x: x.mean((-2, -1), keepdim=True))
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


def adam_atan2(x: Any) -> dict[str, Any]:
    t, m, v = x.steps + 1, average(x.betas0, x.exp_avg, x.grad), average(x.betas1, x.exp_avg_sq, x.grad**2)
    update = x.a * angle(m / (1 - x.betas0**t), x.b * sqrt(v / (1 - x.betas1**t)))
    return {"steps": t, "exp_avg": m, "exp_avg_sq": v, "param": x.param - x.lr * (update + x.weight_decay * x.param)}


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


def nadamw(x: Any) -> dict[str, Any]:
    """Table 1, NAdam with a constant γ, and the decay apart from it, as in MLCommons' code."""
    t = x.step + 1
    m, v = average(x.betas0, x.exp_avg, x.grad), average(x.betas1, x.exp_avg_sq, x.grad**2)
    b = x.betas0 * m + (1 - x.betas0) * x.grad
    change = b / (1 - x.betas0**t) / (sqrt(v) / sqrt(1 - x.betas1**t) + x.eps)
    theta = x.param - x.lr * x.weight_decay * x.param - x.lr * change
    return {"param": theta, "step": t, "exp_avg": m, "exp_avg_sq": v}


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


def novograd(x: Any) -> dict[str, Any]:
    v = where(x.first > 0, total(x.grad**2), average(x.betas1, x.exp_avg_sq, total(x.grad**2)))
    new = {"step": x.step + 1, "exp_avg_sq": v}
    if x.amsgrad:
        new["max_exp_avg_sq"] = v = largest(x.max_exp_avg_sq, v)
    decay = x.lr * x.weight_decay * x.param
    scaled = x.grad / (sqrt(v) + x.eps) + (0 if x.decoupled_decay else x.weight_decay * x.param)
    m = x.betas0 * x.exp_avg + (1 - x.betas0 if x.grad_averaging else 1) * scaled
    return new | {"exp_avg": m, "param": x.param - (decay if x.decoupled_decay else 0) - x.lr * m}


def adam_mini(x: Any) -> dict[str, Any]:
    """Algorithm 2, with the rows of matrices and kernels as blocks."""
    t, m = x.step + 1, average(x.betas0, x.m, x.grad)
    if x.dims < 2:
        square = mean(x.grad**2)
    else:
        square = x.grad.pow(2).flatten(1).mean(1).view(x.vmean.shape) if x.dims > 2 else mean_row(x.grad**2)
    v = average(x.betas1, x.vmean, square)
    update = m / (1 - x.betas0**t) / (sqrt(v / (1 - x.betas1**t)) + x.eps)
    return {"step": t, "m": m, "vmean": v, "param": x.param - x.lr * (update + x.weight_decay * x.param)}


def mars(x: Any) -> dict[str, Any]:
    """Algorithm 2 and its instances, with timm's first step; vectors by AdamW."""
    t, whole = x.step + 1, x.optimize_1d or x.dims > 1
    beta1, beta2 = (x.betas0, x.betas1) if whole or x.betas_1d is None else (x.betas_1d0, x.betas_1d1)
    c, last, rate = x.grad, x.last_grad, x.lr if whole else x.lr * x.lr_1d_factor
    if whole:
        c = where(x.first > 0, x.grad, x.grad + x.gamma * beta1 / (1 - beta1) * (x.grad - last))
        c = c / largest(norm(c), 1)
    m, v = average(beta1, x.exp_avg, c), average(beta2, x.exp_avg_sq, c**2)
    new = {"step": t, "exp_avg": m, "last_grad": x.grad, "exp_avg_sq": v}
    update = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + x.eps)
    if whole and x.mars_type == "lion":
        update, new["exp_avg_sq"] = sign(m), x.exp_avg_sq
    return new | {"param": x.param - rate * (update + x.weight_decay * x.param)}


def came(x: Any) -> dict[str, Any]:
    """Algorithm 2."""
    square = x.grad**2 + x.eps0
    if x.dims < 2:
        v = average(x.betas1, x.exp_avg_sq, square)
        new, u = {"exp_avg_sq": v}, x.grad / sqrt(v)
    else:
        r, c = average(x.betas1, x.exp_avg_sq_row, mean_row(square)), average(x.betas1, x.exp_avg_sq_col, mean_column(square))
        new, u = {"exp_avg_sq_row": r, "exp_avg_sq_col": c}, x.grad / sqrt(r * c / mean_matrix(r))
    u = u / largest(1, sqrt(mean(u**2)) / x.clip_threshold)
    m = average(x.betas0, x.exp_avg, u)
    step = m
    if x.dims > 1:
        apart = (u - m) ** 2 + x.eps1
        r = average(x.betas2, x.exp_avg_res_row, mean_row(apart))
        c = average(x.betas2, x.exp_avg_res_col, mean_column(apart))
        new |= {"exp_avg_res_row": r, "exp_avg_res_col": c}
        step = m / sqrt(r * c / mean_matrix(r))
    theta = x.param - x.lr * x.weight_decay * x.param - x.lr * step
    return new | {"step": x.step + 1, "exp_avg": m, "param": theta}


def sophiag(x: Any) -> dict[str, Any]:
    m = average(x.betas0, x.exp_avg, x.grad)
    tiny = sympy.Rational(1, 10**15) if isinstance(x.step, sympy.Expr) else 1e-15
    size = smallest(abs(m) / (x.rho * x.bs * x.hessian + tiny), 1)
    theta = x.param - x.lr * x.weight_decay * x.param - x.lr * sign(m) * size
    return {"step": x.step + 1, "exp_avg": m, "hessian": x.hessian, "param": theta}


def newton_schulz(g: torch.Tensor, steps: int) -> torch.Tensor:
    x = (g.mT if g.size(0) > g.size(1) else g) / max(g.norm(), 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if g.size(0) > g.size(1) else x


def muon_direction(x: Any) -> tuple[torch.Tensor, torch.Tensor]:
    b = average(x.momentum, x.momentum_buffer, x.grad)
    u = average(x.momentum, b, x.grad) if x.nesterov else b
    return b, newton_schulz(u, int(x.ns_steps))


def adamuon(x: Any) -> dict[str, Any]:
    b, o = muon_direction(x)
    t, v = x.step + 1, average(x.beta2, x.v_buffer, o**2)
    u = o / (sqrt(v / (1 - x.beta2**t)) + x.eps)
    u = u * min(u.shape) ** 0.5 / (u.norm() + x.eps) * 0.2 * max(u.shape) ** 0.5
    return {"step": t, "momentum_buffer": b, "v_buffer": v, "param": x.param - x.lr * (u + x.weight_decay * x.param)}


def normuon(x: Any) -> dict[str, Any]:
    b, o = muon_direction(x)
    v = average(x.beta2, x.second_momentum_buffer, mean_row(o**2))
    u = o / (sqrt(v) + 1e-10)
    u = u * o.norm() / (u.norm() + 1e-10) * max(1, o.size(0) / o.size(1)) ** 0.5
    return {"momentum_buffer": b, "second_momentum_buffer": v, "param": x.param - x.lr * (u + x.weight_decay * x.param)}


def adago(x: Any) -> dict[str, Any]:
    """Algorithm 1; v is kept as its square."""
    b, o = muon_direction(x)
    n = min(x.grad.norm(), x.gamma)
    square = where(x.first > 0, x.v**2, x.v_sq) + n**2
    decay = x.lr * x.weight_decay * x.param
    return {"momentum_buffer": b, "v_sq": square, "param": x.param - decay - max(x.eps, x.lr * n / square.sqrt()) * o}


def racs(x: Any) -> dict[str, Any]:
    """Algorithm 1: five steps of equation 16 from q = 1."""
    q = torch.ones(x.grad.size(0), 1, dtype=x.grad.dtype)
    for _ in range(5):
        s = (x.grad.T**2 @ q) / q.square().sum()
        q = (x.grad**2 @ s) / s.square().sum()
    s, q = average(x.beta, x.s, s.T), average(x.beta, x.q, q)
    u = x.grad / (sqrt(s * q) + x.eps)
    eta = where(x.first > 0, 1.0, x.gamma / largest(u.norm() / x.phi, x.gamma))
    theta = x.param - x.lr * x.weight_decay * x.param - x.lr * eta * x.alpha * u
    return {"s": s, "q": q, "phi": (eta * u.norm()).reshape(1, 1), "param": theta}


def scion(x: Any) -> dict[str, Any]:
    """Algorithm 2 of the paper with the authors' norms."""
    b = (1 - x.momentum) * x.momentum_buffer + x.momentum * x.grad
    kwargs = dict(x.group["norm_kwargs"] or {})
    norm, steps = x.group["norm"], kwargs.get("steps", 5)
    if norm == "Auto":
        norm = {0: "BiasRMS", 1: "BiasRMS", 2: "Spectral"}.get(b.ndim, "SpectralConv")
    g = b.T if kwargs.get("transpose", False) else b
    if norm == "BiasRMS":
        u = g / (g.square().mean().sqrt() + 1e-8)
    elif norm == "Sign":
        u = g.sign() / (g.size(1) if kwargs.get("normalized", True) else 1)
    elif norm == "ColNorm":
        rms = g.norm(dim=0, keepdim=True) / g.size(0) ** 0.5
        u = g / (rms * (g.size(1) if kwargs.get("normalized", False) else 1) + 1e-8)
    elif norm == "RowNorm":
        u = g / (g.norm(dim=-1, keepdim=True) * (g.size(-1) ** 0.5 if kwargs.get("normalized", True) else 1) + 1e-8)
    else:
        size = (g.size(0) / g.size(1) if kwargs.get("normalized", True) else g.size(0)) ** 0.5
        size = max(1.0, size) if kwargs.get("max", False) else size
        u = size / math.prod(g.shape[2:]) * newton_schulz(g.reshape(len(g), -1), steps).reshape(g.shape)
    u = u.T if kwargs.get("transpose", False) else u
    kept = 1.0 if x.unconstrained else 1 - x.lr
    return {"momentum_buffer": b, "param": kept * x.param - x.lr * x.scale * u}


def without_radial_part(x: Any, u: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Equation 12 for each row, else for the whole: as the authors' code, on views of tensors alone."""
    if x.param.ndim > 1:
        for view in (lambda a: a.reshape(a.size(0), -1), lambda a: a.reshape(1, -1)):
            w, g = view(x.param), view(x.grad)
            cosine = torch.nn.functional.cosine_similarity(g, w, dim=1, eps=float(x.eps)).abs()
            if cosine.max() < x.delta / w.size(1) ** 0.5:
                unit = w / (w.norm(dim=1, keepdim=True) + x.eps)
                flat = view(u)
                return (flat - unit * (unit * flat).sum(1, keepdim=True)).reshape(u.shape), x.wd_ratio
    return u, 1.0


def adamp(x: Any) -> dict[str, Any]:
    _, v_hat, t, new = adam_moments(x, x.grad)
    m = average(x.betas0, new["exp_avg"], x.grad) if x.nesterov else new["exp_avg"]
    u, ratio = without_radial_part(x, m / (sqrt(v_hat) + x.eps))
    theta = x.param - x.lr * x.weight_decay * ratio * x.param
    return new | {"param": theta - x.lr / (1 - x.betas0**t) * u}


def sgdp(x: Any) -> dict[str, Any]:
    b = x.momentum * x.momentum_buffer + (1 - x.dampening) * x.grad
    u, ratio = without_radial_part(x, x.grad + x.momentum * b if x.nesterov else b)
    theta = x.param - x.lr * x.weight_decay * ratio / (1 - x.momentum) * x.param
    return {"momentum_buffer": b, "param": theta - x.lr * u}


def sm3(x: Any) -> dict[str, Any]:
    """SM3-II with the rows, columns and so on as cover, on tensors alone."""
    dims = max(x.param.ndim, 1)
    old = [getattr(x, f"accumulator_{index}") for index in range(dims)]
    bound = old[0]
    for each in old[1:]:
        bound = torch.minimum(bound, each)
    bound = (x.beta * bound if x.beta > 0 else bound) + (1 - x.beta) * x.grad**2
    new, update = {}, x.grad / sqrt(bound + x.eps)
    if x.momentum > 0:
        new["momentum_buffer"] = update = average(x.momentum, x.momentum_buffer, update)
    for index, each in enumerate(old):
        found = bound
        for dim in range(x.param.ndim):
            found = found if dim == index or found.numel() == 0 else found.max(dim, keepdim=True).values
        new[f"accumulator_{index}"] = torch.maximum(each, found) if x.beta > 0 else found
    return new | {"param": x.param - x.lr * update}


def grokadamw(x: Any) -> dict[str, Any]:
    """As the authors' code has it; `layer` is the parameter's place in its group."""
    tiny = sympy.Rational(1, 10**6) if isinstance(x.step, sympy.Expr) else 1e-6
    g = x.grad * smallest(1, x.gradient_clipping / (norm(x.grad) + tiny)) if x.gradient_clipping != 0 else x.grad
    alpha = x.alpha_init * exponential(-x.grokking_signal_decay_rate * x.grokking_signal)
    t, e = x.step + 1, average(alpha, x.grok_ema, g)
    amplified = g + x.lamb * e
    m = average(x.betas0 * (1 - x.gamma) ** x.layer, x.exp_avg, amplified)
    v = average(x.betas1, x.exp_avg_sq, amplified**2)
    size = x.lr * sqrt(1 - x.betas1**t) / (1 - x.betas0**t)
    theta = x.param - x.lr * x.weight_decay * x.param - size * m / (sqrt(v) + x.eps)
    return {"param": theta, "step": t, "layer": x.layer, "exp_avg": m, "exp_avg_sq": v, "grok_ema": e}


def pnm_momentum(x: Any, m: Any, other: Any, beta0: Any) -> Any:
    """Equation 6, with the momentums that took the gradients of every other step."""
    return ((1 + beta0) * m - beta0 * other) / sqrt((1 + beta0) ** 2 + beta0**2)


def pnm(x: Any) -> dict[str, Any]:
    m = average(x.betas0**2, x.pos_momentum, x.grad)
    theta = x.param - x.lr * (pnm_momentum(x, m, x.neg_momentum, x.betas1) + x.weight_decay * x.param)
    return {"param": theta, "pos_momentum": x.neg_momentum, "neg_momentum": m}


def adapnm(x: Any) -> dict[str, Any]:
    t, m = x.step + 1, average(x.betas0**2, x.exp_avg, x.grad)
    v = average(x.betas1, x.exp_avg_sq, x.grad**2)
    new = {"step": t, "exp_avg": x.neg_exp_avg, "neg_exp_avg": m, "exp_avg_sq": v}
    if x.ams_bound:
        new["max_exp_avg_sq"] = v = largest(x.max_exp_avg_sq, v)
    scale = x.lr / (1 - x.betas0**t) * sqrt(1 - x.betas1**t) / (sqrt(v) + x.eps)
    theta = x.param - x.lr * x.weight_decay * x.param - scale * pnm_momentum(x, m, x.neg_exp_avg, x.betas2)
    return new | {"param": theta}


def aggmo(x: Any) -> dict[str, Any]:
    g, new, step = x.grad + x.weight_decay * x.param, {}, 0
    for index in range(3):
        new[f"momentum_buffer_{index}"] = m = getattr(x, f"betas{index}") * getattr(x, f"momentum_buffer_{index}") + g
        step = step + m
    return new | {"param": x.param - x.lr / 3 * step}


def amos(x: Any) -> dict[str, Any]:
    """Algorithm 1, with the authors' defaults for c and d as functions of b."""
    t, square = x.step + 1, mean(x.grad**2)
    scale = 0.5 if x.dims < 2 else ((2 if x.dims == 2 else 1) / x.param.size(1)) ** 0.5
    v = average(x.beta, x.exp_avg_sq, square)
    corrected = v / (1 - x.beta**t)
    c = 1 / sqrt(1 + x.c_coef * sqrt(x.lr) * x.decay)
    d = 1 / (1 + x.d_coef * sqrt(x.lr * scale) * x.decay)
    r = 1 / (corrected + x.eps / (1 - x.beta**t))
    kappa = c * x.lr**2 * r * square
    step = d * (x.lr * scale * sqrt(r) * x.grad + (kappa - x.extra_l2) / 2 * x.param)
    new = {"step": t, "exp_avg_sq": v, "decay": x.decay + kappa * (1 + x.decay)}
    if x.momentum != 0:
        new["exp_avg"] = step = average(x.momentum, x.exp_avg, step)
    return new | {"param": x.param - step}


def ano(x: Any) -> dict[str, Any]:
    t, beta1 = x.step + 1, x.betas0
    if x.logarithmic_schedule:
        beta1 = 1 - 1 / logarithm(largest(2, t))
    m, v = average(beta1, x.exp_avg, x.grad), x.betas1 * x.exp_avg_sq
    v = v + (1 - x.betas1) * sign(x.grad**2 - x.exp_avg_sq) * x.grad**2
    step = abs(x.grad) * sign(m) / (sqrt(v / (1 - x.betas1**t)) + x.eps)
    return {"param": x.param - x.lr * (step + x.weight_decay * x.param), "step": t, "exp_avg": m, "exp_avg_sq": v}


def exadam(x: Any) -> dict[str, Any]:
    """Equations 4 to 6."""
    m_hat, v_hat, t, new = adam_moments(x, x.grad)
    m, v = new["exp_avg"], new["exp_avg_sq"]
    m_tilde = m_hat * (1 + v / (v + x.eps) * x.betas1**t)
    v_tilde = v_hat * (1 + m**2 / (m**2 + x.eps) * x.betas0**t)
    g_tilde = x.grad / (1 - x.betas0**t) * (1 + v / (v + x.eps) * x.betas1**t)
    step = (m_tilde + g_tilde) / (sqrt(v_tilde) + x.eps)
    return new | {"param": x.param - x.lr * (step + x.weight_decay * x.param)}


def fadam(x: Any) -> dict[str, Any]:
    """Algorithm 1."""

    def clip(u: Any) -> Any:
        return u / largest(1, sqrt(mean(u**2)) / x.clip)

    t = x.step + 1
    beta = x.betas1 * (1 - x.betas1 ** (t - 1)) / (1 - x.betas1**t)
    f, size = average(beta, x.fim, x.grad**2), sqrt(mean(x.grad**2))
    tiny = where(size > 0, smallest(x.eps, x.eps_2 * size), x.eps)
    root = f**x.p + tiny ** (2 * x.p)
    m = average(x.betas0, x.momentum, clip(x.grad / root))
    return {"step": t, "fim": f, "momentum": m, "param": x.param - x.lr * (m + x.weight_decay * clip(x.param / root))}


def fromage(x: Any) -> dict[str, Any]:
    long, short = norm(x.param), norm(x.grad)
    theta = (x.param - x.lr * where(both(long > 0, short > 0), long / short, 1) * x.grad) / sqrt(1 + x.lr**2)
    if x.p_bound is None:
        return {"param": theta}
    return {"param": theta * smallest(1, x.max / norm(theta)), "max": x.max}


def ftrl(x: Any) -> dict[str, Any]:
    """Algorithm 1, for a power p in place of the root."""
    n = x.n + x.grad**2
    sigma = (n**-x.lr_power - x.n**-x.lr_power) / x.lr
    z = x.z + x.grad - sigma * x.param
    theta = -1 / ((x.beta + sqrt(n)) / x.lr + x.lambda_2) * (z - sign(z) * x.lambda_1)
    return {"z": z, "n": n, "param": where(abs(z) <= x.lambda_1, 0, theta)}


def kate(x: Any) -> dict[str, Any]:
    b2 = x.b**2 + x.grad**2 + x.eps
    m = sqrt(x.m**2 + x.delta * x.grad**2 + x.grad**2 / b2)
    return {"m": m, "b": sqrt(b2), "param": x.param - x.lr * (m * x.grad / b2 + x.weight_decay * x.param)}


def padam(x: Any) -> dict[str, Any]:
    _, _, t, new = adam_moments(x, x.grad + x.weight_decay * x.param)
    size = x.lr * sqrt(1 - x.betas1**t) / (1 - x.betas0**t)
    return new | {"param": x.param - size * new["exp_avg"] / (sqrt(new["exp_avg_sq"]) + x.eps) ** (2 * x.partial)}


def pid(x: Any) -> dict[str, Any]:
    g = x.grad + x.weight_decay * x.param
    whole = x.momentum * x.i_buffer + (1 - x.dampening) * g
    change = where(x.first > 0, x.momentum * x.d_buffer, average(x.momentum, x.d_buffer, g - x.grad_buffer))
    theta = x.param - x.lr * (g + x.integral * whole + x.derivative * change)
    return {"param": theta, "grad_buffer": g, "i_buffer": whole, "d_buffer": change}


def qhm(x: Any) -> dict[str, Any]:
    g = x.grad + x.weight_decay * x.param
    b = average(x.momentum, x.momentum_buffer, g)
    return {"param": x.param - x.lr * ((1 - x.nu) * g + x.nu * b), "momentum_buffer": b}


def simplified_ademamix(x: Any) -> dict[str, Any]:
    half = sympy.Rational(1, 2) if isinstance(x.step, sympy.Expr) else torch.tensor(0.5, dtype=torch.float64)
    tiny = sympy.Rational(1, 10**8) if isinstance(x.step, sympy.Expr) else 1e-8

    def steps(beta: Any) -> Any:
        return logarithm(half) / logarithm(beta + tiny) - 1

    t, beta = x.step + 1, x.betas0
    if x.beta1_warmup is not None:
        part = smallest(t / x.beta1_warmup, 1)
        warm = half ** (1 / ((1 - part) * steps(x.min_beta1) + part * steps(beta) + 1))
        beta = where(t < x.beta1_warmup, warm, beta)
    m, v, s = average(beta, x.exp_avg, x.grad), average(x.betas1, x.exp_avg_sq, x.grad**2), average(x.betas1, x.den_sum, 1)
    step = (m + x.alpha * x.grad) / (sqrt(v) + sqrt(s) * x.eps) / sqrt(s)
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v, "den_sum": s}
    return new | {"param": x.param - x.lr * (step + x.weight_decay * x.param)}


def grokfast_adamw(x: Any) -> dict[str, Any]:
    e = where(x.first > 0, x.grad, average(x.grokfast_alpha, x.grok_exp_avg, x.grad))
    m_hat, v_hat, _, new = adam_moments(x, x.grad + x.grokfast_lamb * e)
    step = m_hat / largest(sqrt(v_hat), x.eps)
    return new | {"grok_exp_avg": e, "param": x.param - x.lr * (step + x.weight_decay * x.param)}


def adamod(x: Any) -> dict[str, Any]:
    _, _, t, new = adam_moments(x, x.grad)
    eta = x.lr * sqrt(1 - x.betas1**t) / (1 - x.betas0**t) / (sqrt(new["exp_avg_sq"]) + x.eps)
    s = average(x.betas2, x.exp_avg_lr, eta)
    theta = x.param - x.lr * x.weight_decay * x.param - smallest(eta, s) * new["exp_avg"]
    return new | {"exp_avg_lr": s, "param": theta}


def adanorm(x: Any) -> dict[str, Any]:
    t, e = x.step + 1, average(x.r, x.exp_grad_norm, norm(x.grad))
    s = where(both(norm(x.grad) > 0, e > norm(x.grad)), e / norm(x.grad), 1) * x.grad
    m, v = average(x.betas0, x.exp_avg, s), average(x.betas1, x.exp_avg_var, x.grad**2)
    new = {"step": t, "exp_avg": m, "exp_avg_var": v, "exp_grad_norm": e}
    if x.ams_bound:
        new["max_exp_avg_var"] = v = largest(x.max_exp_avg_var, v)
    step = m / (1 - x.betas0**t) * sqrt(1 - x.betas1**t) / (sqrt(v) + x.eps)
    return new | {"param": x.param - x.lr * (step + x.weight_decay * x.param)}


def adamg(x: Any) -> dict[str, Any]:
    t, g = x.step + 1, x.grad + x.weight_decay * x.param
    v = average(x.betas1, x.v, g**2)
    r = average(x.betas2, x.r, x.p * v**x.q)
    m = average(x.betas0, x.m, r * g)
    step = m / (1 - x.betas0**t) / (sqrt(v / (1 - x.betas1**t)) + x.eps)
    return {"step": t, "v": v, "r": r, "m": m, "param": x.param - smallest(x.lr, 1 / sqrt(t)) * step}


def stable_spam(x: Any) -> dict[str, Any]:
    t, scale = x.step + 1, 1
    if x.t_max is not None:
        falling = (1 + cosine(PI * (t + 1) / (x.t_max + 1))) / (1 + cosine(PI / (x.t_max + 1)))
        scale = where(t < x.t_max, x.eta_min + (1 - x.eta_min) * falling, x.eta_min)
    a = average(x.theta, x.m_max_t, most(abs(x.grad)))
    bound = a / (1 - x.theta**t)
    g = where(abs(x.grad) > bound, x.grad / most(abs(x.grad)) * bound, x.grad)
    n, q = average(x.gamma1 * scale, x.m_norm_t, norm(g)), average(x.gamma2, x.v_norm_t, norm(g) ** 2)
    length = n / (1 - (x.gamma1 * scale) ** t) / (sqrt(q / (1 - x.gamma2**t)) + x.eps)
    g = g * where(norm(g) > 0, length / norm(g), 0)
    new = {"step": t, "m_max_t": a, "m_norm_t": n, "v_norm_t": q}
    first = remainder(t, x.update_proj_gap) > 0
    since = where(t < x.update_proj_gap, t, remainder(t, x.update_proj_gap) + 1)
    m = average(x.betas0 * scale, where(first, 1, 0) * x.exp_avg, g)
    v = average(x.betas1, where(first, 1, 0) * x.exp_avg_sq, g**2)
    step = m / (1 - (x.betas0 * scale) ** since) / (sqrt(v / (1 - x.betas1**since)) + x.eps)
    return new | {"exp_avg": m, "exp_avg_sq": v, "param": x.param - x.lr * x.weight_decay * x.param - x.lr * step}


def adahessian(x: Any) -> dict[str, Any]:
    """Between two estimates of the Hessian."""
    t, m = x.step + 1, average(x.betas0, x.exp_avg, x.grad)
    root = (x.exp_hessian_diag_sq / (1 - x.betas1**t)) ** (x.hessian_power / 2) + x.eps
    theta = x.param - x.lr * (m / (1 - x.betas0**t) / root + x.weight_decay * x.param)
    return {"step": t, "exp_avg": m, "exp_hessian_diag_sq": x.exp_hessian_diag_sq, "param": theta}


def sophiah(x: Any) -> dict[str, Any]:
    """Between two estimates of the Hessian."""
    m = average(x.betas0, x.momentum, x.grad)
    step = clipped(m / largest(x.hessian_moment, x.eps), -x.p, x.p)
    theta = x.param - x.lr * (step + x.weight_decay * x.param)
    return {"momentum": m, "hessian_moment": x.hessian_moment, "param": theta}


def no_dimensions(_: torch.Tensor) -> torch.Tensor:
    return torch.zeros(())


def bound_of_norm(param: torch.Tensor) -> torch.Tensor:
    return param.norm().reshape((1,) * param.ndim) * 1.5


def accsgd(x: Any) -> dict[str, Any]:
    """Algorithm 2 of the ICLR paper, as the authors' code writes it."""
    g, long = x.grad + x.weight_decay * x.param, x.lr * x.kappa / x.smallConst
    beta = x.smallConst**2 * x.xi / x.kappa
    zeta = x.smallConst / (x.smallConst + beta)
    w = beta * ((1 / beta - 1) * x.momentum_buffer - long * g + x.param)
    return {"momentum_buffer": w, "param": zeta * (x.param - x.lr * g) + (1 - zeta) * w}


def msvag(x: Any) -> dict[str, Any]:
    """Equations 18 to 21; the ρ of the first step is as near to 1 as the authors' code lets it be."""
    t, m, v = x.step + 1, average(x.beta, x.exp_avg, x.grad), average(x.beta, x.exp_avg_sq, x.grad**2)
    rho = smallest((1 - x.beta) ** 2 * (1 - x.beta ** (2 * t)) / ((1 - x.beta**2) * (1 - x.beta**t) ** 2), 0.999)
    m_hat, v_hat = m / (1 - x.beta**t), v / (1 - x.beta**t)
    s = (v_hat - m_hat**2) / (1 - rho)
    factor = clipped((m_hat**2 / (m_hat**2 + rho * s)).nan_to_num(), 0, 1)
    return {"step": t, "exp_avg": m, "exp_avg_sq": v, "param": x.param - x.lr * factor * m_hat}


def focus(x: Any) -> dict[str, Any]:
    """Algorithm 1, whose corrected mean of parameters is a weighted one, with all of the weight on the first at first."""
    t, m = x.step + 1, average(x.betas0, x.exp_avg, x.grad)
    old, new = x.betas1 * (1 - x.betas1 ** (t - 1)) / (1 - x.betas1**t), (1 - x.betas1) / (1 - x.betas1**t)
    p = old * x.pbar + new * x.param
    change = sign(m) + x.gamma * sign(x.param - p) + x.weight_decay * p
    return {"step": t, "exp_avg": m, "pbar": p, "param": x.param - x.lr * change}


def bcos(x: Any) -> dict[str, Any]:
    """The authors' code, in its mode "c"."""
    theta, g = decayed(x, x.decouple_wd)
    m = where(x.first > 0, x.grad, x.m)
    v = average(1 - (1 - x.beta) ** 2 if x.beta2 is None else x.beta2, m**2, g**2)
    m = average(x.beta, m, g)
    return {"m": m, "param": theta - x.lr * m / (sqrt(v) + x.eps)}


def vsgd(x: Any) -> dict[str, Any]:
    """Algorithm 1, with 2·a and 2·b as the authors' code keeps them."""
    little = sympy.Rational(1, 10**4) if isinstance(x.step, sympy.Expr) else 1e-4
    t, a, b, c = x.step + 1, 2 * x.ps + 1 + little, 2 * x.ps, 2 * x.ghattg * x.ps
    sg, shg = where(t > 1, x.bg / a, b / (a - 1)), where(t > 1, x.bhg / a, c / (a - 1))
    mu, sigma = (x.grad * sg + x.mug * shg) / (sg + shg), sg * shg / (sg + shg)
    squared = sigma + mu**2
    bg, bhg = b + squared - 2 * mu * x.mug + x.mug**2, c + squared - 2 * x.grad * mu + x.grad**2
    rho1, rho2 = t ** (-x.tau1), t ** (-x.tau2)
    new = {"step": t, "mug": mu, "bg": (1 - rho1) * x.bg + rho1 * bg, "bhg": (1 - rho2) * x.bhg + rho2 * bhg}
    return new | {"param": x.param - x.lr * (mu / (sqrt(squared) + x.eps) + x.weight_decay * x.param)}


def dual_adam(x: Any) -> dict[str, Any]:
    m_hat, v_hat, t, new = adam_moments(x, x.grad)
    root, alpha = sqrt(v_hat) + x.eps, largest(0, 1 - t * x.switch_rate)
    both = (1 - alpha) * m_hat / root + alpha * m_hat * root
    update = where(1 - t * x.switch_rate >= x.switch_rate, both, m_hat / root)
    return new | {"param": x.param - x.lr * (update + x.weight_decay * x.param)}


def adasmooth(x: Any) -> dict[str, Any]:
    g, change = x.grad + x.weight_decay * x.param, x.param - x.prev_param
    s, n = x.s + change, x.n + abs(change)
    c = (x.betas1 - x.betas0) * abs(s) / (n + x.eps) + 1 - x.betas1
    v = c**2 * g**2 + (1 - c**2) * x.exp_avg_sq
    theta = x.param - x.lr * g / sqrt(v + x.eps)
    return {"param": theta, "prev_param": x.param + 0, "s": s, "n": n, "exp_avg_sq": v}


def a2grad(x: Any) -> dict[str, Any]:
    """Algorithm 7 with the choices of algorithms 4 to 6; x.step is their k."""
    k = x.step
    mean = (k * x.avg_grad + x.grad) / (k + 1)
    square, new = (x.grad - mean) ** 2, {"step": k + 1, "avg_grad": mean}
    if x.variant == "uni":
        v = x.v_k + square
        h = sqrt(v)
    elif x.variant == "inc":
        v = k**2 / (k + 1) ** 2 * x.v_k + square
        h = sqrt(v)
    else:
        new["v_kk"] = where(x.first > 0, square, average(x.rho, x.v_kk, square))
        v = largest(new["v_kk"], x.v_k)
        h = sqrt((k + 1) * v)
    c = x.lr / (2 * x.lips / (k + 1) + x.beta * h)
    ahead, now, x_k = 2 / (k + 3), 2 / (k + 2), x.x_k - c * x.grad
    theta = (1 - ahead) * x.param + ahead * x_k - (1 - ahead) * now * c * x.grad
    return new | {"v_k": v, "x_k": x_k, "param": theta}


def tam(x: Any) -> dict[str, Any]:
    """Algorithm 1."""
    lengths = norm(x.grad) * norm(x.momentum_buffer)
    s = average(x.decay_rate, x.s, where(lengths > 0, total(x.grad * x.momentum_buffer) / lengths, 0))
    m = x.momentum * x.momentum_buffer + ((1 + s) / 2 + x.eps) * x.grad
    return {"s": s, "momentum_buffer": m, "param": x.param - x.lr * (m + x.weight_decay * x.param)}


def apollo_dqn(x: Any) -> dict[str, Any]:
    """Algorithm 1, with the rebounds, the decays and the warm-up of the authors' code, on tensors alone."""
    kind = x.weight_decay_type or ("L2" if x.rebound == "constant" else "decoupled")
    start = x.lr / 1000 if x.init_lr is None else x.init_lr
    rate = (x.lr - start) * x.step / x.warmup + start if x.step < x.warmup else x.lr
    g, t = x.grad + (x.weight_decay * x.param if kind == "L2" else 0), x.step + 1
    alpha = (1 - x.beta) / (1 - x.beta**t)
    delta = g - x.exp_avg_grad
    bound, eps = (0.01, x.eps / 0.01) if x.rebound == "constant" else (delta.abs().max(), x.eps)
    m = x.exp_avg_grad + alpha * delta
    denominator = x.update.norm(p=4) + eps
    d = x.update / denominator
    b = x.approx_hessian
    b = b - d**2 * (alpha * (delta / denominator * d).sum() + (b * d**2).sum())
    size = b.abs().clamp(min=0.01) if x.rebound == "constant" else b.abs().clamp(min=bound) + eps / alpha
    new = m / size
    if kind != "L2":
        new = new + x.weight_decay / (size.mean() if kind == "stable" else 1) * x.param
    return {"step": t, "exp_avg_grad": m, "approx_hessian": b, "update": new, "param": x.param - rate * new}


def sgd_sai(x: Any) -> dict[str, Any]:
    """Algorithm 1, on tensors alone."""
    n = x.param.numel()
    sigma = x.grad.std() if n > 1 else torch.zeros(())
    found = x.grad.norm() / (sigma + x.eps) if sigma > 0 else torch.tensor(float(n)).sqrt()
    s, m, new = where(x.first > 0, found, x.gsnr), x.grad, {}
    if x.momentum != 0:
        m = new["momentum_buffer"] = where(x.first > 0, x.grad, average(x.momentum, x.momentum_buffer, x.grad))
    return new | {"gsnr": s, "param": x.param - x.lr * (s * m + x.weight_decay * x.param)}


def aida(x: Any) -> dict[str, Any]:
    g, t = x.grad + x.weight_decay * x.param, x.step + 1
    m = average(x.betas0, x.exp_avg, g)
    to_g, to_m = g, m
    for _ in range(int(x.K)):
        inner = total(to_g * to_m)
        to_g, to_m = inner / (total(to_g**2) + x.xi) * to_g, inner / (total(to_m**2) + x.xi) * to_m
    v = average(x.betas1, x.exp_avg_var, (to_m - to_g) ** 2) + x.eps
    theta = x.param - x.lr / (1 - x.betas0**t) * m / (sqrt(v) / sqrt(1 - x.betas1**t))
    return {"step": t, "exp_avg": m, "exp_avg_var": v, "param": theta}


def rose(x: Any) -> dict[str, Any]:
    """The author's code, on tensors alone."""
    theta, g = x.param - x.lr * x.weight_decay * x.param, x.grad
    if g.ndim == 0:
        return {"param": theta - x.lr * g.sign()}
    if g.numel() == 0:
        return {"param": theta}
    rest = tuple(range(1, g.ndim)) or (0,)
    if x.centralize and g.ndim > 1:
        g = g - g.mean(rest, keepdim=True)
    scale = g.amax(rest, keepdim=True).abs() - g.amin(rest, keepdim=True)
    if x.stabilize and g.ndim > 1:
        deviation, mean = torch.std_mean(scale, correction=0)
        scale = mean.lerp(scale, mean / (deviation + mean) if mean > 0 else mean)
    return {"param": theta - x.lr * g / scale.masked_fill(scale == 0, 1.0)}


def adashift(x: Any) -> dict[str, Any]:
    """Algorithm 3, on tensors alone."""
    n, t = int(x.keep_num), x.step + 1
    kept = [getattr(x, f"grad_queue_{i}") for i in range(n)]
    shifted, kept = kept[0] ** 2, [*(each.clone() for each in kept[1:]), x.grad]
    if x.reduce_func is not None and shifted.numel() > 0:
        shifted = (shifted.max() if x.reduce_func == "max" else shifted.mean()).reshape(x.exp_avg_sq.shape)
    v = average(x.betas1, x.exp_avg_sq, shifted) if t > n else x.exp_avg_sq
    new = {"step": t, "exp_avg_sq": v, **{f"grad_queue_{i}": each for i, each in enumerate(kept)}}
    if t <= n or x.grad.numel() == 0:
        return new | {"param": x.param}
    m = sum(x.betas0**i * g for i, g in enumerate(reversed(kept))) / sum(x.betas0**i for i in range(n))
    return new | {"param": x.param - x.lr * m / (sqrt(v / (1 - x.betas1 ** (t - n))) + x.eps)}


def nero(x: Any) -> dict[str, Any]:
    """Algorithm 1 with the authors' code, on tensors alone."""

    def turned(p: torch.Tensor) -> torch.Tensor:
        p = p - p.flatten(1).mean(1).view(-1, *(1,) * (p.ndim - 1))
        return p / p.flatten(1).norm(dim=1).view(-1, *(1,) * (p.ndim - 1))

    matrix, t = x.dims > 1, x.step + 1
    constrained = matrix and x.constraints
    theta = turned(x.param) if constrained and x.first else x.param
    length = lambda p: p.flatten(1).norm(dim=1).view(-1, *(1,) * (p.ndim - 1)) if matrix else p.abs()  # noqa: E731
    size = length(theta).mean()
    scale = where(x.first > 0, size if size > 0 else torch.tensor(0.01), x.scale)
    v = average(x.beta, x.exp_avg_sq, length(x.grad) ** 2)
    theta = theta - x.lr * scale * (x.grad / sqrt(v / (1 - x.beta**t))).nan_to_num(0.0)
    return {"step": t, "scale": scale, "exp_avg_sq": v, "param": turned(theta) if constrained else theta}


def gravity(x: Any) -> dict[str, Any]:
    """Algorithm 1, from normal numbers on."""
    t, v = x.step + 1, where(x.first > 0, where(x.lr > 0, x.alpha / x.lr, 0) * x.v, x.v)
    beta, slope = (x.beta * t + 1) / (t + 2), x.grad * most(abs(x.grad))
    v = average(beta, v, x.grad / (1 + slope**2))
    return {"step": t, "v": v, "param": x.param - x.lr * v}


def per_row(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros(param.size(0) if param.ndim > 1 else 1, *(1,) * (param.ndim - 1))


def single(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros((1,) * param.ndim)


def per_neuron(param: torch.Tensor) -> torch.Tensor:
    return per_row(param) if param.ndim > 1 else torch.zeros_like(param)


def of_param(param: torch.Tensor) -> torch.Tensor:
    return param.detach().clone()


def row(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*param.shape[:-1], 1)


def column(param: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*param.shape[:-2], 1, param.size(-1))


def along(index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda param: torch.zeros([size if dim == index else 1 for dim, size in enumerate(param.shape)])


# {class: (the update, {state: what it starts from: the name of an option, or a function of the parameter}, its 0-dim states)}
PAPERS: dict[str, tuple[Callable[[Any], dict[str, Any]], Mapping[str, Any]]] = {
    "ADOPT": (adopt, {}),
    "AdaGO": (adago, {"v_sq": single}),
    "AdaMuon": (adamuon, {}),
    "AdamAtan2": (adam_atan2, {}),
    "AdamMini": (adam_mini, {"vmean": per_row}),
    "AdamP": (adamp, {}),
    "CAME": (
        came,
        {"exp_avg_sq_row": row, "exp_avg_sq_col": column, "exp_avg_res_row": row, "exp_avg_res_col": column},
    ),
    "MARS": (mars, {}),
    "NAdamW": (nadamw, {}),
    "NorMuon": (normuon, {"second_momentum_buffer": row}),
    "NovoGrad": (novograd, {"exp_avg_sq": single, "max_exp_avg_sq": single}),
    "SGDP": (sgdp, {}),
    "SM3": (sm3, {f"accumulator_{index}": along(index) for index in range(4)}),
    "SophiaG": (sophiag, {}),
    "AdEMAMix": (ademamix, {}),
    "AdaBelief": (adabelief, {}),
    "AdaBound": (adabound, {}),
    "Adan": (adan, {}),
    "DiffGrad": (diffgrad, {}),
    "Grams": (grams, {}),
    "GrokAdamW": (grokadamw, {}),
    "LAMB": (lamb, {}),
    "LARS": (lars, {}),
    "LaProp": (laprop, {}),
    "Lion": (lion, {}),
    "MADGRAD": (madgrad, {"x0": of_param}),
    "QHAdam": (qhadam, {}),
    "RMSpropTF": (rmsprop_tf, {"square_avg": 1.0}),
    "SGDW": (sgdw, {}),
    "RACS": (racs, {"s": column, "q": row, "phi": single}),
    "Scion": (scion, {}),
    "Signum": (signum, {}),
    "StableAdamW": (stable_adamw, {}),
    "Tiger": (tiger, {}),
    "AdaHessian": (adahessian, {}),
    "AdaMod": (adamod, {}),
    "AdaNorm": (adanorm, {"exp_grad_norm": no_dimensions}),
    "AdaPNM": (adapnm, {}),
    "AdamG": (adamg, {}),
    "AggMo": (aggmo, {}),
    "StableSPAM": (stable_spam, dict.fromkeys(("m_norm_t", "v_norm_t", "m_max_t"), no_dimensions)),
    "Amos": (amos, {"exp_avg_sq": no_dimensions, "decay": no_dimensions}),
    "Ano": (ano, {}),
    "EXAdam": (exadam, {}),
    "FAdam": (fadam, {}),
    "FTRL": (ftrl, {}),
    "Fromage": (fromage, {"max": bound_of_norm}),
    "GrokFastAdamW": (grokfast_adamw, {}),
    "Kate": (kate, {}),
    "PAdam": (padam, {}),
    "PID": (pid, {}),
    "PNM": (pnm, {}),
    "QHM": (qhm, {}),
    "SimplifiedAdEMAMix": (simplified_ademamix, {}),
    "SophiaH": (sophiah, {}),
    "AccSGD": (accsgd, {"momentum_buffer": of_param}),
    "MSVAG": (msvag, {}),
    "FOCUS": (focus, {"pbar": of_param}),
    "BCOS": (bcos, {}),
    "VSGD": (vsgd, {}),
    "DualAdam": (dual_adam, {}),
    "AdaSmooth": (adasmooth, {"prev_param": of_param}),
    "A2Grad": (a2grad, {"x_k": of_param}),
    "TAM": (tam, {"s": single}),
    "ApolloDQN": (apollo_dqn, {}),
    "SGDSaI": (sgd_sai, {"gsnr": single}),
    "Aida": (aida, {}),
    "Rose": (rose, {}),
    "AdaShift": (adashift, {"exp_avg_sq": single}),
    "Nero": (nero, {"exp_avg_sq": per_neuron, "scale": single}),
    "Gravity": (gravity, {}),
    "Yogi": (yogi, {"exp_avg": "initial_accumulator", "exp_avg_sq": "initial_accumulator"}),
}
NUMBERS = (
    "step",
    "steps",
    "layer",
    "beta1_weight",
    "beta2_weight",
    "exp_avg_lr_1",
    "exp_avg_lr_2",
    "den_sum",
)  # the states that are 0-dim


class Quantities:
    """What an update reads: the parameter, its gradient, the numbers and flags of a group, and the states, zero at first."""

    def __init__(self, param: Any, grad: Any, group: Mapping[str, Any], state: dict[str, Any], initial: Any) -> None:
        self.param, self.grad, self.group, self.state, self.initial = param, grad, group, state, initial
        self.first, self.dims = torch.tensor(float(not state), dtype=torch.float64), param.ndim
        self.place = next(place for place, each in enumerate(group["params"]) if each is param)

    def __getattr__(self, name: str) -> Any:
        if name == "base_lr":  # a group's first lr, where nobody changed it
            return as_number(self.group["lr"])
        if name in self.group:
            return as_number(self.group[name])
        if name[-1].isdigit() and isinstance(self.group.get(name[:-1]), (tuple, list)):
            return as_number(self.group[name[:-1]][int(name[-1])])
        if name not in self.state:
            start = float(self.place) if name == "layer" else self.initial.get(name, 0.0)
            start = self.group[start] if isinstance(start, str) else start
            self.state[name] = (
                start(self.param).to(self.param.dtype)
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
    habits = ("params", "foreach", "fused", "compiled", "capturable", "differentiable", "extras", "grokking_signal_fns")
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
