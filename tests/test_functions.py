"""Functions of libm in kernels (functions.h): as exact as they say, on vectors, and the same bits wherever an element lies."""

import ctypes
import math
import shutil
import subprocess

import pytest
import torch
from catalog import MENU
from helpers import Gradients, parameters, run

import compiledopt
from compiledopt.backends import cache
from compiledopt.backends.cpp import functions, kernels, sources
from compiledopt.rules.traced import traced
from compiledopt.stats import STATS

ONE = sorted(functions.NAMES - {"pow", "atan2", "hypot"})
SPECIAL = [0.0, 0.5, 1.0, 2.0, 3.0, 1e-45, 1e-39, 3e38, 16777215.0, 7.5, 0.99999994, math.inf]
WORST = {"exp": 1.0}  # units in the last place
COUNT = 20011


def source():
    """A function for each: of an array, or of two."""
    lines = [sources.loops(), sources.prefix(), functions.HEADER]
    for name in sorted(functions.NAMES):
        for kind in ("float", "double"):
            arguments = "a[i]" if name in ONE else "a[i], b[i]"
            lines += [
                f'extern "C" void {name}_{kind}(const {kind}* a, const {kind}* b, {kind}* c, int64_t n) {{',
                "  INDEPENDENT",
                f"  for (int64_t i = 0; i < n; ++i) c[i] = {name}_of({arguments});",
                "}",
            ]
    return "\n".join([*lines, ""])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "functions.so"
    path.write_bytes(kernels.build("functions", source(), kernels._kernel_flags()))
    return ctypes.CDLL(str(path))


def called(library, name, a, b):
    kind = {torch.float32: "float", torch.float64: "double"}[a.dtype]
    result = torch.empty_like(a)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, result)]
    getattr(library, f"{name}_{kind}")(*pointers, ctypes.c_int64(len(a)))
    return result


def pairs():
    """Of every size, of the sizes that there are in training, and each two special ones."""
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31 - 1, (2, COUNT), generator=generator).to(torch.int32).view(torch.float32)
    usual = torch.randn((2, COUNT), generator=generator) * torch.tensor([[2.0], [20.0]])
    whole = torch.stack([usual[0], usual[1].round()])
    special = torch.tensor([*SPECIAL, *(-value for value in SPECIAL), math.nan])
    every = torch.stack([special.repeat_interleave(len(special)), special.repeat(len(special))])
    return torch.cat([bits, usual, usual.abs(), whole, every], dim=1).contiguous()


@pytest.mark.parametrize("name", sorted(functions.NAMES))
def test_float32_is_rounded_once(library, name):
    a, b = pairs()
    found = called(library, name, a, b)
    exact = getattr(torch, name)(*([a.double()] if name in ONE else [a.double(), b.double()]))
    rounded = exact.float()
    assert torch.equal(found.isnan(), exact.isnan())
    assert torch.equal(found.isinf(), rounded.isinf())
    kept = rounded.isfinite() & found.isfinite()
    found, exact, rounded = found[kept], exact[kept], rounded[kept]
    unit = torch.nextafter(rounded.abs(), torch.tensor(math.inf)).double() - rounded.abs().double()
    kept = unit.isfinite()
    assert ((found.double() - exact).abs() / unit)[kept].max() <= WORST.get(name, 0.53)
    assert torch.equal(found.signbit()[exact != 0], exact.signbit()[exact != 0])
    zero = (exact == 0) & (name != "pow")  # torch's own power of -0 by a tensor is 0
    assert torch.equal(found.signbit()[zero], exact.signbit()[zero]), "the sign of a zero"


@pytest.mark.parametrize("name", sorted(functions.NAMES))
def test_the_same_bits_alone_and_beside_others(library, name):
    a, b = pairs()[:, COUNT : COUNT + 1003]
    together = called(library, name, a, b)
    cut = [called(library, name, a[i:j].clone(), b[i:j].clone()) for i, j in ((0, 1), (1, 20), (20, 511), (511, 1003))]
    assert torch.equal(torch.cat(cut).view(torch.int32), together.view(torch.int32))


@pytest.mark.parametrize("name", sorted(functions.NAMES))
def test_float64_is_libms(library, name):
    a, b = pairs()[:, COUNT : 2 * COUNT].double()
    exact = getattr(torch, name)(*([a] if name in ONE else [a, b]))
    torch.testing.assert_close(called(library, name, a, b), exact, rtol=1e-14, atol=0.0, equal_nan=True)


def test_compilers_make_vectors_of_each(tmp_path):
    if not cache.is_gnu():
        pytest.skip("asks g++ what it made vectors of, and another compiler is in use")
    (tmp_path / "functions.cpp").write_text(source())
    flags = [*kernels._kernel_flags(), "-fPIC", "-w", "-fopt-info-vec", "-c", "functions.cpp", "-o", "functions.o"]
    said = subprocess.run([*cache.compiler(), *flags], cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    lines = source().splitlines()
    heads = [lines[int(line.split(":")[1]) - 3] for line in said.splitlines() if "loop vectorized" in line]
    assert {head.split()[3].split("_float")[0] for head in heads if "_float(" in head} == functions.NAMES


@compiledopt.define
def powers(param, grad, *, lr=0.1, p=0.5):
    return param - lr * grad.abs() ** p


def test_another_exponent_is_no_other_kernel():
    """Where it is ½ the kernel takes roots, as torch does."""
    params, twins = parameters(), parameters()
    optimizer = powers(params)
    for power in (0.5, 0.3, 2.0, 0.5):
        optimizer.param_groups[0]["p"] = power
        Gradients().set(params, 1)
        optimizer.step()
        compiled = STATS.kernels_compiled
        for param, twin in zip(params, twins, strict=True):
            twin.data.sub_(0.1 * param.grad.abs() ** power)
            torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)
    assert STATS.kernels_compiled == compiled
    assert optimizer.executor == "compiled"


def with_functions():
    """Of each published algorithm with powers or angles of elements in its kernel, the richest configuration."""
    for one in MENU.values():
        if one.elementwise and one.configurations and not one.rule.lists:
            optimizer = one.ours(parameters(shapes=[(3,)]), **one.promised)
            program = traced(type(optimizer).rule, optimizer.param_groups[0]).program
            if any(node.op in ("pow", "atan2") for node in program.elementwise_part):
                yield one.cases[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "options"),
    [("g++", {"state_dtype": "int8"}), ("g++", {"max_grad_norm": 1.0, "ema_decay": 0.9}), ("clang++", {})],
    ids=str,
)
@pytest.mark.parametrize("case", list(with_functions()), ids=str)
def test_rules_with_powers_and_angles(monkeypatch, tmp_path, case, options, compiler):
    """As torch's operations have it in float64: with either compiler, and beside what may stand around a rule."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    kernels.forget()
    shapes = [(70, 80), (4100,), (3,)]
    try:
        params, wide = parameters(shapes=shapes), parameters(torch.float64, shapes)
        before = [param.detach().clone() for param in params]
        run(case.ours(params, **options), params, Gradients(), range(3))
        run(case.ours(wide, "for-loop", **options), wide, Gradients(torch.float32), range(3))
    finally:
        kernels.forget()
    for param, twin, old in zip(params, wide, before, strict=True):
        change = (twin - old).abs().max()
        assert change > 1e-4
        assert (param - twin).abs().max() < 1e-2 * change
