"""How values are kept: states and parameters in fewer bytes, against the same in float32 or float64, and against torch."""

import copy

import pytest
import torch
from catalog import EXECUTORS, by_kind
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt.storage import CODECS
from compiledopt.storage.signs import never_negative

SHAPES = [(40, 50), (301,), (), (0,)]
HALVES = [torch.bfloat16, torch.float16]


def trained(kind, dtype=torch.float32, steps=8, shapes=SHAPES, values=None, **options):
    """values: the dtype whose numbers the parameters and gradients have."""
    params = copies(parameters(values or dtype, shapes), dtype)
    optimizer = kind(params, **options)
    for step in range(steps):
        gradients = Gradients(values or dtype)
        gradients.set(params, step)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"rounding": "stochastic"}, {"rounding": "split"}], ids=str)
def test_executors_draw_the_same_bits(options, dtype):
    found = []
    for how in EXECUTORS.values():
        optimizer, params = trained(compiledopt.AdamW, dtype, lr=0.01, **options, **how)
        found.append((flat(params), flat(optimizer.state[p]["exp_avg_sq"] for p in params)))
    for values in zip(*found, strict=True):
        moved = rms(values[0] - flat(parameters(dtype, SHAPES))) if values[0] is found[0][0] else rms(values[0])
        for other in values[1:]:  # where float32 differs in its last bit, a rounding may go the other way
            apart = (other != values[0]).double().mean().item()
            assert moved > 1e-3 and (apart < 0.02 or rms(other - values[0]) <= 1e-5 * moved)


@pytest.mark.parametrize("options", [{"state_dtype": "bfloat16"}, {"rounding": "stochastic"}], ids=str)
@pytest.mark.parametrize(
    ("kind", "around"), [(compiledopt.AdamW, {"cautious": True}), (compiledopt.LAMB, {}), (compiledopt.Muon, {})]
)
def test_rules_that_reduce_draw_them_too(kind, around, options):
    found = []
    for how in ({}, {"foreach": True}, {"foreach": False}):
        optimizer, params = trained(kind, torch.bfloat16, shapes=[(40, 50), (40, 50)], lr=0.01, **options, **around, **how)
        found.append(flat(params))
        kept = [v.dtype for v in optimizer.state[params[0]].values() if v.shape == params[0].shape]
        assert all(dtype is torch.bfloat16 for dtype in kept) or "rounding" in options
    to_nearest = flat(trained(kind, torch.bfloat16, shapes=[(40, 50), (40, 50)], lr=0.01, **around)[1])
    effect = (found[0] != to_nearest).double().mean()
    assert effect > 0.02  # of Muon's products in float32; in bfloat16 it is twice that
    for other in found[1:]:  # where float32 differs in its last bit, a rounding may go the other way
        assert (other != found[0]).double().mean() < 0.1 * effect


def test_threads_draw_the_same_bits():
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        _, params = trained(
            compiledopt.SGD, torch.bfloat16, shapes=[(700_001,), (30, 20)], steps=3, lr=1e-3, rounding="stochastic"
        )
        found.append(params)
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("dtype", [HALVES[0], pytest.param(HALVES[1], marks=pytest.mark.slow)], ids=str)
def test_stochastic_rounding_is_right_in_the_mean(dtype):
    """An update of a hundredth of a unit in the last place: to nearest, nothing moves at all."""
    unit = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    for rounding, expected in (("nearest", 0.0), ("stochastic", -0.01 * unit)):
        param = torch.nn.Parameter(torch.ones(200_000, dtype=dtype))
        param.data[::2] = 1.5
        start = param.detach().double().clone()
        param.grad = torch.ones_like(param)
        compiledopt.SGD([param], lr=0.01 * unit, rounding=rounding, compiled=True).step()
        mean = (param.double() - start).mean().item()
        assert mean == expected if expected == 0 else abs(mean / expected - 1) < 0.15  # 2000 of 200 000 move: ± 2.2%
    again = torch.nn.Parameter(start.to(dtype))
    again.grad = torch.ones_like(again)
    optimizer = compiledopt.SGD([again], lr=0.01 * unit, rounding="stochastic", seed=1, compiled=True)
    optimizer.step()
    assert not torch.equal(again, param), "another seed, the same bits"
    state = optimizer.state_dict()
    assert state["param_groups"][0]["seed"] == 1 and state["state"][0]["step"].item() == 1


