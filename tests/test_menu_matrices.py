"""SOAP, Shampoo, GaLore, APOLLO and Kron against their authors' loops, written out in float64; what they promise."""

import copy
import io
import math

import pytest
import torch
from catalog import MATRICES, with_slow
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt.rules.random import key, normal

WIDE = torch.float64
# Of all sides the products have full rank at once: eigenvectors of equal values are anybody's choice.
SHAPES = [(12, 12), (9,), (12, 12), (4, 3, 2, 2)]
MERGED = {(12, 12): (12, 12), (4, 3, 2, 2): (12, 4)}  # for dimensions of 12 at most
EXECUTORS = {"default": {}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def adam(state, g, betas, eps, t):
    """(m / (√v + ε), √(1 − β₂ᵗ) / (1 − β₁ᵗ))."""
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    return state["m"] / (state["v"].sqrt() + eps), math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)


def products(g, dim):
    others = [d for d in range(g.ndim) if d != dim]
    return torch.tensordot(g, g, dims=(others, others))


def times(g, matrices):
    """Σ over each dimension of x with the first of its matrix."""
    for matrix in matrices:
        g = g.movedim(0, -1) if matrix is None else torch.tensordot(g, matrix, dims=([0], [0]))
    return g


def transposed(matrices):
    return [None if each is None else each.T for each in matrices]


def soap(params, group, state, steps):
    """nikhilvyas/SOAP, with the momentum in the parameter's own basis."""
    for step in range(steps):
        yield step
        for p in params:
            whole, g, s = p, p.grad, state.setdefault(p, {})
            if group["merge_dims"] and p.ndim > 1:
                g = g.reshape(MERGED[p.shape])
                p = p.view(g.shape)
            sides = [d for d in range(p.ndim) if whole.ndim > 1 or group["precondition_1d"]]
            sides = [d for d in sides if p.shape[d] <= group["max_precond_dim"]]
            beta = group["shampoo_beta"] if group["shampoo_beta"] >= 0 else group["betas"][1]
            if not s:
                s.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                s["L"] = [(1 - beta) * products(g, d) if d in sides else None for d in range(p.ndim)]
                s["Q"] = [None if x is None else torch.linalg.eigh(x).eigenvectors.flip(1) for x in s["L"]]
                continue
            s["t"] += 1
            betas, t = group["betas"], s["t"]
            s["m"] = betas[0] * s["m"] + (1 - betas[0]) * g
            s["v"] = betas[1] * s["v"] + (1 - betas[1]) * times(g, s["Q"]) ** 2
            u = times(times(s["m"], s["Q"]) / (s["v"].sqrt() + group["eps"]), transposed(s["Q"]))
            if group["normalize_grads"]:
                u = u / (u**2).mean().sqrt()
            size = group["lr"] * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) if group["correct_bias"] else group["lr"]
            p.sub_(size * u).mul_(1 - group["lr"] * group["weight_decay"])
            for d in range(p.ndim):
                if s["L"][d] is None:
                    continue
                s["L"][d] = beta * s["L"][d] + (1 - beta) * products(g, d)
                if t % group["precondition_frequency"] == 0:
                    order = torch.diag(s["Q"][d].T @ s["L"][d] @ s["Q"][d]).argsort(descending=True)
                    s["v"] = s["v"].index_select(d, order)
                    s["Q"][d] = torch.linalg.qr(s["L"][d] @ s["Q"][d][:, order]).Q


