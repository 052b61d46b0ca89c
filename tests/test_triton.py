"""The GPU path on a machine without a GPU: generated source, PTX, and Triton's interpreter."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from catalog import CASES, CATALOG, MENU, one_per_kind
from helpers import parameters

import compiledopt
from compiledopt import __main__, around, schedules
from compiledopt.backends.gathered import MOST_TENSORS, relay, settle_scalars
from compiledopt.backends.inductor import lower_triton
from compiledopt.backends.triton import kernels as triton
from compiledopt.backends.triton import norm, proof, readiness, symmetric, tuning
from compiledopt.backends.triton.forms import FORMS, PLAIN, chosen
from compiledopt.backends.triton.reducing import reducing_kernel
from compiledopt.backends.triton.shaped import masks_of
from compiledopt.errors import CompileError
from compiledopt.rules.options import truthy
from compiledopt.rules.program import scalar_program
from compiledopt.rules.traced import traced

if triton.missing():
    pytest.skip(f"{triton.missing()}: the extra `triton` brings it where a wheel exists", allow_module_level=True)
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_for
from triton.runtime.errors import OutOfResources

ELEMENTWISE = [
    case for case in CASES if case.label in ("default", "all", "amsgrad", "nesterov", "momentum", "centered", "etas")
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def program_of(case):
    optimizer = case.ours(parameters(), "for-loop")
    return traced(type(optimizer).rule, optimizer.param_groups[0]).program


def test_adams_source():
    """What stands before Inductor's lines; other versions write the same."""
    from expecttest import assert_expected_inline

    case = next(c for c in CASES if str(c) == "AdamW-default")
    source = triton.kernel(program_of(case), [torch.float32] * 4).source
    assert_expected_inline(
        source.split("(do_not_specialize=")[1],
        """\
['pointers', 'lengths', 'rows', 'blocks', 'table', 'c0_0', 'c0_1', 'c0_2', 'c0_3', 'c0_4', 'c0_5', 'c0_6', 'c1_0', 'c1_1', 'c1_2', 'c1_3', 'c1_4', 'c1_5', 'c1_6', 'c2_0', 'c2_1', 'c2_2', 'c2_3', 'c2_4', 'c2_5', 'c2_6', 'c3_0', 'c3_1', 'c3_2', 'c3_3', 'c3_4', 'c3_5', 'c3_6'])
def whole_model(pointers, lengths, rows, blocks, table, c0_0: "fp32", c0_1: "fp32", c0_2: "fp32", c0_3: "fp32", c0_4: "fp32", c0_5: "fp32", c0_6: "fp32", c1_0: "fp32", c1_1: "fp32", c1_2: "fp32", c1_3: "fp32", c1_4: "fp32", c1_5: "fp32", c1_6: "fp32", c2_0: "fp32", c2_1: "fp32", c2_2: "fp32", c2_3: "fp32", c2_4: "fp32", c2_5: "fp32", c2_6: "fp32", c3_0: "fp32", c3_1: "fp32", c3_2: "fp32", c3_3: "fp32", c3_4: "fp32", c3_5: "fp32", c3_6: "fp32", ROWS: tl.constexpr, XBLOCK: tl.constexpr):
    tensor = tl.load(blocks + 2 * tl.program_id(0)).to(tl.int64)
    xoffset = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * XBLOCK
    xnumel = tl.load(lengths + tensor)
    a0 = tl.load(pointers + tensor * 4 + 0)
    a1 = tl.load(pointers + tensor * 4 + 1)
    a2 = tl.load(pointers + tensor * 4 + 2)
    a3 = tl.load(pointers + tensor * 4 + 3)
    if ROWS == 1:
        s0 = c0_0
        s1 = c0_1
        s2 = c0_2
        s3 = c0_3
        s4 = c0_4
        s5 = c0_5
        s6 = c0_6
    elif ROWS > 1:
        which = tl.load(rows + tensor)
        s0 = tl.where(which == 0, tl.full([], c0_0, tl.float32), tl.where(which == 1, tl.full([], c1_0, tl.float32), tl.where(which == 2, tl.full([], c2_0, tl.float32), tl.full([], c3_0, tl.float32))))
        s1 = tl.where(which == 0, tl.full([], c0_1, tl.float32), tl.where(which == 1, tl.full([], c1_1, tl.float32), tl.where(which == 2, tl.full([], c2_1, tl.float32), tl.full([], c3_1, tl.float32))))
        s2 = tl.where(which == 0, tl.full([], c0_2, tl.float32), tl.where(which == 1, tl.full([], c1_2, tl.float32), tl.where(which == 2, tl.full([], c2_2, tl.float32), tl.full([], c3_2, tl.float32))))
        s3 = tl.where(which == 0, tl.full([], c0_3, tl.float32), tl.where(which == 1, tl.full([], c1_3, tl.float32), tl.where(which == 2, tl.full([], c2_3, tl.float32), tl.full([], c3_3, tl.float32))))
        s4 = tl.where(which == 0, tl.full([], c0_4, tl.float32), tl.where(which == 1, tl.full([], c1_4, tl.float32), tl.where(which == 2, tl.full([], c2_4, tl.float32), tl.full([], c3_4, tl.float32))))
        s5 = tl.where(which == 0, tl.full([], c0_5, tl.float32), tl.where(which == 1, tl.full([], c1_5, tl.float32), tl.where(which == 2, tl.full([], c2_5, tl.float32), tl.full([], c3_5, tl.float32))))
        s6 = tl.where(which == 0, tl.full([], c0_6, tl.float32), tl.where(which == 1, tl.full([], c1_6, tl.float32), tl.where(which == 2, tl.full([], c2_6, tl.float32), tl.full([], c3_6, tl.float32))))
    else:
        scalars = table + tl.load(rows + tensor) * 7
        s0 = tl.load(scalars + 0)
        s1 = tl.load(scalars + 1)
        s2 = tl.load(scalars + 2)
        s3 = tl.load(scalars + 3)
        s4 = tl.load(scalars + 4)
        s5 = tl.load(scalars + 5)
        s6 = tl.load(scalars + 6)
    bits = a0 | a1 | a2 | a3
    if (bits % 16 == 0) & ((xnumel % 16 == 0) | (xoffset + XBLOCK <= xnumel)):
        update(tl.multiple_of(a0.to(tl.pointer_type(tl.float32)), 16), tl.multiple_of(a1.to(tl.pointer_type(tl.float32)), 16), tl.multiple_of(a2.to(tl.pointer_type(tl.float32)), 16), tl.multiple_of(a3.to(tl.pointer_type(tl.float32)), 16), s0, s1, s2, s3, s4, s5, s6, xoffset, xnumel // 16 * 16, XBLOCK)
    else:
        for part in range(0, XBLOCK, 256):
            update(a0.to(tl.pointer_type(tl.float32)), a1.to(tl.pointer_type(tl.float32)), a2.to(tl.pointer_type(tl.float32)), a3.to(tl.pointer_type(tl.float32)), s0, s1, s2, s3, s4, s5, s6, xoffset + part, xnumel, 256)
""",  # noqa: E501
    )
    body = source.split("@triton.jit\n")[1]
    assert [line.split(" = ")[0] for line in body.splitlines()[1:4]] == ["    xindex", "    xmask", "    x0"]


