"""Every algorithm in every circumstance that a user may have: what is wrong, in words.

python tests/circumstances.py                             # all algorithms, all circumstances
python tests/circumstances.py --only Lion,Muon --of continuing,layouts
"""

from __future__ import annotations

import argparse
import copy
import io
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parent.parent))
import torch
from catalog import CATALOG, EXECUTORS, MENU, Algorithm
from helpers import Gradients, copies, flat, parameters, rms, same, snapshot

from compiledopt.rules.formula import expressions
from compiledopt.rules.traced import traced

ALGORITHMS = {name: one for name, one in {**CATALOG, **MENU}.items() if one.rule is not None and one.rule.dense}
HOW: dict[str, dict[str, Any]] = {**EXECUTORS, "compiled": {}}
PLAIN = {"foreach": False}
MATRICES = [(6, 8), (5, 4)]
OTHERS = [(9,), (), (0,), (1, 7), (4, 3, 2, 2), (3, 0), (1,)]
STEPS = 5
Check = Callable[[Algorithm], Iterator[str]]
CHECKS: dict[str, Check] = {}


def circumstance(check: Check) -> Check:
    CHECKS[check.__name__] = check
    return check


def shapes(one: Algorithm) -> list[tuple[int, ...]]:
    return [*MATRICES, *([(1, 7), (3, 0)] if not one.takes_vectors else OTHERS)]


