"""Sums over all parameters, and states that parameters share: against the authors' algorithms in float64."""

import copy
import io
import math
import warnings

import pytest
import torch
from catalog import EXECUTORS, MENU, WHOLE_MODEL, with_slow
from contract import CONTRACTS, Subject
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import (
    AdaGC,
    Adai,
    AdamS,
    AliG,
    AvaGrad,
    DAdaptAdaGrad,
    DAdaptAdam,
    DAdaptAdan,
    DAdaptLion,
    DAdaptSGD,
    DoG,
    Prodigy,
    schedules,
    total,
)
from compiledopt.rules.trace import TraceError
from compiledopt.rules.traced import Traced

STEPS = 50


class Plain(torch.optim.Optimizer):
    """Written out over all groups at once, in the order of the authors' code."""

    def __init__(self, params, **options):
        super().__init__(params, {**self.options, **options})
        self.k = 0

    @torch.no_grad()
    def step(self, closure=None):
        listed = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.k == 0:
            self.start = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}
        self.update(listed)
        self.k += 1


class PlainProdigy(Plain):
    options = {"lr": 1.0, "betas": (0.9, 0.999), "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "decouple": True}
    options |= {"d0": 1e-6, "d_coef": 1.0, "growth_rate": math.inf, "safeguard_warmup": False, "use_bias_correction": False}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d = self.d_max = lead["d0"]
            self.numerator = 0.0
        (beta1, beta2), d, d0, lr = lead["betas"], self.d, lead["d0"], max(g["lr"] for g in self.param_groups)
        beta3 = math.sqrt(beta2) if lead["beta3"] is None else lead["beta3"]
        correction = 1.0
        if lead["use_bias_correction"]:
            correction = math.sqrt(1 - beta2 ** (self.k + 1)) / (1 - beta1 ** (self.k + 1))
        dlr = d * lr * correction
        self.numerator *= beta3
        length = 0.0
        grads = {}
        for group, p in listed:
            grads[p] = grad = p.grad.clone() if group["decouple"] else p.grad + group["weight_decay"] * p
            state = self.state[p]
            for name in ("s", "exp_avg", "exp_avg_sq"):
                state.setdefault(name, torch.zeros_like(p))
            if group["lr"] > 0:
                self.numerator += (d / d0) * dlr * float((grad * (self.start[p] - p)).sum())
                state["exp_avg"].mul_(beta1).add_(grad, alpha=d * (1 - beta1))
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=d * d * (1 - beta2))
                state["s"].mul_(beta3).add_(grad, alpha=(d / d0) * (d if group["safeguard_warmup"] else dlr))
                length += float(state["s"].abs().sum())
        guess = lead["d_coef"] * self.numerator / length
        if d == d0:
            d = max(d, guess)
        self.d_max = max(self.d_max, guess)
        self.d = d = min(self.d_max, d * lead["growth_rate"])
        for group, p in listed:
            state, rate = self.state[p], dlr if group["lr"] > 0 else 0.0
            if group["decouple"]:
                p.mul_(1 - rate * group["weight_decay"])
            p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt() + d * group["eps"], value=-rate)


class PlainDAdaptAdam(Plain):
    options = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decouple": False}
    options |= {"d0": 1e-6, "growth_rate": math.inf}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d, self.weighted = lead["d0"], 0.0
        (beta1, beta2), dlr = lead["betas"], self.d * lead["lr"]
        squares = sks = length = 0.0
        for group, p in listed:
            grad = p.grad if group["decouple"] else p.grad + group["weight_decay"] * p
            state = self.state[p]
            for name in ("s", "exp_avg", "exp_avg_sq"):
                state.setdefault(name, torch.zeros_like(p))
            state["exp_avg"].mul_(beta1).add_(grad, alpha=dlr * (1 - beta1))
            state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            denominator = state["exp_avg_sq"].sqrt() + group["eps"]
            squares += float((grad * grad / denominator).sum())
            state["s"].mul_(beta2).add_(grad, alpha=dlr * (1 - beta2))
            sks += float((state["s"] ** 2 / denominator).sum())
            length += float(state["s"].abs().sum())
        self.weighted = beta2 * self.weighted + squares * dlr**2 * (1 - beta2)
        guess = (sks / (1 - beta2) - self.weighted) / length
        self.d = max(self.d, min(guess, self.d * lead["growth_rate"]))
        for group, p in listed:
            if group["decouple"]:
                p.mul_(1 - dlr * group["weight_decay"])
            p.sub_(self.state[p]["exp_avg"] / (self.state[p]["exp_avg_sq"].sqrt() + group["eps"]))