def loads_and_stores(source):
    return len(re.findall(r"tl\.load\(p\d+ \+ x0", source)), len(re.findall(r"tl\.store\(p\d+ \+ x0", source))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_one_kernel_that_moves_each_tensor_once(case, dtype):
    program = program_of(case)
    kernel = triton.kernel(program, [dtype] * len(program.tensors))  # more than one kernel is a CompileError
    read = {arg for node in program.elementwise_part for arg in node.args if arg in program.tensors}
    assert loads_and_stores(kernel.source) == (len(read), len(program.tensor_outputs))
    assert kernel.operands == len(program.tensors) and kernel.columns == len(program.columns)


@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_the_scalar_part_is_one_kernel(case):
    scalars = scalar_program(program_of(case))
    dtypes = [
        torch.float32 if node.name == "step" or node.name.startswith("column") else torch.float64 for node in scalars.tensors
    ]
    source = triton.rows_kernel(scalars, dtypes).source
    assert source.count("@triton.jit") == 1
    assert len(re.findall(r"tl\.store\(", source)) == len(scalars.tensor_outputs)


@pytest.mark.parametrize("arch", [80, 90])
def test_ptx_of_a_schedule(arch):
    """The rate is computed on the device in float64, by one kernel with the rest of the scalar part; and the kernel over the
    model reads and writes an average more, in vectors."""
    lr = schedules.sequential(
        [schedules.linear(), schedules.cosine_annealing_warm_restarts(3, 2), schedules.one_cycle(1.0, 9)], [5, 9]
    )
    group = compiledopt.AdamW([torch.nn.Parameter(torch.ones(1))], lr=lr, max_grad_norm=1.0, ema_decay=0.9).param_groups[0]
    program = traced(around.derived(compiledopt.AdamW.rule, group), group).program
    scalars = scalar_program(program)
    rows = triton.rows_kernel(scalars, triton.usual_dtypes(scalars, {"step", "n_averaged"}))
    assert rows.source.count("@triton.jit") == 1 and "cos(" in rows.source
    built = triton.build_for(rows, arch, block=128)
    assert built.spills == 0 and "f64" in built.ptx
    kernel = triton.kernel(program, [torch.float32] * len(program.tensors))
    assert loads_and_stores(kernel.source) == (5, 4)
    model = triton.build_for(kernel, arch)
    assert (model.vector_loads, model.vector_stores, model.spills) == (10, 8, 0)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in ELEMENTWISE if c.label in ("default", "amsgrad", "all")], ids=str)