def made(one: Algorithm, params: Any, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return one.ours(params, **{**one.promised, **more})


def step(one: Algorithm, optimizer: Any, params: Any) -> None:
    if one.sparse_only:
        for param in params:
            if param.grad is not None and param.dim():
                param.grad = param.grad.to_sparse(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()


def run(one: Algorithm, optimizer: Any, params: Any, steps: range = range(STEPS), gradients: Any = None) -> None:
    gradients = gradients or Gradients()
    for number in steps:
        gradients.set(params, number)
        step(one, optimizer, params)


def everything(optimizer: Any) -> list[Any]:
    numbers = [
        {k: v for k, v in group.items() if k in ("step", "steps", *optimizer.rule.shared)} for group in optimizer.param_groups
    ]
    return [(param, state) for param, _, state in snapshot(optimizer)] + numbers


def states(optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for state in optimizer.state.values():
        yield from ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))


def apart(mine: Any, theirs: Any, start: Any, loose: float) -> str | None:
    """How far two runs are from each other, if too far: the share of elements that are."""
    a, b, before = flat(mine), flat(theirs), flat(start)
    effect = rms(b - before)
    if not torch.equal(a.isnan(), b.isnan()):
        return f"{int((a.isnan() != b.isnan()).sum())} elements are NaN in one alone"
    off = (a - b).abs().nan_to_num(0.0)
    far = off > loose * effect + 1e-7 * b.abs() + 1e-30
    if far.double().mean() > 0.01:
        return f"{far.double().mean():.1%} of elements are off, by {off.max():.3g} of {effect:.3g}"
    return None


def loose(one: Algorithm) -> float:
    return 0.02 if one.multiplies else 1e-3


def refused(error: BaseException) -> str | None:
    """None where an error is ours, in words."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename
    kinds = (ValueError, TypeError, RuntimeError, NotImplementedError)
    if isinstance(error, kinds) and "/compiledopt/" in last:
        return None
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/compiledopt/" in f.filename]
    return f"{type(error).__name__}: {str(error)[:160]} (at {ours[-1] if ours else '?'}, from {Path(last).name})"


@circumstance
def executors(one: Algorithm) -> Iterator[str]:
    """All executors do the same, in float32 and float64, with gradients that are absent at times."""
    for dtype in (torch.float64, torch.float32):
        start = parameters(torch.float64, shapes(one))
        start = copies(start, dtype)
        found = {}
        for name, how in HOW.items():
            params = copies(start)
            try:
                optimizer = made(one, params, **how)
                run(one, optimizer, params, gradients=Gradients(dtype, skip=True))
            except Exception as error:
                yield f"{name} {dtype}: {refused(error) or error}"
                continue
            found[name] = (params, optimizer)
        if "for-loop" not in found:
            continue
        params, reference = found["for-loop"]
        for name, (mine, optimizer) in found.items():
            close = loose(one) * (1 if dtype is torch.float32 else 1e-5)
            if (wrong := apart(mine, params, start, close)) is not None:
                yield f"{name} {dtype}: {wrong}"
            for p, q in zip(mine, params, strict=True):
                if list(optimizer.state[p]) != list(reference.state[q]):
                    yield f"{name} {dtype}: states {list(optimizer.state[p])} and {list(reference.state[q])}"
                for key, value in optimizer.state[p].items():
                    if not isinstance(value, torch.Tensor):
                        continue
                    other = reference.state[q][key]
                    if (value.dtype, value.shape) != (other.dtype, other.shape):
                        yield f"{name} {dtype}: state {key} of {tuple(p.shape)}: {value.dtype} {tuple(value.shape)}"


@circumstance
def halves(one: Algorithm) -> Iterator[str]:
    """Half types stay near float32's run, and finite."""
    for dtype in (torch.bfloat16, torch.float16):
        start = parameters(dtype, shapes(one))
        wide = copies(start, torch.float32)
        reference = made(one, wide, **PLAIN)
        run(one, reference, wide, gradients=Gradients(dtype))
        for name, how in HOW.items():
            for rounding in (None, "split") if dtype is torch.bfloat16 else (None,):
                params = copies(start)
                more = {} if rounding is None else {"rounding": rounding}
                try:
                    optimizer = made(one, params, **how, **more)
                    run(one, optimizer, params, gradients=Gradients(dtype))
                except Exception as error:
                    if rounding is None or refused(error):
                        yield f"{name} {dtype} {rounding}: {refused(error) or error}"
                    continue
                a, b = flat(params), flat(wide)
                effect = rms(b - flat(start))
                ulp = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-11
                steps = STEPS if rounding is None else 1
                bound = (0.02 if rounding else 0.1) * effect + steps * ulp * b.abs() + 1e-3 * effect
                far = ((a - b).abs() > bound).double().mean()
                if not a.isfinite().all() or far > 0.05:
                    yield f"{name} {dtype} {rounding}: {far:.1%} off, by {(a - b).abs().max():.3g} of {effect:.3g}"
                for p in params:
                    for key, value in optimizer.state[p].items():
                        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
                            yield f"{name} {dtype} {rounding}: state {key} of {tuple(p.shape)} is not finite"


@circumstance
def layouts(one: Algorithm) -> Iterator[str]:
    """Parameters that lie otherwise in memory."""

    def turned(p: torch.Tensor) -> torch.Tensor:
        return p.transpose(0, -1).contiguous().transpose(0, -1)

    def sliced(p: torch.Tensor) -> torch.Tensor:
        return torch.stack([p, p], -1)[..., 0]

    def last(p: torch.Tensor) -> torch.Tensor:
        return p.contiguous(memory_format=torch.channels_last)

    each = [((6, 8), turned), ((5, 4), sliced)]
    each += [((4, 3, 2, 2), last), ((4, 3, 2, 2), turned), ((9,), sliced), ((4, 3, 2), turned)] if one.takes_vectors else []
    plain = parameters(shapes=[shape for shape, _ in each])
    for name, how in HOW.items():
        params = copies(plain)
        run(one, made(one, params, **how), params)
        for kind in ("same", "contiguous"):
            others = [torch.nn.Parameter(laid(p.detach().clone())) for p, (_, laid) in zip(plain, each, strict=True)]
            try:
                optimizer = made(one, others, **how)
                gradients = Gradients()
                for number in range(STEPS):
                    gradients.set(others, number)
                    if kind == "same":
                        for p in others:
                            p.grad = torch.empty_like(p).copy_(p.grad)
                    step(one, optimizer, others)
            except Exception as error:
                yield f"{name} {kind}: {refused(error) or error}"
                continue
            if (wrong := apart(others, params, plain, loose(one))) is not None:
                yield f"{name} {kind}: {wrong}"


@circumstance
def complex_numbers(one: Algorithm) -> Iterator[str]:
    """As two real numbers, or refused in words; the same by all executors."""
    found = {}
    for name, how in HOW.items():
        params = parameters(torch.complex64, [(6, 8), *([(9,), ()] if one.takes_vectors else [])])
        before = copies(params)
        try:
            optimizer = made(one, params, **how)
            run(one, optimizer, params, gradients=Gradients(torch.complex64))
        except Exception as error:
            if (wrong := refused(error)) is not None:
                yield f"{name}: {wrong}"
            if not same([p.detach() for p in params], [p.detach() for p in before]):
                yield f"{name}: refused, but changed"
            found[name] = None
            continue
        found[name] = params
        if one.elementwise and "total" not in str(one.sums):
            real = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in before]
            twin = made(one, real, **PLAIN)
            for number in range(STEPS):
                Gradients(torch.complex64).set(before, number)
                for p, q in zip(before, real, strict=True):
                    q.grad = torch.view_as_real(p.grad).clone()
                step(one, twin, real)
            if (wrong := apart(params, real, parameters(torch.complex64, [tuple(p.shape) for p in before]), 1e-3)) is not None:
                yield f"{name}: not as two real numbers: {wrong}"
    if len({value is None for value in found.values()}) > 1:
        yield f"taken by {[name for name, value in found.items() if value is not None]} alone"


