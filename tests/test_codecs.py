"""Codecs against their maps written out, and what a step makes of them: the same codes for every executor, any number of
threads and after a file; into every other precision and back."""

import copy
import itertools
import re

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt.backends.blocks import Blocks, packed_shape, rows_of, scales_of
from compiledopt.rules.program import BLOCKS, ELEMENTS, PACKED
from compiledopt.storage import CODECS
from compiledopt.storage.cut import decoded, encoded

IN_BLOCKS = [name for name, codec in CODECS.items() if codec.block]
ASKED = ["dynamic8", "float8_e4m3fn", "int4"]
OF_ROOTS = ["uint4"]  # the nearest root
MATRICES = [(20, 256), (21, 333), (30, 10, 5, 6), (5,)]  # whole blocks, a row with a rest, several dimensions, too small
FINE = {
    "int8": 0.012,
    "uint8": 0.012,
    "dynamic8": 0.012,
    "udynamic8": 0.008,
    "float8_e4m3fn": 0.036,
    "int4": 0.17,
    "uint4": 0.063,
}


def dynamic_map(signed, decades, bits):
    """As bitsandbytes makes it: in each decade the middles of equal parts, then 0 and 1."""
    found = [0.0, 1.0]
    for i in range(decades):
        parts = 2 ** (i + bits - 1 - decades + (not signed))
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float64)
        middles = 10.0 ** (i + 1 - decades) * (edges[1:] + edges[:-1]) / 2
        found += middles.tolist() + ((-middles).tolist() if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float64)


def values_of(name, rows=6, row=777, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, row, generator=generator) * torch.exp(2 * torch.randn(rows, row, generator=generator))
    return values if CODECS[name].signed else values.abs()


def levels_of(name):
    """The shares of a block's largest size that a codec has, written out."""
    if name == "uint4":
        return (torch.arange(1, 17, dtype=torch.float64) / 16) ** 2
    if name == "float8_e4m3fn":
        every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        return every[every.isfinite()].unique() / 448
    if name == "int4":
        found = dynamic_map(True, 3, 4)
        return torch.cat([found[(found.abs() < 0.8)], torch.tensor([-1.0, 1.0], dtype=torch.float64)]).sort().values
    found = dynamic_map(name == "dynamic8", 7, 8)
    most = {"dynamic8": 0.97, "udynamic8": 0.985}[name]  # codes above are what is not finite
    ones = [-1.0, 1.0] if name == "dynamic8" else [1.0]
    return torch.cat([found[found.abs() < most], torch.tensor(ones, dtype=torch.float64)]).sort().values


@pytest.mark.parametrize("name", ["dynamic8", "udynamic8", "float8_e4m3fn", "int4", "uint4"])
def test_a_value_becomes_the_nearest_of_the_map(name):
    codec, levels = CODECS[name], levels_of(name)
    shares = torch.rand(64, codec.block, dtype=torch.float64) * 10.0 ** -(7 * torch.rand(64, codec.block, dtype=torch.float64))
    shares[:, 0] = 1.0
    if codec.signed:
        shares *= torch.randint(0, 2, shares.shape) * 2 - 1
    values = (shares * 3.7).float()
    codes, scale = codec.encode(values, None)
    found = codec.decode(codes, scale).double() / scale
    exact = values.double() / scale
    as_compared = torch.sqrt if name in OF_ROOTS else torch.Tensor.clone
    nearest = levels[(as_compared(exact).unsqueeze(-1) - as_compared(levels)).abs().argmin(-1)]
    least = levels[levels > 0].min() * (name != "int4" and name != "dynamic8")  # those never make 0 of what is not
    nearest = torch.where((nearest == 0) & (exact != 0), exact.sign() * least, nearest)
    assert len(found.unique()) > len(levels) // 2 and scale.shape == (64, 1) and (scale > 3.69).all()
    found, exact, nearest, levels = map(as_compared, (found, exact, nearest, levels))
    assert ((found - exact).abs() <= (nearest - exact).abs() + 2e-6).all(), "another one is nearer"
    assert (found.unsqueeze(-1) - levels).abs().amin(-1).max() < 1e-6, "a value that is none of the map"