def test_ptx(case, dtype, arch):
    """Vector loads and stores of every tensor for blocks that are aligned, and nothing spilled."""
    program = program_of(case)
    kernel = triton.kernel(program, [dtype] * len(program.tensors))
    loads, stores = loads_and_stores(kernel.source)
    rows = (1, triton.FEW, 0) if dtype is torch.float32 else (1, 0)
    # 1024 elements by 128 threads: 8 each, of 4 bytes in two vectors of 16 bytes, of 2 bytes in one.
    vectors = 2 if dtype is torch.float32 else 1
    for built in (triton.build_for(kernel, arch, rows=count) for count in rows):
        assert (built.vector_loads, built.vector_stores) == (vectors * loads, vectors * stores)
        # Six blocks of 128 threads on a processor at least. To have a seventh, ptxas stores four words of the longest rule.
        assert built.spills <= 16 and built.registers <= 80


MENUS = [one for one in MENU.values() if one.rule is not None and one.elementwise and not one.sparse_only]


@pytest.mark.slow
@pytest.mark.parametrize("one", MENUS, ids=str)
def test_ptx_of_the_menu(one):
    """As above, of all that torch lacks: float32 for sm_90."""
    param = torch.nn.Parameter(torch.empty(64, 64, device="meta"))
    group = one.ours([param], **one.promised).param_groups[0]
    program = traced(around.derived(one.rule, group, param=param), group).program
    kernel = triton.kernel(program, [torch.float32] * len(program.tensors))
    loads, stores = loads_and_stores(kernel.source)
    built = triton.build_for(kernel, 90)
    assert (built.vector_loads, built.vector_stores) == (2 * loads, 2 * stores) and loads >= 2 and stores >= 1
    assert built.spills <= 16 and built.registers <= 128


AMD = ("hip", "gfx942", 64)  # of an MI300


def for_amd(kernel, **how):
    """(assembler, registers spilled)"""
    made = triton.compiled_for(kernel, AMD, **how)["amdgcn"]
    return made, int(re.search(r"\.vgpr_spill_count:\s+(\d+)", made).group(1))


def test_kernels_compile_for_amd():
    """Warps of 64 threads, and none of NVIDIA's names: an elementwise kernel with vector loads, states in 4 bits, the norm, and
    all launches of a rule that reduces."""
    pytest.importorskip("triton.backends.amd", reason="this triton has no backend for AMD's GPUs")
    param = torch.nn.Parameter(torch.empty(1024, 1024, device="meta"))
    for options, loads in (({"max_grad_norm": 1.0}, 4), ({"state_dtype": "int4"}, 2)):
        group = compiledopt.AdamW([param], **options).param_groups[0]
        known = traced(around.derived(compiledopt.AdamW.rule, group, param=param), group)
        dtypes = (torch.float32, torch.float32, *known.dtypes_of(param).values())
        made, spilled = for_amd(triton.kernel(known.program, dtypes))
        assert len(re.findall("global_load_dwordx4", made)) == loads and spilled == 0
    made, spilled = for_amd(norm._kernel(torch.float32, (), 1), warps=norm.WARPS)
    assert "global_atomic_add" in made and spilled == 0
    known = traced(compiledopt.Adafactor.rule, compiledopt.Adafactor([param]).param_groups[0])
    variant = known.variant(param)
    kernel = reducing_kernel(variant.passes, (torch.float32, torch.float32, *known.dtypes_of(param).values()))
    for stage, kinds in zip(kernel.stages, masks_of(kernel, [(1, 1024, 1024)]), strict=True):
        assert for_amd(stage, warps=PLAIN.warps, kinds=kinds)[1] == 0