@circumstance
def values(one: Algorithm) -> Iterator[str]:
    """Zeros, tiny and huge gradients leave nothing that is NaN; the first gradient or a later one."""
    for size in (0.0, 1e-30, 1e-42, 1e10, 1e30):
        for late in (False, True):
            for name, how in HOW.items():
                params = parameters(shapes=shapes(one))
                optimizer = made(one, params, **how)
                try:
                    for number in range(STEPS):
                        Gradients().set(params, number)
                        if (number == 2) if late else (number < 2):
                            for p in params:
                                p.grad = p.grad * size
                        step(one, optimizer, params)
                except Exception as error:
                    yield f"{name}, {size} {'late' if late else 'first'}: {refused(error) or error}"
                    continue
                bad = [tuple(p.shape) for p in params if not p.isfinite().all()]
                nan = {
                    k for p in params for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor) and v.isnan().any()
                }
                nan |= {k for g in optimizer.param_groups for k in one.rule.shared if not torch.isfinite(torch.as_tensor(g[k]))}
                if bad or nan:
                    yield f"{name}, {size} {'late' if late else 'first'}: not finite: {bad}, NaN in states: {sorted(nan)}"


@circumstance
def not_finite(one: Algorithm) -> Iterator[str]:
    """skip_nonfinite leaves a step out whole, the first one too."""
    for name, how in HOW.items():
        for first in (True, False):
            for bad in (torch.nan, torch.inf):
                runs = []
                for skipped in (True, False):
                    params = parameters(shapes=shapes(one))
                    try:
                        optimizer = made(one, params, skip_nonfinite=True, **how)
                        for number in range(4):
                            if number == (0 if first else 2):
                                if skipped:
                                    Gradients().set(params, number)
                                    params[0].grad.view(-1)[0] = bad
                                    step(one, optimizer, params)
                                continue
                            Gradients().set(params, number)
                            step(one, optimizer, params)
                    except Exception as error:
                        if (wrong := refused(error)) is not None:
                            yield f"{name} {first=} {bad}: {wrong}"
                        break
                    for p in params:
                        optimizer.state[p].pop("skipped", None)
                    runs.append((everything(optimizer)[: len(params)], [dict(g) for g in optimizer.param_groups]))
                if len(runs) == 2:
                    where = _difference(runs[0][0], runs[1][0])
                    if where and not (one.rule.every and first):
                        yield f"{name} {first=} {bad}: {where}"
                    for key in one.rule.shared:
                        if float(runs[0][1][0][key]) != float(runs[1][1][0][key]):
                            yield f"{name} {first=} {bad}: shared {key} {runs[0][1][0][key]} {runs[1][1][0][key]}"


def _difference(a: list[Any], b: list[Any]) -> str:
    for index, (one, two) in enumerate(zip(a, b, strict=True)):
        if isinstance(one, dict):
            if not same(one, two):
                return f"group {index}: {one} {two}"
            continue
        if not same(one[0], two[0]):
            return f"parameter {index} {tuple(one[0].shape)} differs by {(one[0] - two[0]).abs().max():.3g}"
        for key in {*one[1], *two[1]}:
            if key not in one[1] or key not in two[1]:
                return f"state {key} of {index} is in one alone"
            if not same(one[1][key], two[1][key]):
                return f"state {key} of {index} {tuple(one[0].shape)} differs: {str(one[1][key])[:60]} {str(two[1][key])[:60]}"
    return ""