def test_subnormal_float16_is_rounded_with_random_bits_too():
    """A quarter of the smallest number above zero, which is zero to nearest."""
    smallest = 2.0**-24
    param = torch.nn.Parameter(torch.zeros(100_000, dtype=torch.float16))
    param.grad = torch.ones_like(param)
    compiledopt.SGD([param], lr=0.25 * smallest, rounding="stochastic", compiled=True).step()
    values = param.detach().double() / smallest
    assert set(values.tolist()) == {0.0, -1.0} and abs(values.mean() + 0.25) < 0.01  # ± 0.0014


@pytest.mark.parametrize("executor", EXECUTORS)
def test_split_parameters_are_a_float32_master(executor):
    """Bit for bit what float32 parameters with the same gradients become. By eager executors but for some last bits: torch's
    in-place operations, which take float32 ones, round once on some processors where two operations round twice."""
    half = parameters(torch.bfloat16, SHAPES)
    for index, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0, 3.3e38, 1e-38)):
        half[0].data[0, index] = value
    single = copies(half, torch.float32)
    ours = compiledopt.AdamW(half, lr=1e-4, rounding="split", state_dtype="float32", **EXECUTORS[executor])
    reference = compiledopt.AdamW(single, lr=1e-4, **EXECUTORS[executor])
    for step in range(6):
        Gradients(torch.bfloat16).set(half, step)
        Gradients(torch.bfloat16).set(single, step)
        ours.step()
        reference.step()
    for h, s in zip(half, single, strict=True):
        master = (h.detach().view(torch.int16).int() << 16) + ours.state[h]["rest"].int()
        known = ~s.isnan()
        last = {"rtol": 0.0, "atol": 0.0} if executor == "compiled" else {"rtol": 1e-6, "atol": 1e-9}
        torch.testing.assert_close(master.view(torch.float32)[known], s.detach()[known], **last)
        assert h[~known].isnan().all()
        assert ours.state[h]["rest"].dtype == torch.int16 and ours.state[h]["exp_avg"].dtype == torch.float32
    assert (flat(half) - flat(single))[7:].abs().max() > 0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_compensation_carries_what_rounding_cuts_off(dtype):
    """The parameter is where rounding to nearest once would put it, and parameter and compensation together are exact."""
    shapes = [(40, 50), (3001,)]
    _, exact = trained(compiledopt.AdamW, torch.float64, 40, shapes, dtype, lr=1e-4)
    _, nearest = trained(compiledopt.AdamW, dtype, 40, shapes, lr=1e-4, state_dtype="float32")
    optimizer, params = trained(compiledopt.AdamW, dtype, 40, shapes, lr=1e-4, state_dtype="float32", rounding="compensated")
    moved = rms(flat(exact) - flat(parameters(dtype, shapes)))
    kept = flat(params) + flat(optimizer.state[p]["compensation"] for p in params)
    assert rms(flat(nearest) - flat(exact)) > 0.1 * moved > 1e-5
    assert rms(kept - flat(exact)) < 0.02 * moved and (flat(params) != flat(nearest)).any()


