"""What is in a compiled kernel: one pass, whatever the cut; conversions of the half types bit for bit as torch's."""

import ctypes
import sys
from itertools import pairwise

import pytest
import torch
from catalog import CASES, DTYPES, in_every_dtype
from helpers import parameters, same

from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp import sources
from compiledopt.backends.cpp.kernels import kernel
from compiledopt.backends.inductor import lower_cpu
from compiledopt.rules.rule import rule
from compiledopt.rules.traced import traced

LENGTH = 1003


def program_of(case):
    optimizer = case.ours(parameters(shapes=[(3,)]))
    return traced(type(optimizer).rule, optimizer.param_groups[0]).program


def example(case, dtype):
    """A traced program, its kernel, tensors for it, and a row of scalars."""
    params = parameters(dtype, [(3,)])
    group = case.ours(params, dtype=dtype).param_groups[0]
    program = traced(type(case.ours(params)).rule, group)
    count = len(program.program.tensors)
    tensors = [torch.randn(LENGTH, dtype=torch.float64).to(dtype) for _ in range(count)]
    for tensor in tensors[2:]:
        tensor.abs_()
    columns, _ = program.scalars(program.rule.read(group).numbers, {}, (0.0, *[3.0] * len(program.scalar_names)))
    return program, kernel(program.program, [dtype] * count), tensors, columns


def launch(compiled, tensors, columns, pieces):
    """Run a kernel piece by piece, each piece [begin, end)."""
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(compiled.address)
    table = (ctypes.c_double * max(1, len(columns)))(*columns)
    for begin, end in pieces:
        pointers = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() + begin * t.element_size() for t in tensors])
        run(ctypes.addressof(pointers), ctypes.addressof(table), end - begin)


# One case for each kernel: others have the same, and other numbers.
KERNELS = {(program_of(case).kernel_text): case for case in reversed(CASES)}


@pytest.mark.parametrize(("case", "dtype"), in_every_dtype(KERNELS.values(), [torch.bfloat16], slow=DTYPES))
def test_a_cut_changes_no_bit(case, dtype):
    """A thread's share begins anywhere, so an element may be in a vector here and in the remainder there."""
    _, compiled, tensors, columns = example(case, dtype)
    whole = [t.clone() for t in tensors]
    launch(compiled, whole, columns, [(0, LENGTH)])
    assert any(not torch.equal(a, b) for a, b in zip(whole, tensors, strict=True))
    cuts = [0, 1, 2, 7, 20, 37, 64, 65, 300, 511, 515, 900, 901, 902, LENGTH]
    pieced = [t.clone() for t in tensors]
    launch(compiled, pieced, columns, list(pairwise(cuts)))
    assert same(whole, pieced)
    assert torch.equal(whole[1], tensors[1]), "the gradient was written"


@pytest.mark.parametrize("case", KERNELS.values(), ids=str)
def test_kernel_is_one_loop_with_the_least_traffic(case):
    """Each tensor is loaded once per element, and what changes is stored once."""
    program, compiled, _, _ = example(case, torch.float32)
    body = compiled.source[compiled.source.index("kernel(") : compiled.source.index('extern "C" void run')]
    assert body.count("for(") == 1
    loads = [line for line in body.splitlines() if "= in_ptr" in line and "x0" in line]
    stores = [line for line in body.splitlines() if line.strip().startswith(("out_ptr", "in_out_ptr"))]
    reads = {node.name for node in program.program.tensors}
    assert len(loads) == len(reads)
    assert len(stores) == len(program.program.tensor_outputs)