def test_half_types_are_rounded_once():
    case = next(c for c in CASES if str(c) == "AdamW-default")
    for dtype, word in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
        kernel = triton.kernel(program_of(case), [dtype] * 4)
        ptx = triton.build_for(kernel, 90).ptx
        assert f"cvt.rn.{word}" in ptx and "sqrt.rn.f32" in ptx


def test_multiplications_and_additions_are_fused_whatever_triton_does_by_itself(monkeypatch):
    """Triton 3.9 warns where nobody asks, and 3.10 is to fuse none; who sets Triton's variable decides."""
    monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    monkeypatch.setattr(type(knobs.language), "default_fp_fusion", False, raising=False)
    case = next(c for c in CASES if str(c) == "AdamW-default")
    kernel = triton.kernel(program_of(case), [torch.float32] * 4)
    rounded = r"\b(?:add|sub|mul)\.rn\.f32"  # which ptxas does not fuse
    fused = triton.build_for(kernel, 90).count(rounded)
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    assert fused == 0 < triton.build_for(kernel, 90).count(rounded)


def test_what_ptxas_refuses_names_the_version():
    with pytest.raises(CompileError, match=re.escape(f"what triton {triton.version()} made")):
        triton._assembled("no program", 90)


def test_lowering_leaves_torch_as_it_was():
    import torch._dynamo.device_interface as interfaces
    import torch.utils._triton as utilities

    case = next(c for c in CASES if str(c) == "SGD-momentum")
    interfaces.get_interface_for_device("cpu")
    before = (dict(interfaces.device_interfaces), utilities.triton_hash_with_backend, torch.cuda.get_device_capability)
    lower_triton(program_of(case), [torch.float32] * 3)
    after = (dict(interfaces.device_interfaces), utilities.triton_hash_with_backend, torch.cuda.get_device_capability)
    assert before == after


INTERPRETED = ["interpreted.py", "interpreted_captures.py", "interpreted_reductions.py", "interpreted_storage.py"]
INTERPRETED += ["interpreted_matrices.py", "interpreted_shared.py"]


@pytest.mark.processes
def test_in_the_interpreter():
    run_in_the_interpreter("not slow", *INTERPRETED)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("file", INTERPRETED)
def test_much_in_the_interpreter(file):
    run_in_the_interpreter("slow", file)