class PlainDAdaptAdaGrad(Plain):
    options = {"lr": 1.0, "momentum": 0.0, "eps": 1e-6, "weight_decay": 0.0, "d0": 1e-6, "growth_rate": math.inf}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d, self.squares, self.weighted, self.length = lead["d0"], 0.0, 0.0, 0.0
        dlr = self.d * lead["lr"]
        for group, p in listed:
            grad, state = p.grad + group["weight_decay"] * p, self.state[p]
            state.setdefault("s", torch.zeros_like(p))
            state.setdefault("a", torch.full_like(p, 1e-6))
            self.weighted -= float((state["s"] ** 2 / (state["a"].sqrt() + group["eps"])).sum())
            self.length -= float(state["s"].abs().sum())
            state["a"] += grad**2
            state["s"] += dlr * grad
            denominator = state["a"].sqrt() + group["eps"]
            self.weighted += float((state["s"] ** 2 / denominator).sum())
            self.length += float(state["s"].abs().sum())
            self.squares += dlr**2 * float((grad**2 / denominator).sum())
        self.d = max(self.d, min((self.weighted - self.squares) / self.length, self.d * lead["growth_rate"]))
        for group, p in listed:
            state = self.state[p]
            p.lerp_(self.start[p] - state["s"] / (state["a"].sqrt() + group["eps"]), 1 - group["momentum"])


class PlainDAdaptSGD(Plain):
    options = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "d0": 1e-6, "growth_rate": math.inf}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d, self.numerator = lead["d0"], 0.0
            self.g0 = math.sqrt(sum(float(p.grad.square().sum()) for group, p in listed if group["lr"] > 0))
        squares = 0.0
        for group, p in listed:
            grad, state, dlr = p.grad + group["weight_decay"] * p, self.state[p], self.d * group["lr"] / self.g0
            state.setdefault("s", torch.zeros_like(p))
            self.numerator += dlr * float((grad * state["s"]).sum())
            state["s"] += dlr * grad
            squares += float(state["s"].square().sum())
        self.d = max(self.d, min(2 * self.numerator / math.sqrt(squares), self.d * lead["growth_rate"]))
        for group, p in listed:
            p.lerp_(self.start[p] - self.state[p]["s"], 1 - group["momentum"])


class PlainDAdaptLion(Plain):
    options = {"lr": 1.0, "betas": (0.9, 0.99), "weight_decay": 0.0, "d0": 1e-6}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d, self.numerator = lead["d0"], 0.0
        (beta1, beta2), root = lead["betas"], math.sqrt(lead["betas"][1])
        change = length = 0.0
        for group, p in listed:
            state, dlr = self.state[p], self.d * group["lr"]
            for name in ("m", "s"):
                state.setdefault(name, torch.zeros_like(p))
            p.mul_(1 - dlr * group["weight_decay"])
            u = (beta1 * state["m"] + (1 - beta1) * p.grad).sign()
            p.sub_(dlr * u)
            state["m"].mul_(beta2).add_(p.grad, alpha=(1 - beta2) * dlr)
            change += dlr * float((u * state["s"]).sum())
            state["s"].mul_(root).add_(u, alpha=(1 - root) * dlr)
            length += float(state["s"].abs().sum())
        self.numerator = root * self.numerator + (1 - root) * change
        self.d = max(self.d, self.numerator / ((1 - root) * length))


class PlainDAdaptAdan(Plain):
    options = {"lr": 1.0, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.02, "no_prox": False}
    options |= {"d0": 1e-6, "growth_rate": math.inf}

    def update(self, listed):
        lead = self.param_groups[0]
        if self.k == 0:
            self.d, self.weighted = lead["d0"], 0.0
        (beta1, beta2, beta3), dlr = lead["betas"], self.d * lead["lr"]
        squares = sks = length = 0.0
        for group, p in listed:
            state = self.state[p]
            for name in ("m", "n", "v", "s"):
                state.setdefault(name, torch.zeros_like(p))
            change = p.grad - state.get("last", p.grad)
            state["m"].mul_(beta1).add_(p.grad, alpha=dlr * (1 - beta1))
            state["n"].mul_(beta2).add_(change, alpha=dlr * (1 - beta2))
            state["v"].mul_(beta3).add_((p.grad + beta2 * change) ** 2, alpha=1 - beta3)
            state["s"].mul_(beta3).add_(p.grad, alpha=dlr * (1 - beta3))
            state["last"], denominator = p.grad.clone(), state["v"].sqrt() + group["eps"]
            squares += float((p.grad**2 / denominator).sum())
            sks += float((state["s"] ** 2 / denominator).sum())
            length += float(state["s"].abs().sum())
        self.weighted = beta3 * self.weighted + squares * dlr**2 * (1 - beta3)
        self.d = max(self.d, min((sks / (1 - beta3) - self.weighted) / length, self.d * lead["growth_rate"]))
        for group, p in listed:
            state, decay = self.state[p], dlr * group["weight_decay"]
            u = (state["m"] + beta2 * state["n"]) / (state["v"].sqrt() + group["eps"])
            p.copy_((1 - decay) * p - u if group["no_prox"] else (p - u) / (1 + decay))