@circumstance
def maximizing(one: Algorithm) -> Iterator[str]:
    """maximize with −g is the run with g."""
    if not one.takes("maximize"):
        if not one.in_torch:
            yield "there is no maximize"
        return
    for name, how in HOW.items():
        start = parameters(shapes=shapes(one))
        params, others = copies(start), copies(start)
        plain = {k: v for k, v in one.promised.items() if k != "maximize"}
        optimizer, other = (one.ours(q, **{**plain, **how, "maximize": up}) for q, up in ((params, False), (others, True)))
        for number in range(STEPS):
            Gradients().set(params, number)
            for p, q in zip(params, others, strict=True):
                q.grad = -p.grad
            step(one, optimizer, params)
            step(one, other, others)
        if one.elementwise and not same([p.detach() for p in params], [p.detach() for p in others]):
            yield f"{name}: {apart(params, others, start, 0) or 'other bits'}"
        elif (wrong := apart(params, others, start, loose(one))) is not None:
            yield f"{name}: {wrong}"


@circumstance
def numbers(one: Algorithm) -> Iterator[str]:
    """Numbers as tensors, and zero."""
    start = parameters(shapes=shapes(one))
    for name, how in HOW.items():
        params = copies(start)
        optimizer = made(one, params, **how)
        run(one, optimizer, params)
        for option in [n for n in ("lr", "weight_decay", "eps", "momentum", "betas") if one.takes(n)]:
            value = optimizer.param_groups[0][option]
            if option != "lr" and not isinstance(value, (float, int)):
                continue
            for given in (torch.tensor(value, dtype=torch.float64), torch.tensor([value])):
                others = copies(start)
                try:
                    other = made(one, others, **how, **{option: given})
                    run(one, other, others)
                except Exception as error:
                    if option == "lr" or refused(error):
                        yield f"{name}: {option}={given}: {refused(error) or error}"
                    continue
                if (wrong := apart(others, params, start, 1e-4)) is not None:
                    yield f"{name}: {option}={given}: {wrong}"
        others = copies(start)
        try:
            optimizer = made(one, others, **how, lr=0.0)
            run(one, optimizer, others)
        except Exception as error:
            if refused(error):
                yield f"{name}: lr=0: {refused(error)}"
            continue
        still = same([p.detach() for p in others], [p.detach() for p in start])
        if not all(p.isfinite().all() for p in others) or not (still or one.moves_without_rate):
            yield f"{name}: lr=0 moves by {(flat(others) - flat(start)).abs().max()}"
        bad = {
            k for p in others for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor) and not v.isfinite().all()
        }
        if bad:
            yield f"{name}: lr=0: states not finite: {bad}"


@circumstance
def groups(one: Algorithm) -> Iterator[str]:
    """Two groups with numbers of their own are two optimizers; a group that is added is one from then on."""
    if one.sums or one.rule.shared or one.sums != ():
        return
    start = parameters(shapes=shapes(one))
    options = {"lr": 0.003}
    if one.takes("weight_decay"):
        options["weight_decay"] = 0.3
    if one.takes("eps") and isinstance(made(one, copies(start)).param_groups[0]["eps"], float):
        options["eps"] = 1e-4
    if one.takes("betas") and len(made(one, copies(start)).param_groups[0]["betas"]) == 2:
        options["betas"] = (0.5, 0.9)
    for name, how in HOW.items():
        mine, theirs = copies(start), copies(start)
        half = 2
        optimizer = made(one, [{"params": mine[:half]}], **how)
        first, second = made(one, theirs[:half], **how), None
        for number in range(STEPS):
            if number == 2:
                optimizer.add_param_group({"params": mine[half:], **options})
                second = made(one, theirs[half:], **how, **options)
            Gradients().set(mine, number)
            Gradients().set(theirs, number)
            step(one, optimizer, mine)
            step(one, first, theirs[:half])
            if second is not None:
                step(one, second, theirs[half:])
        if (wrong := apart(mine, theirs, start, 1e-6 if one.elementwise else loose(one))) is not None and not one.rule.every:
            yield f"{name}: {wrong}"