@pytest.mark.parametrize("case", by_kind())
def test_every_rule_keeps_its_states_in_bfloat16(case):
    """Within what 8 bits of a significand allow, of the same in float64."""
    exact, params = parameters(torch.float64), parameters()
    reference, optimizer = case.ours(exact, dtype=torch.float64), case.ours(params, state_dtype=torch.bfloat16)
    run(reference, exact, Gradients(torch.float64), range(4))
    run(optimizer, params, Gradients(torch.float64), range(4))
    moved = rms(flat(exact) - flat(parameters(torch.float64)))
    assert moved > 1e-3 and rms(flat(params) - flat(exact)) < 0.15 * moved
    tensors = [v for v in optimizer.state[params[0]].values() if v.dim()]
    assert all(v.dtype == torch.bfloat16 for v in tensors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state_dtype": "int7"}, "Invalid state_dtype value: 'int7'; it is one of float32, "),
        ({"state_dtype": {"exp_av": "bfloat16"}}, "'exp_av' is no state of adam, which has exp_avg, exp_avg_sq"),
        ({"rounding": "up"}, "Invalid rounding value: 'up'; it is one of nearest, stochastic"),
        ({"seed": -1}, "Invalid seed value: -1"),
        ({"rounding": "split", "differentiable": True}, "differentiable=True: rounding has no derivative"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        compiledopt.AdamW(parameters(), **options)


def test_groups_and_states_have_ways_of_their_own():
    params = parameters(shapes=[(40, 50), (30, 20)])
    groups = [{"params": params[:1], "state_dtype": {"exp_avg_sq": torch.bfloat16}}, {"params": params[1:]}]
    optimizer = compiledopt.AdamW(groups, lr=0.01, compiled=True)
    run(optimizer, params, Gradients(), range(2))
    kinds = [{k: v.dtype for k, v in optimizer.state[p].items() if v.dim()} for p in params]
    assert kinds == [
        {"exp_avg": torch.float32, "exp_avg_sq": torch.bfloat16},
        {"exp_avg": torch.float32, "exp_avg_sq": torch.float32},
    ]
    before = compiledopt.compile_stats()["plans_built"]
    run(optimizer, params, Gradients(), range(2, 4))
    assert compiledopt.compile_stats()["plans_built"] == before


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_states_that_parameters_share_stay_as_they_are(name):
    ends = []
    for kept in (None, name):
        param = torch.nn.Parameter(torch.linspace(-1, 1, 6400).reshape(80, 80))
        optimizer = compiledopt.AdamWScheduleFree([param], lr=0.3, state_dtype=kept)
        for step in range(5):
            Gradients().set([param], step)
            optimizer.step()
        assert optimizer.param_groups[0]["k"].item() == 5
        ends.append(param.detach() - torch.linspace(-1, 1, 6400).reshape(80, 80))
    assert 0 < rms(ends[1] - ends[0]) < 0.05 * rms(ends[0])


def test_a_run_goes_on_bit_for_bit():
    params = parameters(torch.bfloat16, SHAPES)
    optimizer = compiledopt.AdamW(params, lr=0.01, state_dtype="bfloat16", rounding="stochastic", seed=7)
    run(optimizer, params, Gradients(torch.bfloat16), range(3))
    twins = copies(params)
    again = compiledopt.AdamW(twins, lr=0.01, state_dtype="bfloat16", rounding="stochastic")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, Gradients(torch.bfloat16), range(3, 6))
    run(again, twins, Gradients(torch.bfloat16), range(3, 6))
    assert same([s for _, _, s in snapshot(optimizer)], [s for _, _, s in snapshot(again)])
    assert same([p.detach() for p in params], [p.detach() for p in twins])


# ---- blocks ----

MATRICES = [(100, 64), (101, 75), (40, 3, 7, 7), (4, 1100)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_blocks_are_what_a_codec_written_out_gives(executor):
    """Against a step in float64 between a decoder and an encoder written as the formulas are, block by block."""
    params = parameters(shapes=MATRICES)
    optimizer = compiledopt.AdamW(params, lr=0.01, state_dtype="int8", **EXECUTORS[executor])
    exact = copies(params, torch.float64)
    reference = torch.optim.AdamW(exact, lr=0.01, foreach=False)
    start = flat(params)
    for step in range(4):
        Gradients().set(params, step)
        Gradients().set(exact, step)
        optimizer.step()
        reference.step()
        for p, q in zip(params, exact, strict=True):
            kept, written = optimizer.state[p], reference.state[q]
            written["exp_avg"].copy_(through_int8(written["exp_avg"]))
            written["exp_avg_sq"].copy_(through_uint8(written["exp_avg_sq"]))
            assert kept["exp_avg"].dtype == torch.int8 and kept["exp_avg_sq"].dtype == torch.uint8
            assert kept["exp_avg_scale"].shape == (p.shape[0], -(-(p.numel() // p.shape[0]) // 32))
    moved, plain = rms(flat(exact) - start), copies(parameters(shapes=MATRICES), torch.float64)
    run(torch.optim.AdamW(plain, lr=0.01, foreach=False), plain, Gradients(), range(4))
    apart = rms(flat(exact) - flat(plain))
    assert moved > 1e-2 and apart > 1e-3 * moved and rms(flat(params) - flat(exact)) < 0.1 * apart
    assert optimizer.executor == executor


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"foreach": False}], ids=str)
# Muon's iteration is in bfloat16, which doubles what a code that fell to the other side does.
@pytest.mark.parametrize(("name", "most"), [("LAMB", 0.1), ("Muon", 0.2)])
def test_rules_that_are_not_elementwise_keep_states_in_blocks(name, most, how):
    """Against the same in float64 between codecs written out."""
    kind, shapes = getattr(compiledopt, name), [(64, 80), (64, 80), (50, 100)]
    params = parameters(shapes=shapes)
    exact, start = copies(params, torch.float64), flat(params)
    optimizer, reference = kind(params, lr=0.01, state_dtype="int8", **how), kind(exact, lr=0.01, foreach=False)
    for step in range(4):
        Gradients().set(params, step)
        Gradients().set(exact, step)
        optimizer.step()
        reference.step()
        for p, q in zip(params, exact, strict=True):
            for state, value in reference.state[q].items():
                if value.dim():
                    through = {torch.int8: through_int8, torch.uint8: through_uint8}[optimizer.state[p][state].dtype]
                    value.copy_(through(value))
    plain = copies(parameters(shapes=shapes), torch.float64)
    run(kind(plain, lr=0.01, foreach=False), plain, Gradients(), range(4))
    moved, apart = rms(flat(exact) - start), rms(flat(exact) - flat(plain))
    assert moved > 1e-3 and apart > 1e-4 * moved
    assert rms(flat(params) - flat(exact)) < most * apart
    compiled = name == "LAMB" and not how
    assert optimizer.executor == ("compiled" if compiled else "for-loop" if how == {"foreach": False} else "foreach")
    if name == "LAMB":
        assert optimizer.state[params[0]]["exp_avg_sq"].dtype == torch.uint8


def in_rows(x):
    """Blocks of 32 of each row, one after the other, as lists of tensors."""
    return [row.split(32) for row in x.reshape(x.shape[0], -1)]


def through_int8(x):
    def one(block):
        a = block.abs().max()
        if a == 0:
            return torch.zeros_like(block)
        z = block / a
        y = (126 * (2 * z / (1 + z.abs()))).round() / 126
        return a * y / (2 - y.abs())

    return torch.cat([torch.cat([one(b) for b in row]) for row in in_rows(x)]).reshape(x.shape)


def through_uint8(x):
    def one(block):
        a = block.max()
        if a == 0:
            return torch.zeros_like(block)
        code = (253 * (block / a).sqrt()).round()
        code[(block > 0) & (code == 0)] = 1
        return a * (code / 253) ** 2

    return torch.cat([torch.cat([one(b) for b in row]) for row in in_rows(x)]).reshape(x.shape)


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_a_codec_keeps_what_is_not_finite_and_zeros(name):
    codec = CODECS[name]
    values = torch.rand(4, 32) * torch.tensor([[1.0], [1e-40], [1e30], [0.0]])
    values[0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
    if name == "int8":
        values[0, 3:] *= -1
        values[0, 4] = -torch.inf
    codes, scale = codec.encode(values, None)
    assert same(codes.to(codec.dtype).float(), codes), "codes that the dtype does not hold"
    found = codec.decode(codes.to(codec.dtype).float(), scale)
    special = ~values.isfinite() | (values == 0)
    assert same(found[special].nan_to_num(7.0), values[special].nan_to_num(7.0))
    assert ((found - values)[~special].abs() <= 0.012 * scale.expand_as(values)[~special]).all()
    again, scales = codec.encode(found, None)
    assert same(again, codes) and same(scales, scale), "what was decoded is not encoded as it was"


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (compiledopt.AdamW, {"amsgrad": True}, {"exp_avg_sq", "max_exp_avg_sq"}),
        (compiledopt.Adagrad, {}, {"sum"}),
        (compiledopt.Adadelta, {}, {"square_avg", "acc_delta"}),
        (compiledopt.RMSprop, {"momentum": 0.9, "centered": True}, {"square_avg"}),
        (compiledopt.Adamax, {}, {"exp_inf"}),
        (compiledopt.SGD, {"momentum": 0.9}, set()),
    ],
)
def test_which_states_are_never_negative(kind, options, expected):
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], **options)
    assert never_negative(kind.rule, optimizer.param_groups[0]) == expected