class PlainDoG(Plain):
    options = {"reps_rel": 1e-6, "lr": 1.0, "weight_decay": 0.0, "eps": 1e-8, "init_eta": None}

    def update(self, listed):
        for group in self.param_groups:
            mine = [p for other, p in listed if other is group]
            grads = [p.grad + group["weight_decay"] * p for p in mine]
            moved = math.sqrt(sum(float((p - self.start[p]).square().sum()) for p in mine))
            if self.k == 0:
                length = math.sqrt(sum(float(p.square().sum()) for p in mine))
                group["r"] = 0.0 if group["init_eta"] is not None else group["reps_rel"] * (1 + length)
                group["squares"] = group["eps"]
            else:
                group["r"] = max(group["r"], moved)
            group["squares"] += sum(float(grad.square().sum()) for grad in grads)
            eta = group["lr"] * group["r"] / math.sqrt(group["squares"])
            eta = group["init_eta"] if self.k == 0 and group["init_eta"] is not None else eta
            for p, grad in zip(mine, grads, strict=True):
                p.sub_(eta * grad)


class PlainAdaGC(Plain):
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "beta": 0.98, "lambda_abs": 1.0, "lambda_rel": 1.05, "warmup_steps": 100}
    options |= {"weight_decay": 0.1, "eps": 1e-8}

    def update(self, listed):
        length = math.sqrt(sum(float(p.grad.square().sum()) for _, p in listed))
        for group, p in listed:
            (beta1, beta2), state, own = group["betas"], self.state[p], float(p.grad.norm())
            for name in ("m", "v"):
                state.setdefault(name, torch.zeros_like(p))
            state["t"] = t = state.get("t", 0) + 1
            if t < group["warmup_steps"] or "gamma" not in state:
                share = min(1.0, group["lambda_abs"] / length)
                state["gamma"] = min(state.get("gamma", math.inf), share * own)
            else:
                share = min(1.0, group["lambda_rel"] * state["gamma"] / max(own, group["eps"]))
                state["gamma"] = group["beta"] * state["gamma"] + (1 - group["beta"]) * share * own
            g = share * p.grad
            state["m"].mul_(beta1).add_(g, alpha=1 - beta1)
            state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * (state["m"] / (1 - beta1**t)) / ((state["v"] / (1 - beta2**t)).sqrt() + group["eps"]))