@circumstance
def continuing(one: Algorithm) -> Iterator[str]:
    """Through a file, a copy, pickle: bit for bit; into another executor: nearly."""
    for more in ({}, {"state_dtype": "int8", "min_quantized_numel": 0}):
        for name, how in HOW.items():
            start = parameters(shapes=[(6, 8), *([(9,)] if one.takes_vectors else [])])
            params = copies(start)
            try:
                optimizer = made(one, params, **how, **more)
            except ValueError as error:
                if refused(error):
                    yield f"{more}: {refused(error)}"
                continue
            try:
                run(one, optimizer, params, range(2), Gradients(skip=True))
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                twins = {}
                others = copies(params)
                again = made(one, others, **how, **more)
                again.load_state_dict(torch.load(file, weights_only=True))
                twins["file"] = (again, others)
                twins["deepcopy"] = copy.deepcopy((optimizer, params))
                twins["pickle"] = pickle.loads(pickle.dumps((optimizer, params)))
                file.seek(0)
                others = copies(params)
                again = made(one, others, **({"foreach": True} if name == "for-loop" else PLAIN), **more)
                again.load_state_dict(torch.load(file, weights_only=True))
                twins["other"] = (again, others)
                for other, those in twins.values():
                    run(one, other, those, range(2, 4), Gradients(skip=True))
                run(one, optimizer, params, range(2, 4), Gradients(skip=True))
            except Exception as error:
                yield f"{name} {more}: {refused(error) or error}"
                continue
            for way, (other, those) in twins.items():
                if way == "other":
                    if (wrong := apart(those, params, start, 0.1 if more else loose(one))) is not None:
                        yield f"{name} {more}: into another executor: {wrong}"
                elif where := _difference(everything(other), everything(optimizer)):
                    yield f"{name} {more}: {way}: {where}"


@circumstance
def surrounded(one: Algorithm) -> Iterator[str]:
    """What stands around a rule is the same by every executor, and changes nothing where it is neutral."""
    start = parameters(torch.float64, shapes(one))
    plain = copies(start)
    run(one, made(one, plain, **PLAIN), plain, gradients=Gradients(torch.float64))
    options = {
        "max_grad_norm": 0.5,
        "cautious": True,
        "grokfast": (0.9, 1.0),
        "ema_decay": 0.5,
        "gradient_centralization": True,
        "update_clipping": 0.5,
        "corrected_decay": True,
        "never": {"max_grad_norm": 1e9, "skip_nonfinite": True, "ema_decay": 0.9},
    }
    for option, value in options.items():
        more = value if isinstance(value, dict) else {option: value}
        found = {}
        for name, how in HOW.items():
            params = copies(start)
            try:
                optimizer = made(one, params, **how, **more)
                run(one, optimizer, params, gradients=Gradients(torch.float64))
            except Exception as error:
                if (wrong := refused(error)) is not None:
                    yield f"{option} {name}: {wrong}"
                continue
            found[name] = params
            if not flat(params).isfinite().all():
                yield f"{option} {name}: not finite"
            if option in ("never", "ema_decay") and (wrong := apart(params, plain, start, 1e-8)) is not None:
                yield f"{option} {name}: {wrong}"
        for name, params in found.items():
            if "for-loop" in found and (wrong := apart(params, found["for-loop"], start, 1e-7)) is not None:
                yield f"{option} {name}: {wrong}"
        if found and len(found) != len(HOW):
            yield f"{option}: taken by {list(found)} alone"
    clipped = copies(start)
    optimizer = made(one, clipped, **PLAIN)
    for number in range(STEPS):
        Gradients(torch.float64).set(clipped, number)
        torch.nn.utils.clip_grad_norm_(clipped, 0.5)
        step(one, optimizer, clipped)
    mine = copies(start)
    try:
        run(one, made(one, mine, max_grad_norm=0.5, **PLAIN), mine, gradients=Gradients(torch.float64))
    except Exception:
        return
    if (wrong := apart(mine, clipped, start, 1e-5)) is not None:
        yield f"max_grad_norm beside clip_grad_norm_: {wrong}"