def shampoo(params, group, state, steps):
    """Algorithm 2 of the paper; roots by singular values, which are ε at least where the matrices forget."""
    for step in range(steps):
        yield step
        for p in params:
            g, s = p.grad, state.setdefault(p, {})
            if group["weight_decouple"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            else:
                g = g + group["weight_decay"] * p
            sides = [d for d in range(p.ndim) if p.shape[d] <= group["max_preconditioner_dim"]]
            new = not s
            if new:
                s.update(H=[group["matrix_eps"] * torch.eye(n, dtype=WIDE) for n in p.shape], b=torch.zeros_like(p), root={})
            weight = 1 - group["beta2"] if group["beta2"] < 1 else 1.0
            for d in sides:
                s["H"][d] = group["beta2"] * s["H"][d] + weight * products(g, d)
            if new or step % group["preconditioning_compute_steps"] == 0:
                for d in sides:
                    u, values, vh = torch.linalg.svd(s["H"][d])
                    s["root"][d] = (u * values.clamp(min=group["matrix_eps"]) ** (-1 / (2 * len(sides)))) @ vh
            u = times(g, [s["root"].get(d) for d in range(p.ndim)]) if sides else g
            if group["grafting"]:
                u = u * g.norm() / u.norm()
            s["b"] = group["momentum"] * s["b"] + u
            p.sub_(group["lr"] * s["b"])


def galore(params, group, state, steps):
    """jiaweizzhao/GaLore: projector, AdamW, projector back."""
    for step in range(steps):
        yield step
        for p in params:
            g, s, r = p.grad, state.setdefault(p, {}), group["rank"]
            if p.ndim == 2 and (not s or step % group["update_proj_gap"] == 0):
                u, _, vh = torch.linalg.svd(g, full_matrices=False)
                s["left"], s["right"] = u[:, :r], vh[:r]
            tall, kind = p.ndim == 2 and p.shape[0] >= p.shape[1], group["proj_type"]
            kinds = ("right", "full", "std" if tall else "reverse_std"), ("left", "full", "reverse_std" if tall else "std")
            right, left = (p.ndim == 2 and kind in each for each in kinds)
            low = g @ s["right"].T if right else g
            low = s["left"].T @ low if left else low
            u, size = adam(s, low, group["betas"], group["eps"], step + 1)
            u = s["left"] @ u if left else u
            u = u @ s["right"] if right else u
            u = u * group["scale"] if p.ndim == 2 else u
            p.sub_(group["lr"] * (size if group["correct_bias"] else 1.0) * u).mul_(1 - group["lr"] * group["weight_decay"])


def projection(g, s, kind):
    """(what is multiplied by from the left, from the right, with 1 where nothing is; the dimensions that are projected)."""
    tall = g.shape[0] >= g.shape[1]
    right = kind in ("right", "full", "std" if tall else "reverse_std")
    left = kind in ("left", "full", "reverse_std" if tall else "std")
    a = s["left"] if left else torch.eye(len(g), dtype=WIDE)
    b = s["right"] if right else torch.eye(g.shape[1], dtype=WIDE)
    return a, b, (0, 1) if left and right else 1 if right else 0


def fira(params, group, state, steps):
    """xichen-fy/Fira: the projector's scale stands before what is taken from the gradient too."""
    for step in range(steps):
        yield step
        for p in params:
            g, s, r, alpha = p.grad, state.setdefault(p, {}), group["rank"], group["alpha"]
            decay = 1 - group["lr"] * group["weight_decay"]
            if p.ndim != 2:
                u, size = adam(s, g, group["betas"], group["eps"], step + 1)
                p.sub_(group["lr"] * (size if group["correct_bias"] else 1.0) * u).mul_(decay)
                continue
            if not s or step % group["update_proj_gap"] == 0:
                u, _, vh = torch.linalg.svd(g, full_matrices=False)
                s["left"], s["right"] = u[:, :r], vh[:r]
            tall, kind = p.shape[0] >= p.shape[1], group["proj_type"]
            right = kind in ("right", "full", "std" if tall else "reverse_std")
            left = kind in ("left", "full", "reverse_std" if tall else "std")
            a, b = (
                s["left"] if left else torch.eye(len(g), dtype=WIDE),
                s["right"] if right else torch.eye(g.shape[1], dtype=WIDE),
            )
            low = a.T @ g @ b.T
            u, size = adam(s, low, group["betas"], group["eps"], step + 1)
            dim = (0, 1) if left and right else 1 if right else 0
            rest = (g - alpha * a @ low @ b) * u.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
            if "norm" in s:
                rest = rest / (max(rest.norm() / (s["norm"] + 1e-8), 1.01) / 1.01)
            s["norm"] = rest.norm()
            p.sub_(group["lr"] * (size if group["correct_bias"] else 1.0) * (alpha * a @ u @ b + rest)).mul_(decay)


def galore_adafactor(params, group, state, steps):
    """galore_torch's Adafactor, with lr given."""
    for step in range(steps):
        yield step
        for p in params:
            g, s, r, t = p.grad, state.setdefault(p, {}), group["rank"], step + 1
            if p.ndim == 2 and (not s or step % group["update_proj_gap"] == 0):
                u, _, vh = torch.linalg.svd(g, full_matrices=False)
                s["left"], s["right"] = u[:, :r], vh[:r]
            a, b, _ = projection(g, s, group["proj_type"]) if p.ndim == 2 else (None, None, None)
            low = g if p.ndim != 2 else a.T @ g @ b.T
            size = group["lr"] * (max(group["eps"][1], p.norm().item() / p.numel() ** 0.5) if group["scale_parameter"] else 1.0)
            new, square = t ** group["decay_rate"], low**2 + group["eps"][0]
            if low.ndim < 2:
                s["v"] = (1 - new) * s.get("v", 0.0) + new * square
                u = low / s["v"].sqrt()
            else:
                s["r"] = (1 - new) * s.get("r", 0.0) + new * square.mean(-1)
                s["c"] = (1 - new) * s.get("c", 0.0) + new * square.mean(-2)
                rows = s["r"] / s["r"].mean(-1, keepdim=True)
                u = low / (rows.unsqueeze(-1) * s["c"].unsqueeze(-2)).sqrt()
            u = size * u / max(1.0, u.norm().item() / u.numel() ** 0.5 / group["clip_threshold"])
            if group["beta1"] is not None:
                u = s["m"] = group["beta1"] * s.get("m", 0.0) + (1 - group["beta1"]) * u
            u = u if p.ndim != 2 else group["scale"] * a @ u @ b
            p.sub_(u + group["weight_decay"] * size * p)


def conda(params, group, state, steps):
    """jie040109/Conda: the projector is the momentum's, and of full rank."""
    for step in range(steps):
        yield step
        for p in params:
            (beta1, beta2), g, s, t = group["betas"], p.grad, state.setdefault(p, {"m": 0.0, "v": 0.0}), step + 1
            s["m"] = beta1 * s["m"] + (1 - beta1) * g
            whole = p.ndim != 2 or group["proj_type"] is None
            a = b = None
            if not whole:
                if "left" not in s or step % group["update_proj_gap"] == 0:
                    s["left"], _, s["right"] = torch.linalg.svd(s["m"], full_matrices=False)
                tall, kind = p.shape[0] >= p.shape[1], group["proj_type"]
                b = (
                    s["right"]
                    if kind in ("right", "full", "std" if tall else "reverse_std")
                    else torch.eye(g.shape[1], dtype=WIDE)
                )
                a = s["left"] if kind in ("left", "full", "reverse_std" if tall else "std") else torch.eye(len(g), dtype=WIDE)
            low, mean = (g, s["m"]) if whole else (a.T @ g @ b.T, a.T @ s["m"] @ b.T)
            s["v"] = beta2 * s["v"] + (1 - beta2) * low**2
            u = mean / (s["v"].sqrt() + group["eps"])
            u = u if whole else group["scale"] * a @ u @ b
            size = math.sqrt(1 - beta2**t) / (1 - beta1**t) if group["correct_bias"] else 1.0
            p.sub_(group["lr"] * size * u).mul_(1 - group["lr"] * group["weight_decay"])


def splus(params, group, state, steps):
    """kvfrans/splus, with its average as it is evaluated."""
    for step in range(steps):
        yield step
        for p in params:
            g, s, t = p.grad, state.setdefault(p, {}), step + 1
            short = [n <= group["max_dim"] for n in p.shape]
            if not s:
                s.update(m=torch.zeros_like(p), a=torch.zeros_like(p), Q=None)
                s["L"] = [torch.zeros(n, n, dtype=WIDE) if ok else None for n, ok in zip(p.shape, short, strict=True)]
            size = group["lr"] * (2 / sum(p.shape) if p.ndim == 2 and all(short) else group["nonstandard_constant"])
            s["m"] = group["b1"] * s["m"] + (1 - group["b1"]) * g
            u = s["m"].sign() if s["Q"] is None else times(times(s["m"], s["Q"]).sign(), transposed(s["Q"]))
            if p.ndim == 2:
                new = [
                    None if x is None else group["b2"] * x + (1 - group["b2"]) * products(g, d) for d, x in enumerate(s["L"])
                ]
                s["L"] = new
                if t == 1 or t % group["inverse_every"] == 0:
                    s["Q"] = [None if x is None else torch.linalg.eigh(x).eigenvectors for x in new]
            p.sub_(size * u)
            s["a"] = group["ema_rate"] * s["a"] + (1 - group["ema_rate"]) * p
            p.mul_(1 - size * group["weight_decay"])
            s["average"] = s["a"] / (1 - group["ema_rate"] ** t)


def distributed_shampoo(params, group, state, steps):
    """facebookresearch/optimizers, block by block, with what its blocks at an end have."""
    (beta1, beta2), most, kind = group["betas"], group["max_preconditioner_dim"], group["graft_type"]
    beta3 = beta1 if group["beta3"] == -1 else group["beta3"]
    frequency, start = group["precondition_frequency"], group["start_preconditioning_step"]
    start = frequency if start == -1 else start
    corrected = group["use_bias_correction"]

    def bias(beta, t):
        return 1 - beta**t if corrected and beta < 1 else 1.0

    def cut(x):
        if group["use_merge_dims"]:
            sizes = [1]
            for n in x.shape:
                sizes = [*sizes[:-1], sizes[-1] * n] if sizes[-1] * n <= most else [*sizes, n]
            x = x.view([n for n in sizes if n > 1])
        pieces = [x]
        for d in range(x.ndim):
            pieces = [each for one in pieces for each in one.split(most, d)]
        return pieces

    for step in range(steps):
        yield step
        for p in params:
            t, s, decay = (
                step + 1,
                state.setdefault(p, {"m": torch.zeros_like(p), "V": torch.zeros_like(p)}),
                group["weight_decay"],
            )
            g = p.grad if group["use_decoupled_weight_decay"] else p.grad + decay * p
            mean = (beta3 * s["m"] + (1 - beta3) * g) / (1 - beta3 * beta1 ** (t - 1) if corrected else 1.0)
            s["m"] = beta1 * s["m"] + (1 - beta1) * g
            beta = {"adagrad": 1.0}.get(kind, group["grafting_beta2"])
            s["V"] = beta * s["V"] + (1 - beta if beta < 1 else 1.0) * g**2
            size = 1 - beta**t if kind == "adam" else 1.0
            graft = mean if kind in (None, "sgd") else mean / ((s["V"] / size).sqrt() + group["grafting_epsilon"])
            update = torch.zeros_like(p)
            parts = zip(*(cut(x) for x in (update, g, mean, graft)), strict=True)
            for number, (u, own, m, other) in enumerate(parts):
                mine = s.setdefault(number, {"L": [0.0] * u.ndim, "root": [None] * u.ndim})
                for d in range(u.ndim):
                    mine["L"][d] = beta2 * mine["L"][d] + (1 - beta2 if beta2 < 1 else 1.0) * products(own, d)
                    if t == start or (t > start and t % frequency == 0):
                        values, vectors = torch.linalg.eigh(mine["L"][d] / bias(beta2, t))
                        power = (values.clamp(min=0) + group["epsilon"]) ** (-1 / (2 * u.ndim))
                        mine["root"][d] = vectors * power @ vectors.T
                found = times(m, mine["root"])
                if kind is not None:
                    found = other if t < start else found * other.norm() / (found.norm() + 1e-16)
                u.copy_(found)
            p.sub_(group["lr"] * update + (group["lr"] * decay * p if group["use_decoupled_weight_decay"] else 0.0))


def apollo(params, group, state, steps):
    """zhuhanqing/APOLLO, with our random numbers, which have no other definition."""
    for step in range(steps):
        yield step
        for place, p in enumerate(params):
            g, s, r = p.grad, state.setdefault(p, {}), group["rank"]
            low = g
            if p.ndim == 2:
                rows, columns = p.shape
                r = min(r, rows, columns)
                if not s or step % group["update_proj_gap"] == 0:
                    words = key(*(torch.tensor(value) for value in (group["seed"], step, place)))
                    s["P"] = normal(words, (r, columns) if rows >= columns else (rows, r)).double() / math.sqrt(r)
                low = g @ s["P"].T if rows >= columns else s["P"].T @ g
            u, size = adam(s, low, group["betas"], group["eps"], step + 1)
            if p.ndim == 2:
                if group["scale_type"] == "channel":
                    dim = 0 if rows < columns else 1
                    factor = u.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
                else:
                    factor = u.norm() / (low.norm() + 1e-8)
                u = g * factor
                if "norm" in s:
                    u = u / (max(u.norm() / (s["norm"] + 1e-8), 1.01) / 1.01)
                s["norm"] = u.norm()
                u = u * math.sqrt(group["scale"])
            p.sub_(group["lr"] * (size if group["correct_bias"] else 1.0) * u).mul_(1 - group["lr"] * group["weight_decay"])


def kron(params, group, state, steps):
    """evanatyourservice/kron_torch with dense factors, our random numbers, and steps that are due at what the option says."""
    probability, waited = group["preconditioner_update_probability"], 0
    for step in range(steps):
        yield step
        waited += 1
        due = waited >= 1 / (1.0 if probability is None else probability)
        waited = 0 if due else waited
        for place, p in enumerate(params):
            g, s = p.grad.reshape(p.shape or (1,)), state.setdefault(p, {})
            if not s:
                s["b"], s["diagonal"] = torch.zeros_like(g), []
                s["Q"] = [group["precond_init_scale"] ** (1 / g.ndim) * torch.eye(n, dtype=WIDE) for n in g.shape]
                for d, n in enumerate(g.shape):
                    mode, longest = group["memory_save_mode"], n == max(g.shape) and n not in g.shape[d + 1 :]
                    alone = longest and list(g.shape).count(n) == 1
                    saved = mode == "all_diag" or (mode == "one_diag" and longest) or (mode == "smart_one_diag" and alone)
                    short = n == 1 or n > group["max_size_triangular"] or p.ndim < group["min_ndim_triangular"]
                    s["diagonal"].append(saved or short)
            s["b"] = group["momentum"] * s["b"] + (1 - group["momentum"]) * g
            b = s["b"] / (1 - group["momentum"] ** (step + 1))
            if due:
                words = key(*(torch.tensor(value) for value in (group["seed"], step, place)))
                ahead = times(b if group["momentum_into_precond_update"] else g, transposed(s["Q"]))
                behind = times(normal(words, tuple(g.shape)).double(), [torch.linalg.inv(q) for q in s["Q"]])
                new = []
                for d, q in enumerate(s["Q"]):
                    one, two = products(ahead, d), products(behind, d)
                    if s["diagonal"][d]:
                        one, two = torch.diag(torch.diag(one)), torch.diag(torch.diag(two))
                        length = (one + two).abs().max()
                    else:
                        both = (one + two) / (one + two).abs().max()
                        x = both[(both**2).sum(1).argmax()] @ both
                        length = (x / x.norm() @ both).norm() * (one + two).abs().max()
                    new.append(q - group["precond_lr"] / length * torch.triu(one - two) @ q)
                s["Q"] = new
            u = times(times(b, transposed(s["Q"])), s["Q"])
            u = u * min(1.0, 1.1 / (u.square().mean().sqrt().item() + 1e-8))
            p.sub_(group["lr"] * (u.reshape(p.shape) + group["weight_decay"] * p))


LOOPS = {"Kron": kron, "SOAP": soap, "Shampoo": shampoo, "GaLoreAdamW": galore, "APOLLOAdamW": apollo}
LOOPS |= {"Conda": conda, "DistributedShampoo": distributed_shampoo, "FiraAdamW": fira, "GaLoreAdafactor": galore_adafactor}
LOOPS |= {"SPlus": splus}
PROJECTED = [(12, 12), (9,), (5, 12), (12, 5), (12, 5), (2, 3, 4)]
OPTIONS = {
    "Kron": [
        {"lr": 0.02, "weight_decay": 0.1},
        {"lr": 0.02, "preconditioner_update_probability": 0.3, "max_size_triangular": 9, "momentum_into_precond_update": False}
        | {"memory_save_mode": "smart_one_diag", "precond_init_scale": 0.5},
        {"lr": 0.02, "memory_save_mode": "one_diag", "min_ndim_triangular": 1, "precond_lr": 0.05},
        {"lr": 0.02, "memory_save_mode": "all_diag"},
    ],
    "SOAP": [
        {"lr": 0.01, "precondition_frequency": 7},
        {"lr": 0.01, "merge_dims": True, "max_precond_dim": 12, "precondition_1d": True},
        {"lr": 0.01, "max_precond_dim": 5, "shampoo_beta": 0.9, "normalize_grads": True, "correct_bias": False},
    ],
    "Shampoo": [
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "preconditioning_compute_steps": 4, "max_preconditioner_dim": 9, "beta2": 0.9, "momentum": 0.5}
        | {"grafting": True, "weight_decouple": True, "weight_decay": 0.1},
    ],
    "GaLoreAdamW": [
        {"lr": 0.05, "rank": 3, "update_proj_gap": 7},
        *({"lr": 0.05, "rank": 3, "update_proj_gap": 7, "proj_type": kind} for kind in ("reverse_std", "left", "right")),
        {"lr": 0.05, "rank": 4, "proj_type": "full", "weight_decay": 0.1, "correct_bias": False, "scale": 1.0},
    ],
    "APOLLOAdamW": [
        {"lr": 0.02, "rank": 3, "update_proj_gap": 7, "seed": 5},
        {"lr": 0.02, "rank": 1, "scale": 16.0, "scale_type": "tensor", "weight_decay": 0.1},
    ],
}
OPTIONS |= {
    "GaLoreAdafactor": [
        {"lr": 0.05, "rank": 3, "update_proj_gap": 7, "beta1": 0.8, "weight_decay": 0.1, "clip_threshold": 0.8},
        {"lr": 0.05, "rank": 3, "proj_type": "full", "scale_parameter": False, "decay_rate": -0.5, "eps": (1e-3, 1e-3)},
        {"lr": 0.05, "rank": 3, "proj_type": "reverse_std", "scale": 1.0, "eps": (1e-30, 2.0)},
    ],
    "DistributedShampoo": [
        {"lr": 0.02, "betas": (0.9, 0.95), "graft_type": "adam", "max_preconditioner_dim": 12, "precondition_frequency": 5}
        | {"start_preconditioning_step": 7, "weight_decay": 0.1, "beta3": 0.8},
        {"lr": 0.1, "epsilon": 1e-6},
        {"lr": 0.1, "epsilon": 1e-4, "graft_type": "sgd", "max_preconditioner_dim": 7, "weight_decay": 0.1, "betas": (0.0, 0.9)}
        | {"use_decoupled_weight_decay": False, "use_bias_correction": False, "use_merge_dims": False},
        {"lr": 0.1, "graft_type": "adagrad", "precondition_frequency": 3, "max_preconditioner_dim": 12},
        {"lr": 0.02, "graft_type": "rmsprop", "epsilon": 1e-6, "max_preconditioner_dim": 5, "betas": (0.9, 0.95)},
    ],
    "Conda": [
        {"lr": 0.02, "update_proj_gap": 7, "scale": 0.5, "weight_decay": 0.1},
        {"lr": 0.02, "proj_type": None, "correct_bias": False},
        *({"lr": 0.02, "update_proj_gap": 7, "proj_type": kind} for kind in ("reverse_std", "left", "right", "full")),
    ],
    "FiraAdamW": [
        {"lr": 0.02, "rank": 3, "update_proj_gap": 7, "alpha": 0.25, "weight_decay": 0.1},
        {"lr": 0.02, "rank": 3, "proj_type": "full", "correct_bias": False},
        *({"lr": 0.02, "rank": 3, "update_proj_gap": 7, "proj_type": kind} for kind in ("reverse_std", "left", "right")),
    ],
    "SPlus": [
        {"lr": 0.2, "inverse_every": 4, "b2": 0.9, "ema_rate": 0.9, "weight_decay": 0.1, "nonstandard_constant": 0.05},
        {"lr": 2.0, "max_dim": 5},
    ],
}
CASES = [(name, number) for name, several in OPTIONS.items() for number in range(len(several))]