class PlainAvaGrad(Plain):
    """AvaGrad and AvaGradW."""

    options = {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 0.1, "decoupled": False}

    def update(self, listed):
        for group in self.param_groups:
            (beta1, beta2), lr, eps, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
            squares, count = 0.0, 0
            for p in (p for other, p in listed if other is group):
                state, grad = self.state[p], p.grad if group["decoupled"] else p.grad + decay * p
                state["t"] = t = state.get("t", 0) + 1
                for name in ("m", "v"):
                    state.setdefault(name, torch.zeros_like(p))
                state["m"].mul_(beta1).add_(grad, alpha=1 - beta1)
                root = state["v"].sqrt()
                if t > 1:
                    if group["decoupled"]:
                        p.mul_(1 - lr * decay)
                    denominator = root / math.sqrt(1 - beta2 ** (t - 1)) + eps
                    p.addcdiv_(state["m"], denominator, value=-group["scale"] * lr / (1 - beta1**t))
                state["v"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                squares += float((root / math.sqrt(1 - beta2**t) + eps).pow(-2).sum())
                count += p.numel()
            group["scale"] = 1 / math.sqrt(squares / count)


class PlainAliG(Plain):
    options = {"lr": 0.1, "momentum": 0.0, "eps": 1e-5, "adjusted_momentum": False, "loss": 1.0}

    def update(self, listed):
        square = sum(float(p.grad.square().sum()) for _, p in listed)
        for group, p in listed:
            size, momentum = min(group["loss"] / (square + group["eps"]), group["lr"]), group["momentum"]
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            p.sub_(p.grad, alpha=size)
            m.mul_(momentum).sub_(p.grad, alpha=1.0 if group["adjusted_momentum"] else size)
            p.add_(m, alpha=momentum * (size if group["adjusted_momentum"] else 1.0))


class PlainAdamS(Plain):
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4, "amsgrad": False}

    def update(self, listed):
        squares = {}
        for group, p in listed:
            (beta1, beta2), state = group["betas"], self.state[p]
            state["t"] = state.get("t", 0) + 1
            for name in ("m", "v", "largest"):
                state.setdefault(name, torch.zeros_like(p))
            state["m"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
            state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            state["largest"] = torch.maximum(state["largest"], state["v"])
            squares[p] = state["largest" if group["amsgrad"] else "v"] / (1 - beta2 ** state["t"])
        mean = math.sqrt(sum(float(one.sum()) for one in squares.values()) / sum(one.numel() for one in squares.values()))
        for group, p in listed:
            p.mul_(1 - group["weight_decay"] * group["lr"] / mean)
            step = group["lr"] / (1 - group["betas"][0] ** self.state[p]["t"])
            p.addcdiv_(self.state[p]["m"], squares[p].sqrt() + group["eps"], value=-step)


class PlainAdai(Plain):
    options = {"lr": 1e-3, "betas": (0.1, 0.99), "eps": 1e-3, "weight_decay": 0.0, "decoupled": False}

    def update(self, listed):
        squares, grads = {}, {}
        for group, p in listed:
            state, beta2 = self.state[p], group["betas"][1]
            for name, start in (("m", 0.0), ("v", 0.0), ("product", 1.0)):
                state.setdefault(name, torch.full_like(p, start))
            state["t"] = state.get("t", 0) + 1
            grads[p] = p.grad if group["decoupled"] else p.grad + group["weight_decay"] * p
            if group["decoupled"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            state["v"].mul_(beta2).addcmul_(grads[p], grads[p], value=1 - beta2)
            squares[p] = state["v"] / (1 - beta2 ** state["t"])
        mean = sum(float(one.sum()) for one in squares.values()) / sum(one.numel() for one in squares.values())
        for group, p in listed:
            state = self.state[p]
            inertia = (1 - group["betas"][0] * squares[p] / mean).clamp(0, 1 - group["eps"])
            state["product"] *= inertia
            state["m"] = inertia * state["m"] + (1 - inertia) * grads[p]
            p.sub_(group["lr"] * state["m"] / (1 - state["product"]))


CASES = {
    "AdaGC": (AdaGC, PlainAdaGC, {"lr": 0.02, "warmup_steps": 5, "lambda_abs": 3.0, "lambda_rel": 1.0, "beta": 0.9}),
    "AdamS-all": (AdamS, PlainAdamS, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.95)}),
    "AliG-all": (AliG, PlainAliG, {"loss": 90.0, "momentum": 0.8}),
    "AliG-adjusted": (AliG, PlainAliG, {"loss": 30.0, "momentum": 0.5, "adjusted_momentum": True}),
    "AvaGrad-all": (AvaGrad, PlainAvaGrad, {"lr": 0.2, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 0.05}),
    "AvaGrad-decoupled": (AvaGrad, PlainAvaGrad, {"lr": 0.2, "weight_decay": 0.1, "decoupled": True}),
    "Adai": (Adai, PlainAdai, {"lr": 0.05, "weight_decay": 0.1, "betas": (0.3, 0.9)}),
    "Adai-decoupled": (Adai, PlainAdai, {"lr": 0.05, "weight_decay": 0.1, "decoupled": True}),
    "Prodigy": (Prodigy, PlainProdigy, {"d0": 1e-3}),
    "Prodigy-all": (
        Prodigy,
        PlainProdigy,
        {
            "lr": 0.5,
            "d0": 1e-3,
            "weight_decay": 0.1,
            "use_bias_correction": True,
            "growth_rate": 1.3,
            "d_coef": 0.8,
            "beta3": 0.9,
        },
    ),
    "Prodigy-coupled": (
        Prodigy,
        PlainProdigy,
        {"d0": 1e-3, "weight_decay": 0.1, "decouple": False, "safeguard_warmup": True},
    ),
    "DAdaptAdam": (DAdaptAdam, PlainDAdaptAdam, {"d0": 1e-3}),
    "DAdaptAdam-all": (DAdaptAdam, PlainDAdaptAdam, {"d0": 1e-3, "weight_decay": 0.1, "decouple": True, "growth_rate": 1.2}),
    "DAdaptAdaGrad": (DAdaptAdaGrad, PlainDAdaptAdaGrad, {"d0": 1e-2}),
    "DAdaptAdaGrad-all": (
        DAdaptAdaGrad,
        PlainDAdaptAdaGrad,
        {"lr": 1.5, "d0": 1e-2, "momentum": 0.5, "weight_decay": 0.1, "growth_rate": 1.2},
    ),
    "DAdaptSGD": (DAdaptSGD, PlainDAdaptSGD, {"d0": 1e-2}),
    "DAdaptSGD-all": (
        DAdaptSGD,
        PlainDAdaptSGD,
        {"lr": 1.5, "d0": 1e-2, "momentum": 0.5, "weight_decay": 0.1, "growth_rate": 1.2},
    ),
    "DAdaptLion": (DAdaptLion, PlainDAdaptLion, {"d0": 1e-3}),
    "DAdaptLion-all": (DAdaptLion, PlainDAdaptLion, {"lr": 1.5, "d0": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "DAdaptAdan": (DAdaptAdan, PlainDAdaptAdan, {"d0": 1e-3}),
    "DAdaptAdan-all": (
        DAdaptAdan,
        PlainDAdaptAdan,
        {"lr": 1.5, "d0": 1e-3, "weight_decay": 0.1, "no_prox": True, "growth_rate": 1.2, "betas": (0.9, 0.8, 0.95)},
    ),
    "DoG": (DoG, PlainDoG, {"reps_rel": 1e-2}),
    "DoG-all": (DoG, PlainDoG, {"lr": 0.7, "weight_decay": 0.1, "init_eta": 1e-3}),
}


FROZEN = ("Prodigy-all", "DAdaptSGD-all", "DAdaptLion-all")  # whose second group has lr 0, and counts for nothing


def in_groups(params, **second):
    return [{"params": params[:2]}, {"params": params[2:], **second}]


def descend(optimizer, params, steps, start=0):
    """Steps along gradients of a quadratic with some noise, so that distances grow along them; one is absent now and then."""
    for step in range(start, start + steps):
        noise = Gradients(torch.float64)
        noise.set(params, step)
        for index, param in enumerate(params):
            with torch.no_grad():
                param.grad = None if (step + index) % 7 == 5 else (param - 3) + 0.1 * param.grad
        optimizer.step()


def quick(name, executor):
    """Of those that are brief the richest, without a kernel."""
    ours, _, rich = name.partition("-")
    return bool(rich) and executor == "for-loop" if WHOLE_MODEL[ours].brief else not rich


@pytest.mark.parametrize(("name", "executor"), with_slow([(name, one) for name in CASES for one in EXECUTORS], quick))
def test_against_the_authors(name, executor):
    ours, plain, options = CASES[name]
    start, mine, theirs = parameters(torch.float64), parameters(torch.float64), parameters(torch.float64)
    second = {"lr": 0.0} if name in FROZEN else {}
    optimizer, reference = (
        ours(in_groups(mine, **second), **options, **EXECUTORS[executor]),
        plain(in_groups(theirs, **second), **options),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend(optimizer, mine, STEPS)
    descend(reference, theirs, STEPS)
    assert optimizer.executor == executor
    effect = rms(flat(theirs) - flat(start))
    assert effect > 0.01 and rms(flat(mine) - flat(theirs)) <= 1e-8 * effect
    if hasattr(reference, "d"):
        found = [group["d"].item() for group in optimizer.param_groups]
        assert found == [found[0]] * 2 and found[0] > 2 * options["d0"] and found[0] == pytest.approx(reference.d, rel=1e-9)
    elif ours is DoG:
        for group, other in zip(optimizer.param_groups, reference.param_groups, strict=True):
            assert group["rbar"].item() == pytest.approx(other["r"], rel=1e-9) and group["k"] == STEPS


SUMMING = list({one.sums: name for name, one in WHOLE_MODEL.items() if one.sums}.values())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (SUMMING[0], torch.float32),
        *[
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in SUMMING
            for dtype in (torch.float32, torch.bfloat16, torch.complex64)
        ],
    ],
)
def test_dtypes(name, dtype):
    """Executors agree to the rounding of a dtype, and compiled is the same for any number of threads."""
    ours, _, options = CASES[name]
    results, threads = {}, torch.get_num_threads()
    try:
        for executor, count in (("compiled", 1), ("compiled", 2), ("for-loop", 1)):
            torch.set_num_threads(count)
            params = parameters(dtype, [(700, 600), (3,), (0,)])
            optimizer = ours(in_groups(params), **options, **EXECUTORS[executor])
            run(optimizer, params, Gradients(dtype), range(8))
            results[executor, count] = flat(params)
    finally:
        torch.set_num_threads(threads)
    assert same(results["compiled", 1], results["compiled", 2])
    effect = rms(results["compiled", 1] - flat(parameters(dtype, [(700, 600), (3,), (0,)])))
    bound = 1e-2 if dtype is torch.bfloat16 else 1e-4
    assert effect > 1e-5 and rms(results["compiled", 1] - results["for-loop", 1]) <= bound * effect


@pytest.mark.parametrize("executor", EXECUTORS)
def test_state_dict_copies_and_pickles_go_on(executor):
    ours, _, options = CASES["Prodigy"]
    params = parameters(torch.float64)
    optimizer = ours(in_groups(params), **options, **EXECUTORS[executor])
    descend(optimizer, params, 10)
    buffer = io.BytesIO()
    saved = optimizer.state_dict()
    torch.save(saved, buffer)
    buffer.seek(0)
    others, copied = copies(params), copy.deepcopy(optimizer)
    other = ours(in_groups(others), **options, **EXECUTORS[executor])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["d"] is other.param_groups[1]["d"]
    held = [p for group in copied.param_groups for p in group["params"]]
    for one, theirs in ((optimizer, params), (other, others), (copied, held)):
        descend(one, theirs, 5, start=10)
    assert saved["param_groups"][0]["k"] == 10 and optimizer.param_groups[0]["k"] == 15, "a snapshot"
    assert same(snapshot(optimizer), snapshot(other)) and same(snapshot(optimizer), snapshot(copied))
    assert optimizer.param_groups[1]["d_max"] == other.param_groups[1]["d_max"] == copied.param_groups[1]["d_max"]


@compiledopt.define(shared=("sums",))
def Levels(param, grad, sums, *, lr=0.1):
    """A total that is computed from another."""
    mean = total(grad) / 10
    spread = total((grad - mean) * (grad - mean))
    return param - lr * grad / spread, sums + spread


@pytest.mark.parametrize("executor", EXECUTORS)
def test_totals_of_totals_and_numbers_that_change(executor):
    params = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (7, 3)]
    optimizer = Levels(params, lr=0.5, **EXECUTORS[executor])
    values = torch.arange(10, dtype=torch.float64)
    spread = float((values - values.mean()).square().sum())
    for step in range(3):
        params[0].grad, params[1].grad = values[:7].clone(), values[7:].clone()
        optimizer.step()
        assert optimizer.param_groups[0]["sums"].item() == pytest.approx((step + 1) * spread, rel=1e-12)
    torch.testing.assert_close(flat(params), -3 * 0.5 * values / spread, rtol=1e-12, atol=0)
    optimizer.param_groups[0]["sums"] = 5.0
    optimizer.step()
    assert optimizer.param_groups[0]["sums"].item() == pytest.approx(5 + spread, rel=1e-12)
    optimizer.zero_grad()
    before = snapshot(optimizer)
    optimizer.step()
    assert same(before, snapshot(optimizer)) and optimizer.param_groups[0]["sums"].item() == pytest.approx(5 + spread)
    assert "total(" in optimizer.explain()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_total_is_over_parameters_of_all_dtypes(executor):
    """They are no part of one launch."""
    params = [torch.nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (torch.float64, torch.float32)]
    optimizer = Levels(params, lr=0.5, **EXECUTORS[executor])
    values = torch.arange(10.0)[:6]
    params[0].grad, params[1].grad = values[:3].double(), values[3:].clone()
    optimizer.step()
    spread = float((values - values.sum() / 10).square().sum())
    assert optimizer.param_groups[0]["sums"].item() == pytest.approx(spread, rel=1e-6)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_clip_average_schedule_and_scaler_around_it(executor):
    """Clipping comes before the sums, and a scaled loss does not change them."""
    plain, mine = parameters(torch.float64), parameters(torch.float64)
    around = {"d0": 1e-3, "ema_decay": 0.9, **EXECUTORS[executor]}
    lr = schedules.linear(0.5, 1.0, 5)
    reference = PlainProdigy(in_groups(plain), lr=1.0, d0=1e-3)
    optimizer = Prodigy(in_groups(mine), lr=lr, max_grad_norm=2.0, **around)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for step in range(12):
        Gradients(torch.float64).set(plain, step)
        Gradients(torch.float64).set(mine, step)
        torch.nn.utils.clip_grad_norm_(plain, 2.0)
        for group in reference.param_groups:
            group["lr"] = lr(step)
        reference.step()
        for param in mine:
            param.grad = scaler.scale(param.grad)
        scaler.step(optimizer)
        scaler.update()
    effect = rms(flat(plain) - flat(parameters(torch.float64)))
    assert effect > 1e-3 and rms(flat(mine) - flat(plain)) <= 1e-8 * effect
    assert optimizer.param_groups[0]["step"] == 12 and optimizer.param_groups[0]["lr"] == lr(12)


