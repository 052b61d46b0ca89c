"""What runs, and why: executor and reason, program, kernels, launches, bytes, and the floor that memory sets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from compiledopt import around, storage
from compiledopt.backends.batch import Entry, counted_of
from compiledopt.rules.program import Program
from compiledopt.rules.rule import Rule
from compiledopt.step.foresee import foresee
from compiledopt.step.plan import Plan

if TYPE_CHECKING:
    from compiledopt.rules.formula import Formula


@dataclass
class Part:
    """The parameters that share an executor, a program and dtypes."""

    executor: str
    reason: str
    program: str
    dtypes: list[str]
    tensors: int
    elements: int
    rows: int
    kernels: int
    passes: int  # sweeps over what lies in memory: several where the rule reduces; 0 where an eager executor makes them
    calls_per_step: int  # kernel launches, or calls of torch operations by an eager executor
    bytes_read_per_element: float
    bytes_written_per_element: float
    state_bytes_per_element: float  # that stay between steps
    states: list[str]  # and the dtype of each
    kept: list[str]  # how values are kept of which `state_dtype` or `rounding` asks something, and why not as asked
    scalar_part: list[str]
    elementwise_part: list[str]
    formula: list[str] = field(default_factory=list)  # the new values, primed, in terms of the old
    latex: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)  # which of the calls are torch's, beside kernels, on which shapes
    clipped: bool = False  # whether the norm over all gradients is measured first
    totals: int = 0  # rounds in which the rule sums over all parameters first
    source: str = ""

    @property
    def bytes_per_step(self) -> int:
        return round(self.elements * (self.bytes_read_per_element + self.bytes_written_per_element))


@dataclass
class Explanation:
    """What a step of an optimizer does. `str()` is for people, `json()` for machines."""

    optimizer: str
    executor: str
    tensors: int
    elements: int
    launches_per_step: int
    kernels: int
    bytes_per_step: int
    memory_bandwidth: float  # bytes per second, measured on this machine
    floor_seconds: float  # the bytes of a step at that bandwidth
    threads: int
    torch: str
    parts: list[Part] = field(default_factory=list)

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        compiled = self.executor == "compiled"
        calls, least = _counted(self.launches_per_step, "launch" if compiled else "call"), "" if compiled else "at least "
        lines = [
            f"{self.optimizer}: {self.executor}, {_counted(self.tensors, 'tensor')}, {_counted(self.elements, 'element')}, "
            f"{calls} per step, {_counted(self.kernels, 'kernel')}",
            f"memory: {least}{self.bytes_per_step / 1e6:.1f} MB per step, {self.floor_seconds * 1e3:.3f} ms at the "
            f"{self.memory_bandwidth / 1e9:.1f} GB/s that an addition in place reaches here; no step out of cache is faster",
            f"torch {self.torch}, {_counted(self.threads, 'thread')}",
        ]
        for part in self.parts:
            lines += ["", *_describe(part)]
        return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def _describe(part: Part) -> list[str]:
    calls, of = ("launch", "") if part.executor == "compiled" else ("call", " of torch operations")
    # Each operation of an eager executor reads and writes its operands again.
    least = "" if part.executor == "compiled" else "at least "
    if not part.elementwise_part:
        calls, of = "call", " of the rule at least"
    lines = [
        f"{part.executor} ({part.reason}): {_counted(part.tensors, 'tensor')} of {', '.join(part.dtypes)}",
        f"  {_counted(part.calls_per_step, calls)}{of} per step, {_counted(part.rows, 'row')} of scalars",
        f"  per element: {least}{part.bytes_read_per_element:g} bytes read, {part.bytes_written_per_element:g} written",
    ]
    if part.states:
        lines.append(f"  states: {', '.join(part.states)}; {part.state_bytes_per_element:.4g} bytes per element")
    lines += [f"  {line}" for line in part.kept]
    if part.passes > 1:
        lines.append(f"  in {part.passes} passes, over all elements or over what they were reduced to")
    lines += [f"  {line}" for line in part.products]
    if part.clipped:
        lines.append("  the norm over all gradients is measured first: one of the calls, and one more read of them")
    if part.totals:
        lines.append(
            f"  what it sums over all parameters is measured first: {part.totals} of the calls, and as many more reads"
        )
    if part.elementwise_part:
        lines += ["  formula, with ' for new values:", *[f"    {line}" for line in part.formula]]
        lines += ["  in LaTeX:", *[f"    {line}" for line in part.latex]]
        lines += [f"  scalar part of {part.program}, once per row, in float64:", *[f"    {line}" for line in part.scalar_part]]
        title = (
            "elementwise part, once per element" if part.passes <= 1 else "the part that reduces, once per element or as said"
        )
        lines += [f"  {title}:", *[f"    {line}" for line in part.elementwise_part]]
    return [*lines, "  source:", *[f"    {line}" for line in part.source.splitlines()]] if part.source else lines


@lru_cache
def memory_bandwidth(device: str = "cpu", size: int = 64 * 2**20) -> float:
    """Bytes per second that an addition in place reads and writes, best of ten on 64 MiB: like an optimizer's step, and
    unlike a copy, it fetches no line only to overwrite it."""
    source = torch.zeros(size // 4, device=device)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        target.add_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 3 * size / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def explain(
    name: str,
    rules: Sequence[Rule],
    groups: Sequence[dict[str, Any]],
    state: Mapping[Any, Any],
    plan: Plan | None,
    source: bool = False,
) -> Explanation:
    """Explain a step of an optimizer in which every parameter has a gradient; kernels are compiled for that.

    Mutates: nothing of the optimizer.
    """
    entries = foresee(rules, groups, state, plan)
    buckets: dict[Any, list[Entry]] = {}
    for entry in entries:
        backend, capturable = entry.choice.backend, bool(groups[entry.group].get("capturable"))
        runs = None if backend is None else backend.runs_for(entry)
        key = (entry.choice, backend, entry.traced, runs, entry.dtypes(), capturable)
        buckets.setdefault(key, []).append(entry)
    parts = [_part(members, rules, groups, source) for members in buckets.values()]
    total = sum(part.bytes_per_step for part in parts)
    devices = {str(entry.param.device) for entry in entries}
    bandwidth = memory_bandwidth(devices.pop() if len(devices) == 1 and "meta" not in devices else "cpu")
    return Explanation(
        optimizer=name,
        executor=" + ".join(dict.fromkeys(part.executor for part in parts)) or "none",
        tensors=len(entries),
        elements=sum(part.elements for part in parts),
        launches_per_step=sum(part.calls_per_step for part in parts),
        kernels=sum(part.kernels for part in parts),
        bytes_per_step=total,
        memory_bandwidth=bandwidth,
        floor_seconds=total / bandwidth,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        parts=parts,
    )


def _part(entries: Sequence[Entry], rules: Sequence[Rule], groups: Sequence[Mapping[str, Any]], source: bool) -> Part:
    first = entries[0]
    group = groups[first.group]
    assert first.choice.backend is not None
    told, dtypes, clipped = first.choice.backend.describe(entries, group), first.dtypes(), first.traced.is_clipped
    scalar: list[str] = []
    elementwise: list[str] = []
    for line in told.program.text.splitlines() if told.program else []:
        (scalar if "# 0-dim" in line else elementwise).append(line.replace("  # 0-dim", ""))
    written_out = _formula(told.program)
    elements, names = sum(entry.param.numel() for entry in entries), first.traced.shapes_of(first.param)
    held = [(entry, sum(entry.state_bytes().values())) for entry in entries]
    return Part(
        executor=first.choice.executor,
        reason=first.choice.reason,
        program=first.traced.rule.name,
        dtypes=[str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(dtypes)],
        tensors=len(entries),
        elements=elements,
        rows=len({(entry.group, _steps(entry)) for entry in entries}),
        kernels=told.kernels,
        passes=told.passes,
        calls_per_step=told.calls + clipped * told.norms + len(first.measured.measures),
        bytes_read_per_element=told.read + clipped * dtypes[1].itemsize + _read_for_totals(first),
        bytes_written_per_element=told.written,
        state_bytes_per_element=sum(kept * entry.param.numel() for entry, kept in held) / max(1, elements),
        states=[f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in zip(names, dtypes[2:], strict=True)],
        kept=_kept(entries, rules, groups),
        scalar_part=scalar,
        elementwise_part=elementwise,
        formula=written_out.text,
        latex=written_out.latex,
        products=list(told.products),
        clipped=clipped,
        totals=len(first.measured.measures),
        source=told.source() if source else "",
    )


def _kept(entries: Sequence[Entry], rules: Sequence[Rule], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    counts: dict[str, int] = {}
    for entry in entries:
        rule, group = rules[entry.group], groups[entry.group]
        told = storage.told(around.derived(rule, group), group, entry.param) if storage.is_asked(group) else {}
        for name, words in told.items():
            counts[f"{name} {words}"] = counts.get(f"{name} {words}", 0) + 1
    return [line if count == len(entries) else f"{line} ({_counted(count, 'tensor')})" for line, count in counts.items()]


def _read_for_totals(entry: Entry) -> int:
    dtypes = entry.dtypes()
    return sum(dtypes[index].itemsize for measure in entry.measured.measures for index in measure.reads)


def _formula(program: Program | None) -> Formula:
    from compiledopt.rules.formula import Formula, formula  # sympy takes 0.2 s to import

    return formula(program, around.letters()) if program else Formula((), {})


def _steps(entry: Entry) -> tuple[float, ...]:
    return tuple(float(entry.state[name]) for name in counted_of(entry.traced, entry.param) if name in entry.state)