@rule()
def copy_grad(param, grad):
    return grad * 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions(dtype):
    """float32 → half for a float32 of every exponent, and half → float32 for every bit pattern, against torch."""
    program = traced(copy_grad, {}).program
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    up = torch.zeros(2**16)
    launch(kernel(program, [torch.float32, dtype]), [up, every], [], [(0, 2**16)])
    number = ~every.isnan()  # the sign of a NaN is not the same on all processors
    assert torch.equal(up.isnan(), ~number)
    assert torch.equal(up[number].view(torch.int32), every.float()[number].view(torch.int32))
    bits = torch.randint(-(2**31), 2**31 - 1, (2**20,), dtype=torch.int64).to(torch.int32)
    around = (up.view(torch.int32)[:, None] + torch.tensor([-1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001])).reshape(
        -1
    )
    wide = torch.cat([bits, around.to(torch.int32)]).view(torch.float32)
    down = torch.zeros(len(wide), dtype=dtype)
    launch(kernel(program, [dtype, torch.float32]), [down, wide], [], [(0, len(wide))])
    expected = wide.to(dtype)
    assert torch.equal(down.isnan(), expected.isnan())
    finite = ~expected.isnan()
    assert torch.equal(down[finite].view(torch.int16), expected[finite].view(torch.int16))


def scaled_by(number):
    """A rule with a constant of its own."""

    @rule()
    def scaled(param, grad):
        return param - number * grad

    return traced(scaled, {}).program


def test_one_compiler_run_per_kernel(monkeypatch, tmp_path):
    """One for a program and dtypes, however often it is asked for; none where it is on disk."""
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    cpp.launcher()
    built, build = [], cpp.build
    monkeypatch.setattr(cpp, "build", lambda name, *given: built.append(name) or build(name, *given))
    for dtypes in ([torch.float32] * 2, [torch.float64] * 2, [torch.float32] * 2):
        kernel(scaled_by(0.6180339), dtypes)
    assert len(built) == 2
    cpp._kernels.clear()
    kernel(scaled_by(0.6180339), [torch.float32] * 2)
    assert len(built) == 2


def test_another_constant_is_another_kernel():
    for number in (0.25, 0.5):
        param, grad = torch.zeros(20), torch.ones(20)
        launch(kernel(scaled_by(number), [torch.float32] * 2), [param, grad], [], [(0, 20)])
        assert param.tolist() == [-number] * 20


def test_lowering_leaves_inductor_as_it_was():
    """Whatever modules of it took over the names that stand-ins have while a kernel is lowered."""
    from torch._inductor import cpp_builder, cpu_vec_isa

    known = {"pick_vec_isa": cpu_vec_isa.pick_vec_isa, "is_gcc": cpp_builder.is_gcc}
    lower_cpu(scaled_by(0.125), [torch.float32] * 2)
    for name, module in list(sys.modules.items()):
        for attribute, value in known.items():
            if name.startswith("torch._inductor"):
                assert getattr(module, attribute, value) is value, f"{name}.{attribute}"
    assert known["pick_vec_isa"].__module__ == "torch._inductor.cpu_vec_isa"
    assert known["is_gcc"].__module__ == "torch._inductor.cpp_builder"


@rule()
def with_functions(param, grad, *, lr):
    return param - lr * (torch.tanh(grad) + grad.sin() * grad.abs().log() + grad.exp().floor())


def check_functions(compiled):
    param, grad = torch.randn(50), torch.randn(50)
    expected = param - 0.5 * (torch.tanh(grad) + grad.sin() * grad.abs().log() + grad.exp().floor())
    launch(compiled, [param, grad], [0.5], [(0, 50)])
    torch.testing.assert_close(param, expected)


def test_functions_of_the_math_library():
    check_functions(kernel(traced(with_functions, {"lr": 0.5}).program, [torch.float32] * 2))


@pytest.mark.slow
def test_functions_that_our_prefix_lacks(monkeypatch, tmp_path):
    """torch's headers are the second try; they take seconds to compile."""
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    prefix = cpp.prefix().replace("#include <cmath>", "#define floor(x) there_is_none(x)")
    for module in (cpp, sources):
        monkeypatch.setattr(module, "prefix", lambda: prefix)
    program = traced(with_functions, {"lr": 0.5}).program
    cpp._kernels.pop((program.kernel_text, (torch.float32, torch.float32)), None)
    try:
        check_functions(kernel(program, [torch.float32] * 2))
    finally:
        cpp._kernels.pop((program.kernel_text, (torch.float32, torch.float32)), None)