def test_a_group_that_is_added_shares_what_is_the_models():
    params = parameters(torch.float64)
    optimizer = Prodigy(params[:2], d0=1e-3)
    descend(optimizer, params[:2], 10)
    optimizer.add_param_group({"params": params[2:]})
    assert optimizer.param_groups[1]["d"] is optimizer.param_groups[0]["d"] and optimizer.param_groups[0]["d"] > 2e-3
    optimizer.param_groups[1]["d"] = 0.5
    descend(optimizer, params, 2, start=10)
    assert [group["d"].item() for group in optimizer.param_groups] == [optimizer.param_groups[0]["d_max"].item()] * 2


@pytest.mark.parametrize("name", [name for name, of in MENU.items() if "d0" in of.promised])
def test_one_distance_has_one_rate(name):
    params = parameters()
    optimizer = getattr(compiledopt, name)([{"params": params[:1]}, {"params": params[1:2], "lr": 0.0}], lr=1.0)
    with pytest.raises(ValueError, match=r"different lr values .* got 0.3 beside 1.0"):
        optimizer.add_param_group({"params": params[2:], "lr": 0.3})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_parameter_listed_twice(executor):
    """It counts once in the sums, and is updated twice."""
    param = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = Levels([param, param], **EXECUTORS[executor])
    values = torch.arange(10, dtype=torch.float64)
    param.grad = values.clone()
    optimizer.step()
    torch.testing.assert_close(param.detach(), -2 * 0.1 * values / float((values - 4.5).square().sum()), rtol=1e-12, atol=0)