@compiledopt.define
def inverting(param, grad, state):
    """Of a zero it makes the largest."""
    state = 1 / (grad.abs() + 1e-6)
    return param - 0.0 * state, state


@pytest.mark.parametrize("how", [{"compiled": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_what_a_block_is_filled_up_with_does_not_count(how):
    param = torch.nn.Parameter(torch.zeros(3, 75))
    param.grad = torch.rand(3, 75, generator=torch.Generator().manual_seed(0)) + 0.1
    optimizer = inverting([param], state_dtype="int8", min_quantized_numel=0, **how)
    optimizer.step()
    rows = torch.nn.functional.pad(1 / (param.grad + 1e-6), (0, 21)).view(3, 3, 32)
    torch.testing.assert_close(optimizer.state[param]["state_scale"], rows.amax(-1), rtol=1e-5, atol=0)


def keeping(param, grad, state):
    """state ← g, so that a step encodes it."""
    return param, grad


KEEPING = {True: compiledopt.define(keeping), False: compiledopt.define(keeping, never_negative=("state",))}


def codes_of(name, shares, compiled):
    """What a step makes of values in blocks whose largest is 1, as integers."""
    codec = CODECS[name]
    shares = shares if codec.signed else shares.abs()
    rows = torch.nn.functional.pad(shares, (0, -len(shares) % (codec.block - 1))).view(-1, codec.block - 1)
    param = torch.nn.Parameter(torch.zeros(len(rows), codec.block))
    param.grad = torch.cat([torch.ones(len(rows), 1), rows], 1)
    how = {"compiled": True} if compiled else {"foreach": False}
    optimizer = KEEPING[codec.signed]([param], state_dtype=name, min_quantized_numel=0, **how)
    optimizer.step()
    codes, scale = (optimizer.state[param][key] for key in ("state", "state_scale"))
    assert codes.dtype == codec.dtype and (scale == 1).all()
    return codes.view(torch.uint8).clone()


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_kernels_make_the_same_codes_where_they_change(name):
    """Of the eight floats before and after each place between two values of a codec."""
    every = (
        torch.arange(-128.0, 128) if CODECS[name].dtype == torch.int8 else torch.arange(0.0, 16 if name.endswith("4") else 256)
    )
    levels = CODECS[name].decode(every, torch.ones(()))
    levels = levels[levels.isfinite()].unique()
    middles = (levels[1:] + levels[:-1]) / 2
    if name in OF_ROOTS:
        middles = ((levels[1:].sqrt() + levels[:-1].sqrt()) / 2) ** 2
    near = (middles.view(torch.int32)[:, None] + torch.arange(-8, 9, dtype=torch.int32)).flatten().view(torch.float32)
    near = torch.cat([near[near.abs() <= 1], levels, torch.tensor([0.0, -0.0, 1e-45, -1e-45])])
    kernel, plain = codes_of(name, near, True), codes_of(name, near, False)
    assert same(kernel, plain) and len(kernel.unique()) >= len(levels) - 1


def stepping(param, grad, state):
    """Numbers chosen by where a gradient stands, which kernels look up: among powers of two, and among others."""
    by_octaves, by_edges = torch.where(grad >= 0.5, 1.25, -3.0), torch.where(grad >= 1e-4, 7.0, 0.5)
    for edge, value in ((1.0, -0.75), (2.0, 2.5), (4.0, 11.0)):
        by_octaves = torch.where(grad >= edge, value, by_octaves)
    for edge, value in ((0.003, -1.5), (0.05, 9.0), (0.7, 0.25), (2.0, 3.5), (5.0, 6.0)):
        by_edges = torch.where(grad >= edge, value, by_edges)
    return param + by_octaves, torch.maximum(state, by_edges)


STEPPING = compiledopt.define(stepping)


def test_what_is_looked_up_is_what_is_chosen():
    """At every edge and on both sides, and of what is negative, infinite, tiny or no number."""
    edges = torch.tensor([0.5, 1.0, 2.0, 4.0, 1e-4, 0.003, 0.05, 0.7, 5.0])
    near = (edges.view(torch.int32)[:, None] + torch.arange(-2, 3, dtype=torch.int32)).flatten().view(torch.float32)
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e38, torch.inf, -torch.inf, torch.nan, 100.0, 8.0, 0.25, 3e-9])
    gradient = torch.cat([near, -near, odd, -odd, torch.logspace(-12, 12, 142)])
    found = []
    for how in ({"compiled": True}, {"foreach": False}):
        param = torch.nn.Parameter(torch.zeros(4, 64))
        param.grad = gradient.view(4, 64).clone()
        optimizer = STEPPING([param], state_dtype="int8", min_quantized_numel=0, **how)
        optimizer.step()
        found.append([param.detach().clone(), optimizer.state[param]["state"], optimizer.state[param]["state_scale"]])
        if "compiled" in how:
            assert str(optimizer.explain(source=True)).count("lanes::at<") == 2
    assert same(*found) and len(found[0][0].unique()) == 5 and len(found[0][1].unique()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_kernels_make_the_same_codes_of_floats_of_all_sizes(name):
    """Every 997th of the floats between -1 and 1, which are half of all."""
    bits = torch.arange(0, 0x3F800001, 997, dtype=torch.int32)
    values = torch.cat([bits, bits | -0x80000000]).view(torch.float32)
    assert same(codes_of(name, values, True), codes_of(name, values, False))


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_what_is_not_finite_stays_at_its_element(name):
    codec = CODECS[name]
    values = values_of(name, 5, 2 * codec.block)
    special = torch.tensor([torch.nan, torch.inf] + ([-torch.inf] if codec.signed else []))
    values[0, 3 : 3 + len(special)] = special
    values[1, -1] = torch.nan
    values[2] = 0
    values[3] *= 1e-41
    values[4] *= 1e37 / values[4].abs().max()
    param = torch.nn.Parameter(torch.empty(values.shape))
    codes, scale = encoded(codec, values, param)
    found = decoded(codec, codes, scale, param)
    odd = ~values.isfinite()
    assert codes.dtype == codec.dtype and scale.dtype == torch.float32
    assert same(found[odd].nan_to_num(7.0), values[odd].nan_to_num(7.0)) and (found[odd].isnan() == values[odd].isnan()).all()
    blocks = values.nan_to_num(0, 0, 0).abs().reshape(5, 2, -1)
    most = blocks.amax(-1, keepdim=True).expand_as(blocks).reshape(5, -1)
    marked = (odd.reshape(5, 2, -1).any(-1, keepdim=True).expand_as(blocks).reshape(5, -1)) & codec.packed  # coarser there
    assert ((found - values).abs() <= FINE[name] * most * (1 + 1e-3))[~odd & ~marked].all()
    assert ((found - values).abs() <= 0.4 * most)[~odd].all() and (found[2] == 0).all()


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_what_was_decoded_is_encoded_as_it_was(name):
    codec, param = CODECS[name], torch.nn.Parameter(torch.empty(6, 777))
    codes, scale = encoded(codec, values_of(name), param)
    again, scales = encoded(codec, decoded(codec, codes, scale, param), param)
    assert same(again, codes) and ((scales - scale).abs() <= 1e-6 * scale).all() and codes.float().unique().numel() > 8


@pytest.mark.parametrize("shape", [(5, 80), (2, 3, 14), (0, 80), (3, 0), (0,), (0, 0)], ids=str)
def test_a_parameter_is_cut_into_blocks_and_put_together(shape):
    """One without elements too, as a shard may be."""
    cut, values = Blocks(torch.Size(shape), {"codes": 32, "scales": 16}), torch.randn(shape)
    rows, row = rows_of(values.shape)
    blocks = cut.into(values, ELEMENTS)
    assert blocks.shape == (rows, -(-row // 32), 32) and same(cut.back(blocks, ELEMENTS), values)
    scales = torch.rand(scales_of(values.shape, 16))
    spread = cut.into(scales, BLOCKS, "scales")
    assert spread.shape == blocks.shape and same(cut.back(spread, BLOCKS, "scales"), scales)
    codes = torch.randint(0, 256, packed_shape(values.shape), dtype=torch.uint8)
    unpacked = cut.into(codes, PACKED, "codes")
    assert unpacked.shape == blocks.shape and same(cut.back(unpacked, PACKED, "codes"), codes)


def trained(shapes=MATRICES, steps=4, kind=compiledopt.AdamW, dtype=torch.float32, **options):
    params = parameters(dtype, shapes)
    optimizer = kind(params, lr=0.01, **options)
    run(optimizer, params, Gradients(), range(steps))
    return optimizer, params


MIXED = {"exp_avg": "int8", "exp_avg_sq": "uint4"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_itself_is_kept_in_blocks_by_a_kernel(dtype):
    """A state that is no more than what was read, as DiffGrad's last gradient."""
    (one, _), (other, _) = (
        trained(kind=compiledopt.DiffGrad, dtype=dtype, state_dtype="int8", **EXECUTORS[how])
        for how in ("compiled", "for-loop")
    )
    for mine, theirs in zip(snapshot(one)[:3], snapshot(other)[:3], strict=True):
        assert same(mine[2]["previous_grad"], theirs[2]["previous_grad"]) and mine[2]["previous_grad"].abs().max() == 126
        assert rms(mine[0].double() - theirs[0].double()) < 1e-3 * rms(mine[0].double())


@pytest.mark.parametrize("asked", [*ASKED, MIXED], ids=str)
def test_executors_make_the_same_codes(asked):
    """And the same parameters, bit for bit, where the processor has a fused multiply-add and the kernel too."""
    found = {how: trained(state_dtype=asked, **options) for how, options in EXECUTORS.items()}
    for how, (optimizer, params) in found.items():
        codes = [v for p in params[:3] for v in optimizer.state[p].values() if v.dtype.itemsize == 1]
        assert optimizer.executor == how and len(codes) == 6
        assert all(len(code.view(torch.uint8).unique()) > 8 for code in codes), "codes that are all alike"
    compiled, foreach, loop = ([one[:3] for one in zip(*snapshot(o)[:3], strict=True)] for o, _ in found.values())
    assert same(compiled, loop) and same(foreach, loop)


@pytest.mark.parametrize("asked", [*ASKED, MIXED], ids=str)
def test_a_step_decodes_before_and_encodes_after_the_rule(asked):
    """Against torch's AdamW in float64, whose states go through the codec after each step."""
    optimizer, params = trained(steps=0, state_dtype=asked, compiled=True)
    exact = copies(params, torch.float64)
    reference = torch.optim.AdamW(exact, lr=0.01, foreach=False)
    plain, start = copies(params, torch.float64), flat(params)
    for step in range(4):
        Gradients().set(params, step)
        Gradients().set(exact, step)
        optimizer.step()
        reference.step()
        for p, q in list(zip(params, exact, strict=True))[:3]:
            for name, unsigned in (("exp_avg", False), ("exp_avg_sq", True)):
                wish = asked if isinstance(asked, str) else asked[name]
                codec = CODECS[CODECS[wish].unsigned or wish] if unsigned else CODECS[wish]
                value = reference.state[q][name]
                value.copy_(decoded(codec, *encoded(codec, value.float(), p), p))
                assert optimizer.state[p][name].dtype == codec.dtype
    run(torch.optim.AdamW(plain, lr=0.01, foreach=False), plain, Gradients(), range(4))
    moved, apart = rms(flat(exact) - start), rms(flat(exact) - flat(plain))
    assert moved > 1e-2 and apart > 1e-3 * moved and rms(flat(params) - flat(exact)) < 0.1 * apart


@pytest.mark.parametrize("asked", [*ASKED, MIXED], ids=str)
def test_threads_make_the_same_codes(asked):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        optimizer, _ = trained([(700, 512), (301, 777)], 2, state_dtype=asked, max_grad_norm=1.0)
        found.append(snapshot(optimizer))
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("asked", [*ASKED, MIXED], ids=str)
def test_a_run_goes_on_from_a_file_and_from_a_copy(asked, tmp_path):
    optimizer, params = trained(state_dtype=asked)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = copies(params)
    again = compiledopt.AdamW(twins, lr=0.5, state_dtype=asked)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    third = copy.deepcopy(optimizer)
    run(optimizer, params, Gradients(), range(4, 6))
    for other in (again, third):
        run(other, other.param_groups[0]["params"], Gradients(), range(4, 6))
        assert same([s for _, _, s in snapshot(optimizer)], [s for _, _, s in snapshot(other)])
        assert same([p.detach() for p in params], [p.detach() for p in other.param_groups[0]["params"]])


ALL = [None, "int8", "bfloat16", *ASKED, MIXED]


@pytest.mark.parametrize(
    ("there", "here"), [p for p in itertools.product(ALL, ALL) if {*map(str, p)} & {*ASKED, str(MIXED)}], ids=str
)
def test_states_load_into_any_precision(there, here):
    """And into torch's AdamW, and from it, as the codecs of both convert them."""
    optimizer, params = trained(steps=2, state_dtype=there, foreach=False)
    target = compiledopt.AdamW(copies(params), state_dtype=here, foreach=False)
    target.load_state_dict(optimizer.state_dict())
    theirs = torch.optim.AdamW(copies(params))
    theirs.load_state_dict(target.state_dict(precision="float32"))
    exact = optimizer.state_dict(precision="float32")["state"]
    back = compiledopt.AdamW(copies(params), state_dtype=here, foreach=False)
    back.load_state_dict(theirs.state_dict())
    for index, (p, q) in enumerate(zip(theirs.param_groups[0]["params"], back.param_groups[0]["params"], strict=True)):
        for name in ("exp_avg", "exp_avg_sq"):
            found, wanted = theirs.state[p][name], exact[index][name]
            assert found.dtype == wanted.dtype == torch.float32 and wanted.abs().max() > 0
            most = 0.2 if "int4" in f"{here}{there}" else 0.05
            assert rms(found - wanted) <= (0 if here == there and here != "int8" else most) * rms(wanted) + 1e-12
            mine = target.state[target.param_groups[0]["params"][index]][name]
            assert same(back.state[q][name], mine) or here == "int8"
    run(target, target.param_groups[0]["params"], Gradients(), range(2, 3))
    run(theirs, theirs.param_groups[0]["params"], Gradients(), range(2, 3))


@pytest.mark.parametrize(("asked", "most"), [("int8", 2.3), ("dynamic8", 2.05), ("float8_e4m3fn", 2.05), ("int4", 1.2)])
def test_bytes_of_state_per_parameter(asked, most):
    optimizer, params = trained([(64, 1024)], 1, state_dtype=asked, foreach=False)
    held = sum(value.nbytes for value in optimizer.state[params[0]].values()) / params[0].numel()
    said = float(re.search(r"; ([\d.]+) bytes per element", optimizer.explain())[1])
    assert 0 < held <= most and said == pytest.approx(held, rel=1e-3)


SMALL = [(9,), (), (3, 5), (0,), (4, 2, 3), (0, 40), (3, 0)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_small_parameters_are_kept_in_blocks_where_that_is_asked(asked, executor):
    shapes = [*SMALL, (32, 128)]
    plain, params = trained(shapes, 2, state_dtype=asked, **EXECUTORS[executor])
    assert [plain.state[p]["exp_avg"].dtype.itemsize for p in params] == [4] * len(SMALL) + [1]
    optimizer, params = trained(shapes, 3, state_dtype=asked, min_quantized_numel=0, **EXECUTORS[executor])
    assert all(optimizer.state[p]["exp_avg"].dtype.itemsize == 1 for p in params) and optimizer.executor == executor
    _, others = trained(shapes, 3, state_dtype=asked, min_quantized_numel=0, foreach=False)
    assert rms(flat(params) - flat(others)) < 1e-3 * rms(flat(params) - flat(parameters(shapes=shapes)))
    some, params = trained(shapes, 1, state_dtype=asked, min_quantized_numel=9, foreach=False)
    assert [some.state[p]["exp_avg"].dtype.itemsize for p in params] == [1, 4, 1, 4, 1, 4, 4, 1]


def test_explain_says_how_values_are_kept_and_why_not():
    params = parameters(shapes=[(64, 64), (63, 64), (5000,), (5000, 3)])
    text = compiledopt.AdamW(params, state_dtype="int8", rounding="split").explain()
    for words in (
        "exp_avg as int8, in blocks of 32",
        "exp_avg_sq as uint8, in blocks of 32",
        "exp_avg not as int8: the parameter has fewer than 4096 elements (1 tensor)",
        "exp_avg not as int8: the parameter has fewer than 2 dimensions (1 tensor)",
        "exp_avg not as int8: the parameter's rows have fewer than 32 elements (1 tensor)",
        'param rounded to nearest, not "split", which is for bfloat16',
    ):
        assert words in text, words
    complex_ = [torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.complex64))]
    assert "not as int4: the parameter is complex" in compiledopt.AdamW(complex_, state_dtype="int4").explain()


def test_what_is_one_number_for_each_tensor_is_so_for_a_number_too():
    """NovoGrad's v has the shape of a parameter that is one element; it is kept as that of others."""
    shapes = [(), (1,), (1, 1), (3, 5), (64, 64)]
    optimizer, params = trained(shapes, 2, compiledopt.NovoGrad, state_dtype="int4", min_quantized_numel=0, foreach=False)
    for param in params:
        state = optimizer.state[param]
        assert state["exp_avg"].dtype == torch.uint8 and state["exp_avg_sq"].dtype == torch.float32
    again = compiledopt.NovoGrad(copies(params), lr=0.01, foreach=False)
    again.load_state_dict(optimizer.state_dict(precision="float32"))


@pytest.mark.parametrize("kept", ["float32", "bfloat16_nearest"])
def test_rules_that_are_called_on_tensors_take_states_narrower_than_their_parameter(kept):
    found = []
    for asked in (kept, None):
        _, params = trained([(24, 40)], 3, compiledopt.AdaMuon, torch.float64, state_dtype=asked, foreach=False)
        found.append(flat(params))
    moved = rms(found[1] - flat(parameters(torch.float64, [(24, 40)])))
    assert moved > 1e-3 and 0 < rms(found[0] - found[1]) < (1e-4 if kept == "float32" else 0.05) * moved


def made_of_options(param, grad, average, *, lr, start):
    """average ← the mean of itself and the gradient."""
    average = 0.5 * average + 0.5 * grad
    return param - lr * average, average


def test_states_made_by_functions_are_kept_in_blocks():
    Own = compiledopt.define(
        made_of_options, initial={"average": lambda param, options: torch.full_like(param, options["start"])}
    )
    found = []
    for options in ({"state_dtype": "int8", "compiled": True}, {"state_dtype": "int8", "foreach": False}, {}):
        params = parameters(shapes=[(64, 64)])
        optimizer = Own(params, lr=0.1, start=0.75, **options)
        run(optimizer, params, Gradients(), range(2))
        found.append(flat(params))
        assert optimizer.state[params[0]]["average"].dtype == (torch.int8 if options else torch.float32)
    moved = rms(found[2] - flat(parameters(shapes=[(64, 64)])))
    assert rms(found[0] - found[1]) < 1e-5 * moved and 0 < rms(found[0] - found[2]) < 0.03 * moved > 1e-3


@pytest.mark.parametrize("asked", ["uint8", "uint4", {"exp_avg": "udynamic8"}], ids=str)
def test_codes_without_a_sign_are_for_states_that_are_never_negative(asked):
    with pytest.raises(ValueError, match=r"is for states that are never negative, which is not proved of exp_avg of adam"):
        compiledopt.AdamW(parameters(), state_dtype=asked)
    compiledopt.AdamW(parameters(), state_dtype={"exp_avg_sq": "uint4"})


@pytest.mark.parametrize("least", [-1, True, False, 4096.0])
def test_a_least_size_that_is_none_is_refused(least):
    with pytest.raises(ValueError, match=f"Invalid min_quantized_numel value: {least}; it is an integer >= 0"):
        compiledopt.AdamW(parameters(), state_dtype="int8", min_quantized_numel=least)


@pytest.mark.parametrize("name", ["state_dtype", "rounding", "seed", "max_grad_norm", "ema_decay", "update_clipping"])
def test_true_is_no_number_and_no_name(name):
    """Where options have values, to ask for what they switch on says nothing of how."""
    with pytest.raises(ValueError, match=r"Invalid (\w+|decay) value:? True"):
        compiledopt.AdamW(parameters(), **{name: True})


# ---- parameters and gradients of different dtypes ----

DTYPES = [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.bfloat16)]
ROUNDINGS = ["nearest", "stochastic", "compensated", "split"]


def with_gradients(params, dtype, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad_dtype = dtype
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("own", "gradient"), DTYPES, ids=str)
def test_gradients_of_another_dtype(own, gradient, rounding):
    """Within what the parameter's dtype keeps, of float64; the same for every executor, but for float32's last bit."""
    shapes, found = [(40, 50), (33,)], []
    for options in EXECUTORS.values():
        params = parameters(own, shapes)
        optimizer = compiledopt.AdamW(params, lr=0.01, rounding=rounding, state_dtype="float32", **options)
        with_gradients(params, gradient, optimizer, range(4))
        assert all(p.dtype == own and p.grad.dtype == gradient for p in params)
        found.append(flat(params))
    exact = copies(parameters(own, shapes), torch.float64)
    reference, start = torch.optim.AdamW(exact, lr=0.01, foreach=False), flat(exact)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for param in exact:
            param.grad = torch.randn(param.shape, generator=generator).to(gradient).double()
        reference.step()
    moved = rms(flat(exact) - start)
    most = {torch.bfloat16: 0.2, torch.float16: 0.02, torch.float32: 1e-5}[own] * (3 if rounding == "stochastic" else 1)
    assert moved > 1e-2 and rms(found[0] - flat(exact)) < most * moved
    assert all((other != found[0]).double().mean() < 0.01 or rms(other - found[0]) < 1e-5 * moved for other in found[1:])


@pytest.mark.parametrize("gradient", [torch.bfloat16, torch.float32], ids=str)
def test_split_is_a_float32_master_over_a_hundred_steps_in_its_bytes(gradient):
    half = parameters(torch.bfloat16, [(64, 128), (33,)])
    single = copies(half, torch.float32)
    ours = compiledopt.AdamW(half, lr=1e-3, rounding="split", state_dtype="float32", compiled=True)
    reference = compiledopt.AdamW(single, lr=1e-3, compiled=True)
    with_gradients(half, gradient, ours, range(100))
    with_gradients(single, gradient, reference, range(100))
    for h, s in zip(half, single, strict=True):
        master = (h.detach().view(torch.int16).int() << 16) + ours.state[h]["rest"].int()
        assert torch.equal(master.view(torch.float32), s.detach()) and not torch.equal(h.float(), s)
        assert h.nbytes + ours.state[h]["rest"].nbytes == s.nbytes
        assert all(same(ours.state[h][name], reference.state[s][name]) for name in ("exp_avg", "exp_avg_sq"))


def test_backward_gives_gradients_of_the_dtype_that_was_asked_for():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).to(torch.bfloat16)
    for param in model.parameters():
        param.grad_dtype = torch.float32
    optimizer = compiledopt.AdamW(model.parameters(), lr=0.01, rounding="split", state_dtype="int8", compiled=True)
    start = model.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 64, dtype=torch.bfloat16)).float().square().mean().backward()
        assert model.weight.grad.dtype == torch.float32
        optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[model.weight].values() if value.dim()) + model.weight.nbytes
    assert held == (4 + 2.25) * model.weight.numel() and not torch.equal(start, model.weight)