# Which have a factor for the dimension of a vector too, so that vectors are not left to the plain algorithm and compiled.
FACTORS_OF_VECTORS = {"DistributedShampoo": "factor_matrices", "Kron": "Q", "Shampoo": "pre_cond"}
PROJECTING = [name for name, one in MATRICES.items() if one.takes("rank")]


NAMES = [pytest.param(name, marks=[pytest.mark.slow] * MATRICES[name].brief) for name in LOOPS]


def shapes_of(name):
    return PROJECTED if name in PROJECTING else [*SHAPES, ()] if name == "Kron" else SHAPES


def made(name, params, number=0, **more):
    return getattr(compiledopt, name)(params, **{**OPTIONS[name][number], **more})


@pytest.mark.parametrize(("name", "number"), with_slow(CASES, lambda name, number: number < 2 - MATRICES[name].brief))
def test_fifty_steps_are_the_authors(name, number):
    mine, theirs = parameters(WIDE, shapes_of(name)), parameters(WIDE, shapes_of(name))
    start, gradients = flat(mine), Gradients(WIDE)
    optimizer = made(name, mine, number, foreach=True)
    run(optimizer, mine, gradients, range(50))
    assert optimizer.executor == "foreach"
    with torch.no_grad():
        for step in LOOPS[name](theirs, optimizer.param_groups[0], {}, 50):
            gradients.set(theirs, step)
    effect = rms(flat(theirs) - start)
    assert effect > 0.01 and (flat(mine) - flat(theirs)).abs().max() <= 1e-4 * effect


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "SOAP")) for name in LOOPS])
def test_every_executor_does_the_same(name):
    """Vectors are compiled where that is not declined; matrices run in stacks, or one by one."""
    found = []
    for options in EXECUTORS.values():
        params = parameters(WIDE, shapes_of(name))
        optimizer = made(name, params, **options)
        run(optimizer, params, Gradients(WIDE), range(9))
        found.append(flat(params))
        if not options and name not in FACTORS_OF_VECTORS:
            assert optimizer.executor == "foreach + compiled"
    start = flat(parameters(WIDE, shapes_of(name)))
    for other in found[1:]:
        assert rms(found[0] - start) > 1e-3 and rms(other - found[0]) <= 1e-9 * rms(found[0] - start)