# What these do not promise: D-Adapt, Prodigy and DoG find their rate, and have gone next to nowhere after 20 steps; RAdam's
# first steps move nothing where it does not rectify; and torch has none of them to compare states with.
FINDS_ITS_RATE = {
    name: ("descends", "descends_under_schedulers") for name, one in WHOLE_MODEL.items() if one.sums and one.rule.shared
}
BEGINS_LATE = ("groups_have_options_of_their_own", "groups_can_be_added", "empty_parameters_are_no_hindrance")
NOT_PROMISED = {**FINDS_ITS_RATE, "RAdamScheduleFree": BEGINS_LATE}
PROMISES = [
    (promise, name)
    for promise in CONTRACTS
    for name in WHOLE_MODEL
    if promise.__name__ not in ("states_have_the_form_of_torchs", *NOT_PROMISED.get(name, ()))
]


@pytest.mark.slow
@pytest.mark.parametrize(("promise", "name"), PROMISES, ids=lambda one: getattr(one, "__name__", one))
def test_promises(promise, name):
    promise(Subject(WHOLE_MODEL[name], ours=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_closure_tells_the_loss(executor):
    """It is read at the step that it was returned to, hooks run once, and without one there is an error."""
    params, plain = parameters(shapes=[(4, 3), (5,)]), parameters(shapes=[(4, 3), (5,)])
    optimizer, reference = AliG(params, momentum=0.5, **EXECUTORS[executor]), PlainAliG(plain, momentum=0.5)
    with pytest.raises(RuntimeError, match="needs the loss: step"):
        optimizer.step()
    seen = []
    optimizer.register_step_post_hook(lambda one, given, by_name: seen.append(one.param_groups[0]["loss"]))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = sum((param - 3).square().sum() for param in params)
        loss.backward()
        return loss

    for step in range(6):
        loss = optimizer.step(closure)
        for param in plain:
            param.grad = 2 * (param.detach() - 3)
        reference.param_groups[0]["loss"] = loss.item()
        reference.step()
        assert seen == [*seen[:step], loss.item()]
    effect = rms(flat(plain) - flat(parameters(shapes=[(4, 3), (5,)])))
    assert effect > 0.1 and rms(flat(params) - flat(plain)) <= 1e-5 * effect and optimizer.executor == executor


def test_what_is_refused():
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)

    def refused(error, match, rule, **options):
        before = param.detach().clone()
        with pytest.raises(error, match=match):
            compiledopt.define(**options.pop("define", {}))(rule)([param], **options).step()
        assert same(before, param.detach())

    def counts(param, grad, step, n, *, lr=0.1):
        return param - lr * grad, step + 1, n + step

    def called(param, grad, *, lr=0.1):
        return param - lr * total(grad) * torch.linalg.matrix_norm(grad.diag())

    refused(TraceError, r"shared state n from 'step'", counts, define={"scalars": ("step",), "shared": ("n",)})
    refused(TraceError, "pointwise operations", called, define={"elementwise": False})
    refused(RuntimeError, "differentiable", lambda param, grad, *, lr=0.1: param - lr * total(grad) * grad, differentiable=True)
    with pytest.raises(TraceError, match="for rules"):
        total(torch.ones(3))
    with pytest.raises(ValueError, match='"model" or "group"'):
        total(torch.ones(3), over="layer")
    with pytest.raises(TypeError, match='"model"\'s or the'):
        compiledopt.define(shared={"n": "layer"})(lambda param, grad, n: (param, n))
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        Prodigy([param]).step()


def test_inside_a_graph_of_torch_compile():
    params, plain = parameters(torch.float64, [(4, 3), (5,)]), parameters(torch.float64, [(4, 3), (5,)])
    optimizer, reference = Prodigy(params, d0=1e-2), Prodigy(plain, d0=1e-2, compiled=False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step():
        optimizer.step()

    for number in range(4):
        Gradients(torch.float64).set(params, number)
        Gradients(torch.float64).set(plain, number)
        step()
        reference.step()
    assert rms(flat(params) - flat(plain)) <= 1e-10 and optimizer.param_groups[0]["k"] == 4


# ---- beside a reduction over the parameter itself ----


@compiledopt.define(scalars=("step",))
def Beside(param, grad, step, *, lr=0.1, decay=0.5):
    """A norm of its own, one over all and one over its group, a total of a total, and one that is asked for twice."""
    step = step + 1
    of_all, mean = total(grad * grad).sqrt(), total(grad) / total(torch.ones_like(grad))
    spread = total((grad - mean) * (grad - mean))
    of_group = total(abs(grad) * decay**step, over="group") + total(grad * grad).sqrt()
    return param - lr * (grad - mean) * grad.norm() / (of_all + of_group + spread / (1 + param.amax())), step


class PlainBeside(Plain):
    options = {"lr": 0.1, "decay": 0.5}

    def update(self, listed):
        every = torch.cat([p.grad.flatten() for _, p in listed])
        of_all, mean, spread = every.norm(), every.mean(), (every - every.mean()).square().sum()
        for _, p in listed:
            self.state[p]["t"] = self.state[p].get("t", 0) + 1
        sums = {}
        for group, p in listed:
            own = float(p.grad.abs().sum()) * group["decay"] ** self.state[p]["t"]
            sums[id(group)] = sums.get(id(group), 0.0) + own
        for group, p in listed:
            length = of_all + sums[id(group)] + of_all + spread / (1 + p.amax())
            p.sub_(group["lr"] * (p.grad - mean) * p.grad.norm() / length)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_beside_a_reduction(executor):
    """Two groups of parameters of all dimensions, some absent, some transposed, two with steps of their own."""

    def made():
        made = parameters(torch.float64, [(4, 3), (7,), (2, 3, 4), (), (4, 3), (5, 6)])
        return [*made[:-1], torch.nn.Parameter(made[-1].detach().t())]

    start, mine, theirs = made(), made(), made()
    optimizer = Beside(in_groups(mine, lr=0.3, decay=0.9), **EXECUTORS[executor])
    reference = PlainBeside(in_groups(theirs, lr=0.3, decay=0.9))
    descend(optimizer, mine, 12)
    descend(reference, theirs, 12)
    effect = rms(flat(theirs) - flat(start))
    assert optimizer.executor == executor and effect > 0.01
    assert rms(flat(mine) - flat(theirs)) <= 1e-10 * effect


@pytest.mark.parametrize("executor", EXECUTORS)
def test_beside_a_reduction_all_that_goes_around_it(executor):
    """A clip, a schedule, a copy, a checkpoint, in half precision and in codes."""
    for options in (
        {"max_grad_norm": 1.0, "lr": 0.1 * schedules.linear(0.5, 1.0, 5)},
        {"state_dtype": "int8"},
        {"cautious": True},
    ):
        params, plain = (parameters(torch.float32, [(64, 96), (5,)]) for _ in range(2))
        optimizer = AdaGC(in_groups(params[:2]), warmup_steps=3, **{"lr": 0.01, **options}, **EXECUTORS[executor])
        other = AdaGC(in_groups(plain[:2]), warmup_steps=3, **{"lr": 0.01, **options}, **EXECUTORS["compiled"])
        run(optimizer, params, Gradients(), range(4))
        copied = copy.deepcopy(optimizer)
        held = [p for group in copied.param_groups for p in group["params"]]
        loaded, twins = (
            AdaGC(in_groups(twin := copies(params)), warmup_steps=3, **{"lr": 0.01, **options}, **EXECUTORS[executor]),
            twin,
        )
        loaded.load_state_dict(optimizer.state_dict())
        for one, own in ((optimizer, params), (copied, held), (loaded, twins)):
            run(one, own, Gradients(), range(4, 8))
        run(other, plain, Gradients(), range(8))
        assert same(snapshot(optimizer), snapshot(copied)) and same(snapshot(optimizer), snapshot(loaded))
        effect = rms(flat(plain) - flat(parameters(torch.float32, [(64, 96), (5,)])))
        assert effect > 1e-3 and rms(flat(params) - flat(plain)) <= 0.01 * effect, options
        assert optimizer.state[params[0]]["gamma"].dtype == torch.float32


def test_a_total_of_what_is_reduced_is_refused():
    def odd(param, grad, *, lr=0.1):
        return param - lr * grad / total(grad * grad.norm())

    param = torch.nn.Parameter(torch.ones(3, 2))
    param.grad = torch.ones(3, 2)
    for executor in ({}, *EXECUTORS.values()):
        with pytest.raises(TraceError, match=r"total\(...\) of what follows from a sum over the parameter"):
            compiledopt.define(odd)([param], **executor).step()
        with pytest.raises(TraceError, match=r"from a mean over the parameter.*leave out gradient_centralization"):
            compiledopt.Adai([param], gradient_centralization=True, **executor).step()
    assert param.tolist() == [[1.0, 1.0]] * 3


def test_totals_of_other_dimensions_that_are_called_the_same():
    def odd(param, grad, *, lr=0.1):
        if param.ndim > 1:
            return param - lr * grad / total(grad * grad) * grad.norm()
        return param - lr * grad / total(abs(grad)) * grad.norm()

    params = parameters(shapes=[(3, 4), (5,)])
    Gradients().set(params, 0)
    with pytest.raises(RuntimeError, match="parameters of other dimensions"):
        compiledopt.define(odd)(params).step()


def test_a_later_step_asks_no_parameter_for_its_program(monkeypatch):
    """In Python, for each of them, that took most of a step of many small tensors."""
    optimizer = AdaGC(params := parameters(), compiled=True)
    run(optimizer, params, Gradients(), range(3))
    start = flat(params)

    def asked(*_):
        raise AssertionError("a parameter was asked for its program")

    monkeypatch.setattr(Traced, "variant", asked)
    optimizer.step()
    assert not torch.equal(flat(params), start)