def test_what_a_root_divides_by_is_not_zero():
    """An element far below the largest of its block: the step divides by the root of such a state."""
    values = torch.ones(1, 32)
    values[0, 3], values[0, 4] = 1e-12, 0.0
    codes, scale = CODECS["uint8"].encode(values, None)
    found = CODECS["uint8"].decode(codes, scale)[0]
    assert found[3] > 0 and found[4] == 0


@compiledopt.define
def Signed(param, grad, positive, falling, *, lr=0.1):
    """falling is a difference of numbers that are never negative."""
    positive = positive + grad * grad
    falling = falling.abs() - grad * grad
    return param - lr * grad, positive, falling


def test_a_difference_may_be_negative():
    optimizer = Signed([torch.nn.Parameter(torch.zeros(2))])
    assert never_negative(Signed.rule, optimizer.param_groups[0]) == {"positive"}


def test_threads_make_the_same_codes():
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        options = {"state_dtype": "int8", "rounding": "stochastic", "max_grad_norm": 1.0, "ema_decay": 0.9}
        optimizer, _ = trained(compiledopt.AdamW, torch.bfloat16, shapes=[(700, 1000), (901, 333)], steps=2, lr=1e-3, **options)
        found.append(snapshot(optimizer))
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("there", [None, "int8", "bfloat16", {"exp_avg_sq": "int8"}], ids=str)
@pytest.mark.parametrize("here", [None, "int8", "bfloat16"], ids=str)
def test_states_load_into_any_precision(here, there):
    """And into torch's AdamW, and from it: values within what the coarser of both keeps."""
    params = parameters(shapes=MATRICES)
    optimizer = compiledopt.AdamW(params, lr=0.01, state_dtype=there)
    run(optimizer, params, Gradients(), range(3))
    target = compiledopt.AdamW(copies(params), lr=0.5, state_dtype=here)
    target.load_state_dict(optimizer.state_dict())
    assert target.param_groups[0]["lr"] == 0.01 and target.param_groups[0].get("state_dtype") == here
    theirs = torch.optim.AdamW(copies(params))
    theirs.load_state_dict(target.state_dict(precision="float32"))
    exact = compiledopt.AdamW(copies(params))
    exact.load_state_dict(optimizer.state_dict(precision="float32"))
    for p, q in zip(theirs.param_groups[0]["params"], exact.param_groups[0]["params"], strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            found, wanted = theirs.state[p][name], exact.state[q][name]
            assert found.dtype == wanted.dtype == torch.float32 and wanted.abs().max() > 0
            assert rms(found - wanted) <= (0 if here == there else 0.02) * rms(wanted)
    again = compiledopt.AdamW(copies(params), state_dtype="int8")
    again.load_state_dict(theirs.state_dict())
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    theirs.step()
    run(again, again.param_groups[0]["params"], Gradients(), range(1))
    run(target, target.param_groups[0]["params"], Gradients(), range(3, 5))


def test_small_parameters_and_vectors_keep_what_the_rule_makes():
    shapes = [(64, 64), (63, 64), (5000,), (5000, 3), ()]
    optimizer, params = trained(compiledopt.AdamW, shapes=shapes, steps=1, state_dtype="int8", compiled=True)
    assert [optimizer.state[p]["exp_avg"].dtype for p in params] == [torch.int8, *[torch.float32] * 4]


def test_blocks_go_through_a_file_and_on_bit_for_bit(tmp_path):
    params = parameters(shapes=MATRICES)
    optimizer = compiledopt.AdamW(params, lr=0.01, state_dtype="int8", max_grad_norm=1.0)
    run(optimizer, params, Gradients(), range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = copies(params)
    again = compiledopt.AdamW(twins, lr=0.01, state_dtype="int8", max_grad_norm=1.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    third = copy.deepcopy(optimizer)
    run(optimizer, params, Gradients(), range(3, 5))
    run(again, twins, Gradients(), range(3, 5))
    assert same(snapshot(optimizer), snapshot(again))
    own = third.param_groups[0]["params"]
    run(third, own, Gradients(), range(3, 5))
    assert same(snapshot(optimizer), snapshot(third))


def trained_on(vectors, monkeypatch, kind, dtype, options):
    """Two steps over ragged rows, a third with what is not finite; parameters, states, and whether there were vectors."""
    from compiledopt.backends.cpp import blocks, kernels, lanes

    kernels.forget()
    with monkeypatch.context() as patch:
        if not vectors:
            patch.setattr(blocks, "TEXT", "plain")  # another name in the cache
            patch.setattr(lanes, "vectored", lambda lines: None)
        params = parameters(dtype, [(40, 75), (4, 1100), (64, 70)])
        params[0].data[1, 3:7] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
        optimizer = kind(params, lr=0.01, state_dtype="int8", compiled=True, **options)
        run(optimizer, params, Gradients(dtype), range(2))
        params[1].grad[2, 5:9] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
        optimizer.step()
        source = str(optimizer.explain(source=True))
    kernels.forget()
    return [p.detach().nan_to_num(7.0) for p in params], [s for _, _, s in snapshot(optimizer)], "lanes::load(" in source


@pytest.mark.parametrize(
    ("kind", "dtype", "options"),
    [
        (compiledopt.AdamW, torch.bfloat16, {"amsgrad": True, "rounding": "stochastic"}),
        pytest.param(compiledopt.AdamW, torch.float16, {"rounding": "compensated"}, marks=pytest.mark.slow),
        pytest.param(compiledopt.SGD, torch.bfloat16, {"momentum": 0.9, "rounding": "split"}, marks=pytest.mark.slow),
        pytest.param(compiledopt.Rprop, torch.float32, {}, marks=pytest.mark.slow),
        pytest.param(compiledopt.Adamax, torch.float32, {"max_grad_norm": 1.0, "ema_decay": 0.9}, marks=pytest.mark.slow),
        pytest.param(compiledopt.NAdam, torch.float32, {}, marks=pytest.mark.slow),
        pytest.param(compiledopt.PAdam, torch.float32, {}, marks=pytest.mark.slow),
        pytest.param(compiledopt.AdamAtan2, torch.bfloat16, {}, marks=pytest.mark.slow),
    ],
)
def test_vectors_make_the_same_bits_as_plain_loops(monkeypatch, kind, dtype, options):
    params, states, with_vectors = trained_on(True, monkeypatch, kind, dtype, options)
    others, plain, without = trained_on(False, monkeypatch, kind, dtype, options)
    assert with_vectors and not without, "a kernel lacks vectors, which make it twice as fast"
    assert rms(params[2] - parameters(dtype, [(40, 75), (4, 1100), (64, 70)])[2].detach()) > 1e-3
    assert same(params, others) and same(states, plain)