@circumstance
def in_backward(one: Algorithm) -> Iterator[str]:
    """An optimizer for each parameter, stepped in a hook of it, is the one for all; random projections follow its number."""
    if one.sums or one.rule.shared or one.rule.every:
        return
    for name, how in HOW.items():
        start = parameters(shapes=[s for s in shapes(one) if 0 not in s])
        params, others = copies(start), copies(start)
        whole = made(one, params, **how)
        each = {p: made(one, [p], **how) for p in others}

        def update(param: Any, each: Any = each) -> None:
            step(one, each[param], [param])
            param.grad = None

        for p in others:
            p.register_post_accumulate_grad_hook(update)
        for _ in range(3):
            sum((p * p).sum() + p.sum() for p in params).backward()
            step(one, whole, params)
            whole.zero_grad()
            sum((p * p).sum() + p.sum() for p in others).backward()
        if (wrong := apart(others, params, start, loose(one))) is not None:
            yield f"{name}: {wrong}"


@circumstance
def told(one: Algorithm) -> Iterator[str]:
    """explain and the formula, for every executor, before a step and after."""
    for name, how in HOW.items():
        params = parameters(shapes=shapes(one))
        optimizer = made(one, params, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                before = optimizer.explain()
                run(one, optimizer, params, range(1))
                after = optimizer.explain(source=True)
                repr(optimizer)
            except Exception as error:
                yield f"{name}: {refused(error) or error}"
                continue
        if not before or one.name not in after:
            yield f"{name}: {before[:80]!r}"
    if one.elementwise and not one.rule.every:
        expressions(traced(one.rule, made(one, parameters(shapes=[(2, 2)])).param_groups[0]).program)


@circumstance
def graphs(one: Algorithm) -> Iterator[str]:
    """torch.compile of the step, and of a whole training step, with fullgraph and without."""
    if one.sparse_only:
        return
    start = parameters(shapes=[s for s in shapes(one) if 0 not in s])
    params = copies(start)
    optimizer = made(one, params, **PLAIN)

    def loss(params: Any) -> torch.Tensor:
        return sum((p * p).sum() + p.sum() for p in params)  # type: ignore[return-value]

    for _ in range(4):
        loss(params).backward()
        step(one, optimizer, params)
        optimizer.zero_grad()
    for whole in (False, True):
        torch._dynamo.reset()
        others = copies(start)
        other = made(one, others)

        def train(other: Any = other, others: Any = others) -> torch.Tensor:
            other.zero_grad()
            value = loss(others)
            value.backward()
            other.step()
            return value

        compiled = torch.compile(train, backend="aot_eager", fullgraph=False) if not whole else None
        stepped = torch.compile(other.step, backend="aot_eager", fullgraph=True) if whole else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(4):
                    if compiled is not None:
                        compiled()
                    else:
                        other.zero_grad()
                        loss(others).backward()
                        stepped()
        except Exception as error:
            yield f"{'fullgraph step' if whole else 'train step'}: {refused(error) or str(error)[:200]}"
            continue
        if (wrong := apart(others, params, start, loose(one))) is not None:
            yield f"{'fullgraph step' if whole else 'train step'}: {wrong}"


def faults(one: Algorithm, check: Check) -> list[str]:
    found = []
    try:
        with mock.patch("compiledopt.algorithms.muon.product_dtype", return_value=torch.float64):
            found += list(check(one))
    except Exception as error:
        last = "".join(traceback.format_tb(error.__traceback__)[-3:])
        found.append(f"{type(error).__name__}: {str(error)[:300]}\n{last}")
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="algorithms, by comma")
    parser.add_argument("--of", default="", help="circumstances, by comma")
    parser.add_argument("--eager", action="store_true", help="without kernels")
    parser.add_argument("--how", default="", help="executors, by comma")
    given = parser.parse_args()
    for name in set(HOW) - set(given.how.split(",")) if given.how else ():
        del HOW[name]
    if given.eager:
        del HOW["compiled"]
    names = given.only.split(",") if given.only else list(ALGORITHMS)
    checks = given.of.split(",") if given.of else list(CHECKS)
    bad = 0
    for check in checks:
        for name in names:
            began = time.time()
            wrong = faults(ALGORITHMS[name], CHECKS[check])
            bad += bool(wrong)
            seconds = time.time() - began
            if wrong or seconds > 10:
                print(f"{check} {name} ({seconds:.1f} s): {'right' if not wrong else ''}", *wrong, sep="\n    ", flush=True)
    print(f"{len(checks)} × {len(names)}, {bad} with faults")


if __name__ == "__main__":
    main()