@pytest.mark.parametrize("name", NAMES)
def test_half_parameters_keep_wide_matrices(name):
    params = parameters(torch.bfloat16, shapes_of(name))
    start = flat(params)
    optimizer = made(name, params, foreach=True)
    run(optimizer, params, Gradients(torch.bfloat16), range(9))
    assert torch.isfinite(flat(params)).all() and rms(flat(params) - start) > 1e-3
    for value in optimizer.state[params[0]].values():
        assert value.dtype is torch.float32 or value.shape == params[0].shape or name in PROJECTING


@pytest.mark.parametrize("way", ["file", "deepcopy"])
@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_as_it_was(name, way):
    params = parameters(torch.float32, shapes_of(name))
    optimizer = made(name, params, compiled=False)
    run(optimizer, params, Gradients(skip=True), range(5))
    if way == "file":
        buffer, others = io.BytesIO(), copies(params)
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other = getattr(compiledopt, name)(others, compiled=False)
        other.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        other = copy.deepcopy(optimizer)
        others = [p for group in other.param_groups for p in group["params"]]
    for one, its in ((optimizer, params), (other, others)):
        run(one, its, Gradients(skip=True), range(5, 12))
    assert same(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("kind", ["nan", pytest.param("zero", marks=pytest.mark.slow), "one row"])
@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_stops_a_step(name, kind):
    """Singular products, and NaN, for which LAPACK raises: a step is whole, and other parameters do not see it."""
    params, others = parameters(WIDE, shapes_of(name)), parameters(WIDE, shapes_of(name))
    optimizer, reference = made(name, params, foreach=True), made(name, others, foreach=True)
    gradients = Gradients(WIDE)
    for step in range(9):
        for one, its in ((optimizer, params), (reference, others)):
            gradients.set(its, step)
            if one is optimizer and (step in (0, 7) or kind != "nan"):
                its[0].grad[0] = math.nan if kind == "nan" else its[0].grad[0]
                its[0].grad[1 if kind == "one row" else 0 if kind == "zero" else 12 :] = 0.0
            one.step()
    assert torch.isfinite(params[0]).all() == (kind != "nan")
    assert (flat(params[1:]) - flat(others[1:])).abs().max() <= 1e-6


def test_long_dimensions_have_no_matrix():
    """As embeddings are; where no dimension has one, what is left is the plain algorithm."""
    for name, option, lists in (("SOAP", "max_precond_dim", ("GG", "Q")), ("Shampoo", "max_preconditioner_dim", ("pre_cond",))):
        params = parameters(torch.float32, [(300, 8), (300, 200)])
        optimizer = getattr(compiledopt, name)(params, **{option: 100})
        run(optimizer, params, Gradients(), range(3))
        for each in lists:
            assert optimizer.state[params[0]][f"{each}_1"].shape == (8, 8) and f"{each}_0" not in optimizer.state[params[0]]
        assert not any(each in state for state in optimizer.state[params[1]] for each in lists)
        assert torch.isfinite(flat(params)).all()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_elements_and_what_stands_around(name):
    """Empty ones are left as they are; clipping and caution reach matrices too."""
    params = parameters(WIDE, [(0,), (0, 5), (3, 0), (6, 4)])
    start = flat(params)
    optimizer = made(name, params, foreach=True, max_grad_norm=0.5, cautious=True)
    run(optimizer, params, Gradients(WIDE), range(3))
    assert torch.isfinite(flat(params)).all() and rms(flat(params) - start) > 1e-4 and optimizer.grad_norm > 0.5


def test_ranks_and_groups_without():
    params = parameters(torch.float32, [(40, 30), (40, 30)])
    groups = [{"params": params[:1], "rank": 4}, {"params": params[1:], "rank": None}]
    optimizer = compiledopt.GaLoreAdamW(groups)
    run(optimizer, params, Gradients(), range(2))
    assert optimizer.state[params[0]]["exp_avg"].shape == (40, 4) and optimizer.state[params[0]]["ortho_right"].shape == (4, 30)
    assert optimizer.state[params[1]]["exp_avg"].shape == (40, 30) and optimizer.executor == "foreach + compiled"


def test_directions_beyond_a_gradients_rank_are_those_of_its_rounding():
    """So two processes that sum halves of a gradient are as one where the rank is the gradient's own, and not beyond."""
    found = {}
    for rank in (1, 3):
        for halves in (1, 2):
            params = parameters(WIDE, [(5, 13)])
            optimizer = compiledopt.GaLoreAdamW(params, lr=0.05, rank=rank)
            for step in range(4):
                generator = torch.Generator().manual_seed(step)
                x = torch.randn(8, 5, 1, generator=generator, dtype=WIDE)[:, :, 0]
                rows = torch.randn(1, 13, generator=generator, dtype=WIDE).expand(8, 13)
                params[0].grad = sum(a.T @ b / 8 for a, b in zip(x.chunk(halves), rows.chunk(halves), strict=True))
                optimizer.step()
            found[rank, halves] = flat(params)
    effect = rms(found[1, 1] - flat(parameters(WIDE, [(5, 13)])))
    near, far = (rms(found[rank, 2] - found[rank, 1]) / effect for rank in (1, 3))
    assert effect > 1e-3 and near <= 1e-10 and far > 1e3 * near


def test_random_projections_are_normal_and_follow_the_seed():
    params = parameters(torch.float32, [(400, 300), (400, 300), (300, 400)])
    optimizer = compiledopt.APOLLOAdamW(params, rank=50, seed=3)
    run(optimizer, params, Gradients(), range(1))
    first, second = (optimizer.state[p]["random_right"] for p in params[:2])
    assert abs(first.var() * 50 - 1) < 0.05 and abs(first.mean()) < 0.01 and (first - second).abs().max() > 0.1
    assert abs(((first - first.mean()) ** 4).mean() / first.var() ** 2 - 3) < 0.15
    again = parameters(torch.float32, [(400, 300), (400, 300), (300, 400)])
    other = compiledopt.APOLLOAdamW(again, rank=50, seed=4, foreach=False)
    run(other, again, Gradients(), range(1))
    assert (other.state[again[0]]["random_right"] - first).abs().max() > 0.1
    assert optimizer.state[params[2]]["random_left"].shape == (300, 50)


def test_krons_factors_are_due_ever_less():
    """The counter of the authors' code, step by step."""
    from compiledopt.algorithms.annealing import is_due

    waited, group = 0, {"preconditioner_update_probability": None}
    for step in range(6000):
        waited += 1
        expected = waited >= 1 / min(1.0, max(0.03, math.exp(-0.001 * (step - 500))))
        waited = 0 if expected else waited
        assert is_due(step + 1, group) == expected, step


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("SOAP", {"precondition_frequency": 0}, "Invalid precondition_frequency value: 0"),
        ("Shampoo", {"matrix_eps": 0.0}, "Invalid matrix_eps value: 0.0"),
        ("GaLoreAdamW", {"proj_type": "middle"}, "Invalid proj_type value: 'middle'"),
        ("GaLoreAdamW", {"rank": 0}, "Invalid rank value: 0"),
        ("DistributedShampoo", {"graft_type": "lamb"}, "Invalid graft_type value: 'lamb'"),
        ("Kron", {"memory_save_mode": "some"}, "Invalid memory_save_mode value: 'some'"),
        ("APOLLOAdamW", {"scale_type": "row"}, "Invalid scale_type value: 'row'"),
    ],
)
def test_what_they_refuse(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        getattr(compiledopt, name)(parameters(shapes=[(3, 2)]), **wrong)


def test_the_list_is_whole():
    assert set(MATRICES) == {*LOOPS}


@pytest.mark.parametrize(
    ("name", "options", "later"),
    [
        ("SOAP", {}, {"max_precond_dim": 10}),
        ("SOAP", {"max_precond_dim": 10}, {"max_precond_dim": 100}),
        ("SOAP", {"precondition_1d": True}, {"precondition_1d": False}),
        ("Shampoo", {}, {"max_preconditioner_dim": 10}),
        ("GaLoreAdamW", {"rank": 4}, {"rank": None}),
    ],
)
def test_options_that_shape_states_stay(name, options, later):
    params = parameters(torch.float32, [(12, 12), (9,)])
    optimizer = getattr(compiledopt, name)(params, **options)
    run(optimizer, params, Gradients(), range(3))
    before = snapshot(optimizer)
    optimizer.param_groups[0].update(later)
    with pytest.raises(RuntimeError, match=f"{next(iter(later))}.* back to what|must be a tensor of shape"):
        optimizer.step()
    assert same(snapshot(optimizer), before)
    optimizer.param_groups[0].update(options or {name: optimizer.defaults[name] for name in later})
    optimizer.step()


def test_scion_begins_in_its_balls_and_knows_its_norms():
    def norms(p):
        return p.norm(dim=0), p.norm(dim=1)

    shapes = [(40, 30), (6, 5, 3, 2), (9,)]
    params = parameters(WIDE, shapes)
    compiledopt.Scion(params, scale=3.0).init()
    assert torch.allclose(torch.linalg.svdvals(params[0].detach()), torch.tensor(3.0 * math.sqrt(4 / 3), dtype=WIDE))
    places = params[1].detach().permute(2, 3, 0, 1)
    assert torch.allclose(torch.linalg.svdvals(places), torch.tensor(3.0 * math.sqrt(6 / 5) / 6, dtype=WIDE))
    assert not params[2].any()
    for norm, kwargs, found in (
        ("Sign", {}, lambda p: (p.abs() * 30).flatten()),
        ("ColNorm", {}, lambda p: norms(p)[0] / math.sqrt(40)),
        ("RowNorm", {"normalized": False}, lambda p: norms(p)[1]),
        ("Spectral", {"max": True, "normalized": False}, lambda p: torch.linalg.svdvals(p) / math.sqrt(40)),
    ):
        (param,) = parameters(WIDE, shapes[:1])
        optimizer = compiledopt.Scion([param], norm=norm, norm_kwargs=kwargs, foreach=False)
        optimizer.init()
        assert torch.allclose(found(param.detach()), torch.ones(1, dtype=WIDE), atol=1e-6) and rms(param) > 0.01
        saved = optimizer.state_dict()
        saved["param_groups"][0]["norm_kwargs"] = kwargs  # as the authors' package has it
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["norm_kwargs"] == tuple(sorted(kwargs.items()))
        run(optimizer, [param], Gradients(WIDE), range(1))
    for shape, options, words in (
        ((3, 2), {"norm": "Frobenius"}, "one of Auto, SpectralConv"),
        ((3, 2), {"norm": "Sign", "norm_kwargs": {"steps": 3}}, "takes normalized, zero_init in norm_kwargs, and not 'steps'"),
        ((3,), {"norm": "Spectral"}, "for parameters of 2 dimensions, got one of shape \\(3,\\)"),
        ((3, 2), {"norm": "SpectralConv"}, "at least 3 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            compiledopt.Scion(parameters(shapes=[shape]), **options)


def test_splus_is_evaluated_at_its_average():
    params, theirs = parameters(WIDE, SHAPES), parameters(WIDE, SHAPES)
    optimizer, state, gradients = made("SPlus", params, foreach=False), {}, Gradients(WIDE)
    with torch.no_grad():
        for step in splus(theirs, optimizer.param_groups[0], state, 9):
            gradients.set(theirs, step)
    run(optimizer, params, gradients, range(9))
    trained, average = flat(params), flat([state[p]["average"] for p in theirs])
    with optimizer.evaluating():
        found = flat(params)
    assert rms(average - trained) > 1e-3 and rms(found - average) <= 1e-9 * rms(average - trained)
    assert same(trained, flat(params))