def run_in_the_interpreter(marked, *files):
    """In a process of its own, since triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COMPILEDOPT_TRITON_ON_CPU": "1"}
    environment["PYTHONPATH"] = str(Path(compiledopt.__file__).parent.parent)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        marked,
        *(str(Path(__file__).parent / file) for file in files),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("name", [one.name for one in one_per_kind(lambda one: one.elementwise)])
def test_explain_for_a_gpu(name, capsys):
    assert __main__.main(["explain", name, "--device", "cuda", "--arch", "sm_90", "--json", "--ptx", "--source"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"] == 1 and told["launches_per_step"] == 1 and told["spills"] == 0 and told["registers"] > 8
    assert told["vector_loads"] == 2 * told["loads_per_element"] and told["vector_stores"] == 2 * told["stores_per_element"]
    assert ".target sm_90" in told["ptx"] and "whole_model" in told["source"] and not told["measured"]
    assert __main__.main(["explain", name, "--device", "cuda", "--arch", "sm_80"]) == 0
    assert "nothing was run on a GPU" in capsys.readouterr().out
    assert __main__.main(["explain", "Shampoo", "--device", "cuda"]) == 1


def test_explain_of_a_state_of_one_number(capsys):
    """What follows from a sum is known in the second launch, and kept in the third."""
    assert __main__.main(["explain", "AdaNorm", "--device", "cuda", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"] == told["launches_per_step"] == 3 and told["spills"] == 0


@pytest.mark.parametrize(
    ("name", "kernels", "calls"),
    [("SGDScheduleFree", 1, {"": 1, "capturable=True": 3}), ("AvaGrad", 3, {"": 9, "capturable=True": 10})],
)
def test_explain_of_what_parameters_share(name, kernels, calls, capsys):
    """Numbers alone are one launch more where they are on the device, beside that of the scalar part; sums are two kernels, and
    what zeros and adds up what these leave."""
    for option, launches in calls.items():
        more = ["--option", option] if option else []
        assert __main__.main(["explain", name, "--device", "cuda", "--json", *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["kernels"], told["launches_per_step"], told["spills"]) == (kernels, launches, 0)


def test_explain_of_sums_over_blocks(capsys):
    assert __main__.main(["explain", "Prodigy", "--device", "cuda", "--option", 'state_dtype="int8"']) == 1
    assert "sums over what is kept in blocks" in capsys.readouterr().err  # what a step would say


STORED = {
    "int8": ("float32", ['state_dtype="int8"'], (10, 6), (2, 1)),
    "int8 and stochastic": ("bfloat16", ['state_dtype="int8"', 'rounding="stochastic"'], (6, 4), (2, 1)),
    "split": ("bfloat16", ['rounding="split"', 'state_dtype="bfloat16"'], (10, 8), (5, 4)),
    "compensated": ("bfloat16", ['rounding="compensated"', 'state_dtype="bfloat16"'], (10, 8), (10, 8)),
    "int4": ("float32", ['state_dtype="int4"'], (9, 5), None),
    "int4 beside uint8": ("float32", ['state_dtype={"exp_avg": "int4", "exp_avg_sq": "uint8"}'], (9.5, 5.5), None),
    "int8 beside float8": ("float32", ['state_dtype={"exp_avg": "int8", "exp_avg_sq": "float8_e4m3fn"}'], (10, 6), None),
}
SCALES = {"int4": 4 * 4 / 128, "int4 beside uint8": 4 * 2 / 128 + 4 * 2 / 32, "int8 beside float8": 4 * 2 / 32 + 4 * 2 / 256}


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=() if (name, arch) == ("int8 and stochastic", "sm_90") else pytest.mark.slow)
        for name in STORED
        for arch in ("sm_80", "sm_90")
    ],
)
def test_explain_of_values_that_are_kept_in_other_ways(name, arch, capsys):
    """One launch, nothing spilled, each tensor once, in vectors where its rows are whole blocks; of states in 8 bits the bytes
    are those and their scales'."""
    dtype, options, moved, vectors = STORED[name]
    command = ["explain", "AdamW", "--device", "cuda", "--arch", arch, "--dtype", dtype, "--json"]
    assert __main__.main([*command, *(word for option in options for word in ("--option", option))]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"] == told["launches_per_step"] == 1 and told["spills"] == 0
    assert told["registers"] <= (168 if name in SCALES else 128)
    scales = 4 * (2 + 2) / 32 if "int8" in name else 0.0
    assert told["bytes_per_element"] == sum(moved) + SCALES.get(name, scales)
    assert vectors is None or (told["vector_loads"], told["vector_stores"]) == vectors


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [("Muon", 6), ("LAMB", 5)])
def test_explain_of_values_that_rules_of_other_kinds_keep(name, kernels, capsys):
    """A launch that decodes and one that encodes, of codes alone; random bits take no memory and spill nothing."""
    command = ["explain", name, "--device", "cuda", "--arch", "sm_90", "--dtype", "bfloat16", "--json", "--source"]
    assert __main__.main([*command, "--option", 'state_dtype="int8"', "--option", 'rounding="stochastic"']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"] == kernels and told["spills"] == 0 and told["registers"] <= 168
    assert "key_of(" in told["source"] and told["vector_loads"] > 0 and told["vector_stores"] > 0


@pytest.mark.parametrize(
    ("name", "arch", "kernels"),
    [
        pytest.param(name, arch, kernels, marks=() if (name, arch) == ("Muon", "sm_90") else pytest.mark.slow)
        for name, kernels in (("Muon", 4), ("AdaMuon", 6), ("NorMuon", 8))
        for arch in ("sm_80", "sm_90")
    ],
)
def test_explain_of_products(name, arch, kernels, capsys):
    """Kernels around torch's products: vector loads and stores of every matrix, next to nothing spilled."""
    assert __main__.main(["explain", name, "--device", "cuda", "--arch", arch, "--json", "--option", "capturable=True"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["products"] == ["newton_schulz on 1 matrix of 1024 × 1024, by calls of torch: 5 bmm, 10 baddbmm, 5 copy"]
    assert told["kernels"] == kernels and told["launches_per_step"] == kernels + 2 + 20
    assert told["spills"] <= 16 and told["registers"] <= 128
    assert told["vector_loads"] >= 2 * told["loads_per_element"] and told["vector_stores"] >= 2 * told["stores_per_element"]
    if name == "Muon":  # momentum and gradient twice, the second time to write the momentum and the matrix; then both are read
        assert (told["loads_per_element"], told["stores_per_element"], told["bytes_per_element"]) == (6, 3, 32)


@pytest.mark.parametrize("capturable", [False, True])
def test_explain_counts_launches(capturable, capsys):
    for name, launches in (("AdamW", 1), ("Adafactor", 5)):
        assert __main__.main(["explain", name, "--device", "cuda", "--json", "--option", f"capturable={capturable}"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["launches_per_step"] == launches + capturable and told["spills"] == 0


def reducing(name, dims, dtype):
    optimizer = getattr(compiledopt, name)([torch.nn.Parameter(torch.ones((2, 3, 4)[:dims]))])
    variant = traced(optimizer.rule, optimizer.param_groups[0]).variant(torch.ones((2, 3, 4)[:dims], dtype=dtype))
    return reducing_kernel(variant.passes, (dtype,) * len(variant.program.tensors))


def test_two_blocks_of_a_launch_have_room():
    """Else it is compiled again, for fewer registers, or for more warps."""
    needed = {PLAIN: (186, 0), FORMS[1]: (128, 120), FORMS[2]: (94, 0)}
    assert chosen({**needed, PLAIN: (128, 0)}.get) is PLAIN and chosen(lambda _: None) is PLAIN
    assert chosen({**needed, PLAIN: (100, 8)}.get) is chosen(needed.get) is FORMS[2]
    assert chosen({**needed, FORMS[1]: (128, 0)}.get) is FORMS[1] and FORMS[1].most == 128


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_ptx_of_a_rule_that_reduces(dims, dtype, arch):
    """With the tiles of a large tensor: nothing spilled, and vector loads and stores of each tensor that a launch reads and
    writes, for tensors whose rows begin on multiples of 16 bytes."""
    kernel = reducing("Adafactor", dims, dtype)
    shape = (1, 1000, 1000) if dims == 2 else (1, 1, 10_000)
    loads = stores = 0
    for stage, mask in zip(kernel.stages, masks_of(kernel, [shape]), strict=True):
        built = triton.build_for(stage, arch, warps=PLAIN.warps, kinds=mask)
        assert built.spills == 0 and built.registers <= 168
        loads, stores = loads + built.vector_loads, stores + built.vector_stores
    per_tensor = 4096 // (32 * PLAIN.warps) * dtype.itemsize // 16
    assert (loads, stores) == ((6 * per_tensor, 2 * per_tensor) if dims == 1 else (5 * per_tensor, per_tensor))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_explain_for_a_gpu_counts_bytes(dtype, size, capsys):
    """What AdamW moves: four tensors read and three written."""
    assert __main__.main(["explain", "AdamW", "--device", "cuda", "--dtype", dtype, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["loads_per_element"], told["stores_per_element"], told["bytes_per_element"]) == (4, 3, 7 * size)


def test_tuning_takes_the_fastest_and_survives_what_cannot_run():
    def milliseconds(candidate):
        if candidate[0] == 4096:
            raise torch.OutOfMemoryError("too much")
        return 1.0 / candidate[0]

    assert tuning.best(milliseconds) == (2048, 8)
    assert tuning.best(lambda _: (_ for _ in ()).throw(OutOfResources(2, 1, "registers"))) is None
    case = next(c for c in CASES if str(c) == "AdamW-default")
    kernel = triton.kernel(program_of(case), [torch.float32] * 4)
    assert tuning.config(kernel.source, torch.device("cpu"), lambda: milliseconds) == tuning.DEFAULT


def test_tuning_goes_around_and_takes_the_least():
    """What is timed first is timed again: clocks that are low at first, or a busy moment, must not decide."""
    slow, seen = {tuning.DEFAULT: 0, (512, 4): 2}, {}

    def milliseconds(candidate):
        seen[candidate] = seen.get(candidate, -1) + 1
        return 9.0 if slow.get(candidate) == seen[candidate] else {tuning.DEFAULT: 2.0, (512, 4): 1.0}.get(candidate, 3.0)

    assert tuning.best(milliseconds) == (512, 4) and set(seen.values()) == {tuning.ROUNDS - 1}


def test_tuning_without_room_is_left_for_another_time(monkeypatch):
    def no_room():
        raise torch.OutOfMemoryError("too much")

    def no_kernel():
        return lambda _: (_ for _ in ()).throw(OutOfResources(2, 1, "registers"))

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning.cache, "load", lambda _: None)
    kernel = triton.kernel(program_of(next(c for c in CASES if str(c) == "AdamW-default")), [torch.float32] * 4)
    assert tuning.config(kernel.source, torch.device("cuda"), no_room) == tuning.DEFAULT and not tuning._known
    assert tuning.config(kernel.source, torch.device("cuda"), no_kernel) == tuning.DEFAULT and not tuning._known
    assert tuning.config(kernel.source, torch.device("cuda"), lambda: lambda candidate: -candidate[0]) == (4096, 8)


def test_a_device_that_is_lost_is_no_fault_of_a_kernel(monkeypatch):
    """An assertion that failed in the model's own kernels is told of where the first of ours waits: it must not be taken for
    ours, and be answered by an eager executor."""
    kernel = triton.kernel(program_of(next(c for c in CASES if str(c) == "AdamW-default")), [torch.float32] * 4)
    place = torch.device("cuda", 7)

    def fail(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "is_capturing", lambda _: False)
    monkeypatch.setattr(readiness, "waiting", lambda _: nullcontext())
    monkeypatch.setattr(torch.accelerator, "synchronize", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        readiness.made_ready(kernel.source, place, fail)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    with pytest.raises(CompileError, match="cannot run on cuda:7: RuntimeError: CUDA error"):
        readiness.made_ready(kernel.source, place, fail)


def test_a_first_step_may_wait(monkeypatch):
    """Where set_sync_debug_mode refuses what waits, a kernel is tried all the same, and steps are looked at as before."""
    mode, seen = [2], []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda value: mode.__setitem__(0, value))
    monkeypatch.setattr(readiness, "_ready", {})
    monkeypatch.setattr(readiness, "is_capturing", lambda _: False)
    monkeypatch.setattr(proof.cache, "load", lambda _: None)
    monkeypatch.setattr(proof.cache, "store", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    kernel = triton.kernel(program_of(next(c for c in CASES if str(c) == "AdamW-default")), [torch.float32] * 4)
    place = torch.device("cuda", 7)
    readiness.made_ready(kernel.source, place, lambda: seen.append(mode[0]))
    proof.remembered(("this",), place, lambda: seen.append(mode[0]))
    assert seen == [0, 0] and mode == [2]


def test_explain_for_a_gpu_tells_of_the_norm(capsys):
    for more, told in (([], False), (["--option", "max_grad_norm=1.0"], True)):
        assert __main__.main(["explain", "SGD", "--device", "cuda", *more]) == 0
        out = capsys.readouterr().out
        assert ("one of the launches reads every gradient once more, for their norm" in out) is told
        assert f"launches per step: {1 + told}" in out


@pytest.mark.parametrize("arch", [80, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (90, 100))])
def test_ptx_of_the_norm(arch):
    """Vector loads, nothing spilled; one atomic operation, of a counter, and a fence before what the last block reads."""
    kernel = norm._kernel(torch.bfloat16, ((0, "bound / norm"),), 1)
    built = triton.build_for(kernel, arch, block=norm.BLOCK, warps=norm.WARPS)
    assert (built.vector_loads, built.spills) == (norm.BLOCK // (32 * norm.WARPS) * 2 // 16, 0) and built.registers <= 64
    assert built.count(r"atom\.global\.gpu\.acq_rel\.add") == built.count(r"\batom\.") == 1


def test_numbers_on_a_device_are_not_read_for_branches():
    """Where a plan is asked whether it fits, at every step; a tensor of the meta device cannot be read at all."""
    there = torch.tensor(0.0, device="meta")
    assert truthy(there) and truthy(torch.tensor(0.5)) and not truthy(torch.tensor(0.0)) and not truthy(0)
    for of in CATALOG.values():
        for branch in of.rule.branches if of.elementwise else ():
            group = of.ours([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
            group[branch] = there
            assert of.rule.read(group).flags and branch in [node.name for node in traced(of.rule, group).program.inputs]


def test_the_operator_is_left_out_of_cuda_graphs():
    """mode="reduce-overhead" asks the operator itself; what a step keeps must not lie in a graph's memory."""
    from torch._inductor.utils import is_cudagraph_unsafe_fx_node

    graph = torch.fx.Graph()
    assert is_cudagraph_unsafe_fx_node(graph.call_function(torch.ops.compiledopt.step.default, (0, [], [], [])))
    assert not is_cudagraph_unsafe_fx_node(graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),)))


def test_more_tensors_than_a_launch_takes():
    """Another executor with the reason, or an error where compiled=True."""
    names = ", ".join(f"s{i}" for i in range(MOST_TENSORS - 1))
    text = f"def Many(param, grad, {names}, *, lr=0.1):\n    return param - lr * grad, {names}\n"
    found = {}
    exec(text, found)
    made = compiledopt.define(found["Many"])
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = made([param])
    with pytest.warns(UserWarning, match="Many has 17 tensors for each parameter, and at most 16 are possible"):
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((4,), 0.9))
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: Many has 17 tensors"):
        made([param], compiled=True).step()
    # 0-dim states count too.
    counted = compiledopt.define(scalars=("s0", "s1"))(found["Many"])
    with pytest.raises(RuntimeError, match="compiled=True cannot be had: Many has 17 tensors"):
        counted([param], compiled=True).step()


def test_states_that_are_moved_under_inference_mode():
    """They are written to later, which inference tensors cannot be."""
    optimizer = compiledopt.AdamW([torch.nn.Parameter(torch.ones(3, 4))])
    known = traced(optimizer.rule, optimizer.param_groups[0])
    state = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 3).t(), "exp_avg_sq": torch.ones(4, 3).t()}
    with torch.inference_mode():
        settle_scalars(known, torch.empty(3, 4, device="meta"), {"capturable": True}, state)
        relay(known, optimizer.param_groups[0]["params"][0], state)
    assert state["step"].device.type == "meta" and state["exp_avg"].is_contiguous()
    assert not any(value.is_inference() for value in state.values())


@pytest.mark.parametrize(
    ("arch", "tiling"),
    [
        pytest.param(arch, tiling, marks=() if (arch, tiling) == (90, symmetric.CANDIDATES[1]) else pytest.mark.slow)
        for arch in (80, 90)
        for tiling in symmetric.CANDIDATES[1:]
    ],
)
def test_symmetric_products_for_gpus(arch, tiling):
    """Where rows and columns are multiples of 16: products of matrices by the tensor cores, loads that are under way meanwhile,
    stores of 16 bytes; and no spills where tiles come first."""
    tile, depth, warps, stages = tiling
    function = symmetric.KERNEL.function
    constants = {"ADDS": True, "TILE": tile, "DEPTH": depth, "x_column": 1}
    types = {"x": "*bf16", "total": "*bf16", "out": "*bf16", "alpha": "fp32", "beta": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    odd = {"alpha", "beta", "tiles", *constants}
    places = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(function.arg_names) if name not in odd}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=places)
    ptx = compile_for(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages}).asm["ptx"]
    registers, spills = triton._assembled(ptx, arch)
    assert ("wgmma.mma_async" if arch == 90 else "mma.sync") in ptx and "cp.async" in ptx
    assert re.search(r"st\.global[.\w]*\.v4", ptx) and not re.search(r"ld\.global\.b16|st\.global\.b16", ptx)
    assert registers <= 255 and (spills == 0 or (arch, warps) == (80, 4))
