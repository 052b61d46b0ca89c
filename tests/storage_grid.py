"""Cases drawn from a grid that is too large to be run: algorithm × codec × rounding × dtype × layout × executor × around.

    python tests/storage_grid.py --count 200 --seed 7        # as many drawn cases
    python tests/storage_grid.py --every                     # each algorithm with each codec, the other axes drawn

A case is right if, at each step, what is kept is what the same rule in float32 makes of what was kept before, within what the
codec promises; if executors, layouts and a way through a file make no difference, bit for bit where float32 computes alike.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))
import torch
from catalog import CATALOG, EXECUTORS, MENU, WHOLE_MODEL, Algorithm
from helpers import Gradients, flat, rms, same, snapshot

from compiledopt import around, schedules, storage
from compiledopt.backends.blocks import Blocks
from compiledopt.rules.program import ELEMENTS
from compiledopt.storage import CODECS

ALGORITHMS = {name: one for name, one in {**CATALOG, **MENU}.items() if one.rule is not None and one.rule.dense}
PARTNERS = {codec.unsigned for codec in CODECS.values()}
KEPT = [name for name in CODECS if name not in PARTNERS]
ROUNDINGS = ["nearest", "stochastic", "compensated", "split"]
HOW = {**EXECUTORS, "capturable": {"capturable": True}}
STEPS = 3
# Of a value in blocks, over the largest of its block; of another, over itself, and of what is below all others.
SHARES = {
    "int8": 0.012,
    "uint8": 0.012,
    "dynamic8": 0.018,
    "udynamic8": 0.009,
    "float8_e4m3fn": 0.036,
    "int4": 0.17,
    "uint4": 0.063,
}
RELATIVE = {"float32": (1e-5, 0.0), "bfloat16": (2**-7, 0.0), "float16": (2**-10, 2**-24), "float16_root": (2**-8, 2**-46)}


def channels_last(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous(memory_format=torch.channels_last)


def transposed(values: torch.Tensor) -> torch.Tensor:
    return values.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(values: torch.Tensor) -> torch.Tensor:
    """With gaps: not dense."""
    return torch.stack([values, values], -1)[..., 0]


MATRICES: list[tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = [
    ((67, 75), torch.clone),
    ((64, 64), torch.clone),
    ((63, 65), torch.clone),  # 4095
    ((36, 130), transposed),
    ((70, 259), sliced),
    ((260, 16), torch.clone),  # 4160, of rows that are shorter than a block
]
OTHERS: list[tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = [
    ((32, 16, 3, 3), channels_last),
    ((8, 5, 7, 19), transposed),
    ((5003,), torch.clone),
    ((), torch.clone),
    ((0, 40), torch.clone),
    ((3, 0), torch.clone),
]


@dataclass(frozen=True)
class Case:
    """One of the grid. least: min_quantized_numel; around: what stands around the rule; absent: whether some gradients are."""

    algorithm: str
    kept: str
    rounding: str
    dtype: torch.dtype
    executor: str
    least: int | None
    around: tuple[str, ...]
    absent: bool

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        least = "all" if self.least == 0 else "usual"
        return "-".join(
            [self.algorithm, self.kept, dtype, self.rounding, self.executor, least, *self.around, *["absent"] * self.absent]
        )

    @property
    def of(self) -> Algorithm:
        return ALGORITHMS[self.algorithm]

    def options(self) -> dict[str, Any]:
        found = {**self.of.promised, "state_dtype": self.kept, "seed": 3}
        if self.rounding != "nearest":
            found["rounding"] = self.rounding
        if self.least is not None:
            found["min_quantized_numel"] = self.least
        if "clip" in self.around:
            found["max_grad_norm"] = 3.0
        if "average" in self.around:
            found["ema_decay"] = 0.75
        if "schedule" in self.around and "lr" in found:
            found["lr"] = found["lr"] * schedules.exponential(0.8)
        return found

    def params(self, in_order: bool = False) -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(1)
        shapes = [*MATRICES, *(OTHERS if self.of.takes_vectors and self.of.takes_empty else [])]
        found = []
        for shape, laid in shapes:
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            found.append(torch.nn.Parameter(values if in_order else laid(values)))
        return found

    def made(self, params: Any, executor: str | None = None) -> Any:
        how = HOW[executor or self.executor]
        if "capturable" in how and not self.of.takes("capturable"):
            how = HOW["compiled"]
        # Where it cannot be compiled, that is warned of: which is not what is tried here.
        how = {name: value for name, value in how.items() if name != "compiled"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.of.ours(params, **{**self.options(), **how})


def drawn(seed: int) -> Iterator[Case]:
    """Cases without end."""
    chance = random.Random(seed)
    while True:
        yield one_of(chance, chance.choice(list(ALGORITHMS)), chance.choice(KEPT))


def one_of(chance: random.Random, algorithm: str, kept: str) -> Case:
    dtype = chance.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
    half = dtype in (torch.bfloat16, torch.float16)
    return Case(
        algorithm,
        kept,
        chance.choice(ROUNDINGS) if half else "nearest",
        dtype,
        chance.choice(list(HOW)),
        chance.choice([None, 0]),
        tuple(name for name in ("clip", "average", "schedule") if chance.random() < 0.3),
        chance.random() < 0.3,
    )


def step(case: Case, optimizer: Any, params: list[torch.nn.Parameter], number: int) -> None:
    Gradients(torch.float32, skip=case.absent).set(params, number)
    for param in params:  # in the parameter's own layout, as backward leaves them
        if param.grad is not None:
            param.grad = torch.empty_like(param).copy_(param.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()


def run(case: Case, optimizer: Any, params: list[torch.nn.Parameter], steps: range) -> None:
    for number in steps:
        step(case, optimizer, params, number)


def ways(optimizer: Any, param: torch.nn.Parameter) -> dict[str, str]:
    """{state: the codec that keeps it}."""
    group = optimizer.param_groups[0]
    kept = storage.kept(around.derived(optimizer.rule, group), group, param)
    return {} if kept is None else {name: codec.name for name, codec, _ in kept.states}


def bound_of(name: str, values: torch.Tensor) -> torch.Tensor:
    """How far what is kept may be from these values, element by element."""
    codec, values = CODECS[name], values.double()
    if not codec.block:
        relative, least = RELATIVE[name.removesuffix("_nearest")]
        return values.abs() * relative + least
    cut = Blocks(values.shape, {"": codec.block})
    blocks = cut.into(values, ELEMENTS).abs()
    return cut.back(blocks.amax(-1, keepdim=True).expand_as(blocks), ELEMENTS) * SHARES[name]


def masters(optimizer: Any, params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """What the rule is given for the parameters, in float32."""
    found = []
    for param in params:
        value, state = param.detach().to(torch.promote_types(param.dtype, torch.float32)), optimizer.state.get(param, {})
        if "rest" in state:
            value = (value.view(torch.int32) + state["rest"].int()).view(torch.float32)
        elif "compensation" in state:
            value = value + state["compensation"].float()
        found.append(value)
    return found


def against_the_rule(case: Case) -> Iterator[str]:
    """Each step of what is kept so beside the same step in float32 from what it was before."""
    params = case.params()
    optimizer = case.made(params)
    at_once = "first" not in optimizer.rule.options  # such a rule would take states for those of an update
    if at_once:
        optimizer.make_states()  # one that starts from its parameter is rounded then
    moved = 0.0
    for number in range(STEPS):
        exact = [torch.nn.Parameter(value.clone()) for value in masters(optimizer, params)]
        saved = optimizer.state_dict(precision="float32")
        reference = case.of.ours(exact, **{**case.options(), "state_dtype": None, "rounding": None, "foreach": False})
        if number or at_once:
            reference.load_state_dict(saved)
        before = flat(exact)
        for param in params:
            param.grad = None
        Gradients(torch.float32, skip=case.absent).set(params, number)
        for param, twin in zip(params, exact, strict=True):
            twin.grad = None if param.grad is None else param.grad.to(twin.dtype)
        step(case, optimizer, params, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference.step()
        yield from _compared(case, number, optimizer, params, reference, exact, before)
        moved += rms(flat(exact) - before)
    if not moved > 1e-6 and case.algorithm != "RAdamScheduleFree":  # whose first steps are of size 0
        yield f"nothing moved: {moved}"


def _compared(
    case: Case, number: int, optimizer: Any, params: Any, reference: Any, exact: Any, before: torch.Tensor
) -> Iterator[str]:
    moved = rms(flat(exact) - before)
    loose = 0.05 if case.of.multiplies or not case.of.elementwise else 1e-3
    for index, (param, twin, now) in enumerate(zip(params, exact, masters(optimizer, params), strict=True)):
        if not param.numel():
            continue
        unit = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(param.dtype, 1e-6) if case.rounding != "split" else 1e-6
        unit = unit**2 if case.rounding == "compensated" else unit
        unit = 2**-10 if case.rounding == "split" and param.dtype == torch.float16 else unit
        apart = (now.double() - twin.detach().double()).abs() - unit * twin.detach().double().abs() - 2**-24
        if not apart.clamp(min=0).square().mean().sqrt() <= loose * moved + 1e-7:
            yield f"step {number}: parameter {index} {tuple(param.shape)} is off by {apart.max():.3g}, moved {moved:.3g}"
        mine, theirs = optimizer.state_dict(precision="float32"), reference.state.get(twin, {})
        values = mine["state"].get(index, {})
        for name, codec in ways(optimizer, param).items():
            if name not in values or name not in theirs:
                if name in theirs or name in values:
                    yield f"step {number}: state {name} of parameter {index} is on one side alone"
                continue
            wanted, found = theirs[name].double(), values[name].double()
            bound = bound_of(codec, wanted) * 1.01 + (loose if loose > 0.01 else 2e-3) * bound_of(codec, wanted).amax() + 1e-30
            odd = (found - wanted).abs() > bound
            few = odd.double().mean() <= (0.002 if loose < 0.01 else 0.02)
            if not few or found.isnan().any() != wanted.isnan().any():
                worst = ((found - wanted).abs() / bound).nan_to_num(torch.inf).max()
                where = f"{name} of parameter {index} {tuple(param.shape)}, kept as {codec},"
                yield f"step {number}: {where} is {worst:.3g} × the bound off"


def states_of(optimizer: Any) -> list[Any]:
    return [(param, state) for param, _, state in snapshot(optimizer)]


def _apart(ours: list[Any], theirs: list[Any]) -> tuple[float, float]:
    """The share of codes that differ, and by how much at most."""
    off = [(a.double() - b.double()).abs().flatten() for a, b in zip(_codes(ours), _codes(theirs), strict=True)]
    every = torch.cat(off) if off else torch.zeros(1)
    return ((every != 0).double().mean().item(), every.max().item()) if every.numel() else (0.0, 0.0)


def _codes(found: list[Any]) -> list[torch.Tensor]:
    return [
        v for _, state in found for v in state.values() if isinstance(v, torch.Tensor) and v.dtype in (torch.int8, torch.uint8)
    ]


def between_executors(case: Case) -> Iterator[str]:
    """Compiled, foreach and for-loop: the same codes but for a few on an edge, and those that are made of such, as Adan's
    exp_avg_diff is of the last gradient, by one more."""
    found = {}
    for executor in EXECUTORS:
        params = case.params()
        optimizer = case.made(params, executor)
        run(case, optimizer, params, range(STEPS))
        found[executor] = states_of(optimizer)
    start = flat(case.params())
    moved = rms(flat(p for p, _ in found["for-loop"]) - start)
    unit = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(case.dtype, 0.0)
    for executor, values in found.items():
        apart = rms(flat(p for p, _ in values) - flat(p for p, _ in found["for-loop"]))
        share, most = _apart(values, found["for-loop"])
        coarse = case.of.multiplies or not case.of.elementwise
        if not apart <= (0.1 if coarse or unit else 0.01) * moved:
            yield f"{executor} and for-loop differ by {apart:.3g} of {moved:.3g}"
        if share > (0.05 if coarse or unit else 0.002) or (most > 2 and not coarse and share > 1e-4):
            yield f"{share:.2%} of codes differ between {executor} and for-loop, by {most} at most"


def between_layouts(case: Case) -> Iterator[str]:
    """The same codes and parameters bit for bit, however parameters that are dense lie in memory."""
    if not case.of.elementwise or "clip" in case.around or case.algorithm in WHOLE_MODEL:
        return  # sums are taken in the order of memory
    found = []
    for in_order in (False, True):
        params = case.params(in_order)
        optimizer = case.made(params, "compiled")
        run(case, optimizer, params, range(STEPS))
        dense = [index for index, (_, laid) in enumerate((*MATRICES, *OTHERS)) if laid is not sliced and index < len(params)]
        found.append([one for index, one in enumerate(states_of(optimizer)) if index in dense])
    has_noise = case.rounding == "stochastic" or CODECS[case.kept].random
    drawn_by_memory = has_noise and not (CODECS[case.kept].block and case.least == 0)  # in blocks it is by the shape
    if not drawn_by_memory and not same(*found):
        share, most = _apart(*found)
        apart = rms(flat(p for p, _ in found[0]) - flat(p for p, _ in found[1]))
        yield f"layouts differ: {share:.2%} of codes by {most}, parameters by {apart:.3g}"


def through_a_file(case: Case) -> Iterator[str]:
    """A run that was saved, loaded and went on is the run that was not, bit for bit."""
    params = case.params()
    optimizer = case.made(params)
    run(case, optimizer, params, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [torch.nn.Parameter(torch.empty_like(param).copy_(param)) for param in params]
    for twin, param in zip(twins, params, strict=True):
        if twin.stride() != param.stride():
            twin.data = sliced(param.detach())
    again = case.made(twins)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(case, optimizer, params, range(2, 4))
    run(case, again, twins, range(2, 4))
    if not same(states_of(optimizer), states_of(again)):
        share, most = _apart(states_of(optimizer), states_of(again))
        apart = rms(flat(params) - flat(twins))
        yield f"a run through a file is another one: {share:.2%} of codes by {most}, parameters by {apart:.3g}"


CHECKS = [against_the_rule, between_executors, between_layouts, through_a_file]


def faults(case: Case) -> list[str]:
    """What is wrong with a case; none where it is refused in words."""
    try:
        case.made(case.params())
    except ValueError as error:
        return [] if "Invalid" in str(error) or "does not" in str(error) or "is for" in str(error) else [repr(error)]
    found = []
    for check in CHECKS:
        try:
            found += [f"{check.__name__}: {fault}" for fault in check(case)]
        except Exception as error:  # of whatever kind: it is reported as what it is
            found.append(f"{check.__name__}: {type(error).__name__}: {str(error)[:300]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="each algorithm with each codec")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    cases: Any = itertools.islice(drawn(given.seed), given.count)
    if given.every:
        pairs = list(itertools.product(ALGORITHMS, KEPT))
        chance.shuffle(pairs)
        cases = (one_of(chance, *pair) for pair in pairs)
    bad = tried = 0
    for case in cases:
        if given.only not in str(case):
            continue
        tried += 1
        wrong = faults(case)
        bad += bool(wrong)
        print(f"{case}: {'right' if not wrong else ''}", *wrong, sep="\n    " if wrong else "", flush=True)
    print(f"{tried} cases, {bad} with faults")


if __name__ == "__main__":
    main()
