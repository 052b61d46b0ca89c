"""What happens in the world to a run with values in fewer bytes: it goes on bit for bit, or with the values that the coarser of
two ways keeps; what cannot be is refused before anything changes."""

import copy
import io
import multiprocessing
import pickle
import warnings

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import schedules
from compiledopt.storage import CODECS

SHAPES = [(70, 64), (67, 75), (4, 8, 7, 19), (9,)]
PARTNERS = {codec.unsigned for codec in CODECS.values()}  # what others take for states that are never negative
NAMES = [name for name in CODECS if name not in PARTNERS]
KEPT = [pytest.param(name, marks=[] if name in ("int8", "bfloat16") else [pytest.mark.slow]) for name in NAMES]


def made(params, kept="int8", **options):
    return compiledopt.AdamW(params, **{"lr": 0.01, "state_dtype": kept, "seed": 3, **options})


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def go(optimizer, steps):
    run(optimizer, params_of(optimizer), Gradients(params_of(optimizer)[0].dtype), steps)


def states(optimizer):
    return [state for _, _, state in snapshot(optimizer)]


# ---- interrupted ----


def straight(optimizer):
    return optimizer


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def through_a_file(optimizer):
    """As weights_only=True lets it through; the group that it was saved with says how, and the new one too."""
    file = io.BytesIO()
    torch.save({"params": params_of(optimizer), "state": optimizer.state_dict()}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    group = optimizer.param_groups[0]
    how = {name: group[name] for name in ("state_dtype", "compiled", "foreach", "rounding") if name in group}
    other = type(optimizer)([torch.nn.Parameter(param) for param in found["params"]], lr=1.0, **how)
    other.load_state_dict(found["state"])
    return other


def data_exchanged(optimizer):
    for param in params_of(optimizer):
        param.data = param.data.clone()
    return optimizer


def states_exchanged(optimizer):
    for values in optimizer.state.values():
        values.update({name: value.clone() for name, value in values.items()})
    return optimizer


WAYS = [pickled, copy.deepcopy, through_a_file, data_exchanged, states_exchanged]


@pytest.mark.parametrize("rounding", [None, pytest.param("stochastic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("executor", ["compiled", pytest.param("foreach", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kept", KEPT)
def test_an_interrupted_run_goes_on_bit_for_bit(kept, executor, rounding):
    found, dtype = {}, torch.float32 if rounding is None else torch.bfloat16
    ways = [way for way in WAYS if way is not pickled or kept != "float8_e4m3fn"]  # whose tensors torch cannot pickle
    for way in (straight, *ways):
        optimizer = made(parameters(dtype, SHAPES), kept, rounding=rounding, **EXECUTORS[executor])
        go(optimizer, range(3))
        optimizer = way(optimizer)
        go(optimizer, range(3, 6))
        found[way.__name__] = snapshot(optimizer)
        assert optimizer.executor == executor
    expected = found["straight"]
    assert {name for name, other in found.items() if not same(other, expected)} == set()
    assert rms(flat(param for param, _, _ in expected) - flat(parameters(dtype, SHAPES))) > 0.01


def channels_last(values):
    return values.to(memory_format=torch.channels_last) if values.dim() == 4 else transposed(values)


def transposed(values):
    return values.transpose(0, -1).contiguous().transpose(0, -1)


def permuted(values):
    return values.movedim(0, -1).contiguous().movedim(-1, 0)


ORDERED = [(32, 16, 3, 3), (70, 5, 7, 19), (67, 75), (128, 3, 6, 6), (1, 9, 5, 5)]
LAID = {"exp_avg": "int8", "exp_avg_sq": "uint4"}
HALF = {"dtype": torch.bfloat16, "rounding": "stochastic"}


@pytest.mark.parametrize(
    ("kept", "how"),
    [
        ("int8", {}),
        (LAID, HALF),
        *(pytest.param(kept, {}, marks=pytest.mark.slow) for kept in ("dynamic8", "int4", "float8_e4m3fn")),
        *(pytest.param(kept, HALF, marks=pytest.mark.slow) for kept in ("int8", "int4")),
    ],
    ids=str,
)
def test_memory_in_another_order_changes_no_bit(kept, how):
    """Blocks follow the shape: of parameters in channels_last, transposed and permuted ones, laid so before the first step or
    between two, a kernel makes the bits of those that lie row after row, random ones too, by any number of threads."""
    how = {"dtype": torch.float32, **how}
    dtype, found = how.pop("dtype"), {}
    for laid in (torch.clone, channels_last, transposed, permuted):
        for begin, threads in ((0, 1), (2, 3)):
            torch.set_num_threads(threads)
            optimizer = made(parameters(dtype, ORDERED), kept, min_quantized_numel=0, compiled=True, **how)
            for steps in (range(begin), range(begin, 4)):
                for param in params_of(optimizer) if steps else ():
                    param.data, param.grad = laid(param.data), None
                for step in steps:
                    go(optimizer, range(step, step + 1))
            assert params_of(optimizer)[0].is_contiguous() == (laid is torch.clone)
            # Packed codes have a shape of their own.
            states = [(values["exp_avg"], param) for param, values in optimizer.state.items()]
            assert all(one.stride() == param.stride() for one, param in states if one.shape == param.shape)
            found[laid.__name__, begin] = snapshot(optimizer)
    first = [(param, state) for param, _, state in found["clone", 0]]
    assert all(same([(param, state) for param, _, state in other], first) for other in found.values())
    assert rms(flat(param for param, _ in first) - flat(parameters(dtype, ORDERED))) > 0.01


def test_sums_over_parameters_in_another_order():
    """Prodigy's, of states in blocks, which are read tile by tile too."""
    found = []
    for laid in (torch.clone, channels_last, transposed):
        params = parameters(shapes=[(32, 16, 7, 19), (301, 333)])
        for param in params:
            param.data = laid(param.data)
        optimizer = compiledopt.Prodigy(params, d0=1e-2, state_dtype="int8", compiled=True)
        for _ in range(6):
            for param in params:
                param.grad = param.detach().clone()
            optimizer.step()
        found.append((snapshot(optimizer), optimizer.param_groups[0]["d"].item()))
    for states_found, d in found[1:]:
        assert d == pytest.approx(found[0][1], rel=1e-6) and d > 2e-2
        codes = [[state["exp_avg"] for _, _, state in one] for one in (states_found, found[0][0])]
        assert rms(flat(codes[0]) - flat(codes[1])) < 1e-3 * rms(flat(codes[1]))


def _child(optimizer, queue):
    warnings.simplefilter("ignore", DeprecationWarning)
    go(optimizer, range(3, 6))
    queue.put(pickle.dumps(states(optimizer)))


def test_a_forked_process_goes_on():
    optimizer = made(parameters(shapes=SHAPES))
    go(optimizer, range(3))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads
        child = context.Process(target=_child, args=(optimizer, queue))
        child.start()
    found = pickle.loads(queue.get(timeout=120))
    child.join(60)
    before = states(optimizer)
    go(optimizer, range(3, 6))
    assert same(found, states(optimizer)) and not same(before, found)


def test_a_closure_is_a_step():
    plain, closed = made(parameters(shapes=SHAPES)), made(parameters(shapes=SHAPES))
    for step in range(3):
        go(plain, range(step, step + 1))

        def closure(step=step):
            Gradients().set(params_of(closed), step)
            return 1.5

        assert closed.step(closure) == 1.5
    assert same(snapshot(plain), snapshot(closed))


# ---- with what stands around ----


@pytest.mark.parametrize("kept", KEPT)
def test_a_loss_scale_is_as_if_it_were_not(kept):
    """A step whose gradients are not finite changes no code, no scale of a block and no count, and draws no random bits."""
    plain, scaled = (made(parameters(shapes=SHAPES), kept, compiled=True) for _ in range(2))
    go(plain, [0, 1, 3, 4])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(5):
        Gradients().set(params_of(scaled), step)
        for param in params_of(scaled):
            param.grad.copy_(scaler.scale(param.grad))
        if step == 2:
            params_of(scaled)[1].grad[3] = torch.inf
        scaler.step(scaled)
        scaler.update()
    assert same(states(plain), states(scaled)) and same(flat(params_of(plain)), flat(params_of(scaled)))
    assert states(scaled)[0]["step"].item() == 4 and rms(flat(params_of(plain)) - flat(parameters(shapes=SHAPES))) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_clipping_average_and_schedule_inside_are_those_around(dtype):
    how = {} if dtype is torch.float32 else {"rounding": "stochastic"}
    inside = made(parameters(dtype, SHAPES), lr=0.05 * schedules.exponential(0.8), max_grad_norm=2.0, ema_decay=0.75, **how)
    around = made(parameters(dtype, SHAPES), lr=0.05, **how)
    averages = None
    for step in range(5):
        Gradients(dtype).set(params_of(inside), step)
        inside.step()
        Gradients(dtype).set(params_of(around), step)
        norm = torch.nn.utils.clip_grad_norm_(params_of(around), 2.0)
        around.param_groups[0]["lr"] = 0.05 * 0.8**step
        around.step()
        now = flat(params_of(around))
        averages = now if averages is None else averages.lerp(now, 0.25)
    moved = rms(flat(params_of(inside)) - flat(parameters(dtype, SHAPES)))
    tolerance = 1e-3 if dtype is torch.float32 else 2e-2  # bfloat16's clipped gradients and averages are rounded in between
    assert norm > 50 and moved > 0.05
    assert rms(flat(params_of(inside)) - flat(params_of(around))) < tolerance * moved
    tolerance = 2 * tolerance if dtype is torch.bfloat16 else tolerance  # an average in bfloat16 is rounded at each step
    assert rms(flat(inside.ema_parameters()) - averages) < tolerance * moved < 0.3 * rms(averages - now)
    assert all(state["exp_avg"].dtype == torch.int8 for state in states(inside)[:3])


def test_torch_does_not_pickle_float8():
    """As docs/precision.md says; files are written by torch.save."""
    with pytest.raises(AttributeError):
        pickle.loads(pickle.dumps(torch.zeros(2).to(torch.float8_e4m3fn)))


# ---- between ways of keeping ----


def test_a_run_goes_from_way_to_way():
    """Two steps each with torch, 8 bits, bfloat16, float32 and torch again; then near torch's run in float32 all the way."""
    reference = torch.optim.AdamW(parameters(shapes=SHAPES), lr=0.01)
    optimizer = torch.optim.AdamW(parameters(shapes=SHAPES), lr=0.01)
    for index, kept in enumerate(("torch", "int8", "bfloat16", "float32", "torch")):
        if index:
            saved = optimizer.state_dict() if kept != "torch" else optimizer.state_dict(precision="float32")
            twins = copies(params_of(optimizer))
            optimizer = torch.optim.AdamW(twins, lr=1.0) if kept == "torch" else made(twins, kept, lr=1.0)
            optimizer.load_state_dict(saved)
        for each in (optimizer, reference):
            go(each, range(2 * index, 2 * index + 2))
    apart, moved = (
        rms(flat(params_of(one)) - flat(params_of(reference))) for one in (optimizer, made(parameters(shapes=SHAPES)))
    )
    assert moved > 0.02 and 1e-5 * moved < apart < 0.05 * moved
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())


def test_groups_are_kept_each_in_its_way():
    """Bit for bit as optimizers of their own, a group that is added later too; and loaded into groups of other ways."""
    ways = ["int8", "bfloat16_nearest", None]
    params = parameters(shapes=SHAPES[:3])
    alone = [made([twin], kept) for twin, kept in zip(copies(params), ways, strict=True)]
    optimizer = made([{"params": [param], "state_dtype": kept} for param, kept in zip(params[:2], ways, strict=False)], None)
    for step in range(6):
        if step == 2:
            optimizer.add_param_group({"params": params[2:], "state_dtype": ways[2]})
        Gradients().set(params, step)
        for one, param in zip(alone, params, strict=True):
            params_of(one)[0].grad = param.grad.clone()
            if step >= 2 or param is not params[2]:
                one.step()
        optimizer.step()
    assert same(states(optimizer), [states(one)[0] for one in alone])
    other = made(
        [{"params": [param], "state_dtype": kept} for param, kept in zip(copies(params), ways[::-1], strict=True)], None
    )
    other.load_state_dict(optimizer.state_dict())
    assert [state["exp_avg"].dtype for state in states(other)] == [torch.float32, torch.bfloat16, torch.int8]
    found, wanted = (one.state_dict(precision="float32")["state"] for one in (other, optimizer))
    for number in range(3):
        for name in ("exp_avg", "exp_avg_sq"):
            assert rms(found[number][name] - wanted[number][name]) < 0.03 * rms(wanted[number][name])


@pytest.mark.parametrize("after", [None, "int8", "int4", "bfloat16"])
@pytest.mark.parametrize("before", ["int8", "int4"])
@pytest.mark.parametrize("shapes", [[(64, 128), (128, 64)], [(70, 64), (67, 75)]], ids=str)
def test_codes_of_another_parameter_are_refused(shapes, before, after):
    """Parameters in another order, some of which have as many elements: not decoded in the blocks of another shape."""
    optimizer = made(parameters(shapes=shapes), before, foreach=False)
    go(optimizer, range(1))
    other = made(parameters(shapes=shapes[::-1]), after, foreach=False)
    go(other, range(1))
    known = snapshot(other)
    with pytest.raises(ValueError, match=r"does not fit AdamW: the state of parameter 0 has (no )?'exp_avg"):
        other.load_state_dict(optimizer.state_dict())
    assert same(known, snapshot(other))


@pytest.mark.parametrize(("before", "after"), [("int8", None), ("int8", "bfloat16"), (None, "int8"), ("bfloat16", "int8")])
def test_codes_are_never_read_as_numbers(before, after):
    """A way that is put into a group by hand, in the middle of a run: refused before anything changes; the mend that the
    message names does it."""
    optimizer = made(parameters(shapes=SHAPES), before)
    go(optimizer, range(2))
    known, saved = snapshot(optimizer), copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["state_dtype"] = after
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"state 'exp_avg' must be torch\.\w+, as its group keeps it now, got torch\."):
            optimizer.step()
    assert same(known, snapshot(optimizer))
    optimizer.load_state_dict(saved)
    go(optimizer, range(2, 4))
    straight = made(parameters(shapes=SHAPES), before)
    go(straight, range(4))
    moved = rms(flat(params_of(straight)) - flat(parameters(shapes=SHAPES)))
    assert rms(flat(params_of(optimizer)) - flat(params_of(straight))) < 0.03 * moved
    assert states(optimizer)[0]["exp_avg"].dtype == {"int8": torch.int8, "bfloat16": torch.bfloat16}.get(after, torch.float32)


def test_what_is_put_into_a_group_by_hand_is_checked():
    optimizer = compiledopt.AdamW(parameters(torch.bfloat16, SHAPES), lr=0.01)
    go(optimizer, range(1))
    known = snapshot(optimizer)
    for name, value in (("rounding", "up"), ("state_dtype", "int9")):
        optimizer.param_groups[0][name] = value
        with pytest.raises(ValueError, match=f"Invalid {name} value: '{value}'"):
            optimizer.step()
        with pytest.raises(ValueError, match=f"Invalid {name} value: '{value}'"):
            optimizer.explain()
        del optimizer.param_groups[0][name]
    assert same(known, snapshot(optimizer))
    optimizer.param_groups[0]["rounding"] = "split"
    go(optimizer, range(1, 3))
    assert optimizer.param_groups[0]["seed"] == 0 and states(optimizer)[0]["rest"].any()
    with pytest.raises(ValueError, match="Invalid state_dtype value: 'int9'"):
        made(parameters()).state_dict(precision="int9")


@pytest.mark.parametrize(("before", "after", "name"), [("split", None, "rest"), ("compensated", "stochastic", "compensation")])
def test_what_another_rounding_kept_is_neither_used_nor_lost_unsaid(before, after, name):
    """`rounding` exchanged in the middle of a run, and a model that changes its dtype: refused before anything changes; the
    mends that the message names both go on."""
    optimizer = made(parameters(torch.bfloat16, SHAPES), rounding=before)
    go(optimizer, range(2))
    known, saved = snapshot(optimizer), copy.deepcopy(optimizer.state_dict())
    assert states(optimizer)[0][name].any()
    optimizer.param_groups[0]["rounding"] = after
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=f"state '{name}' is of rounding='{before}', and torch.bfloat16 parameters of its"
        ):
            optimizer.step()
    assert same(known, snapshot(optimizer))
    twin = copy.deepcopy(optimizer)
    optimizer.load_state_dict(saved)
    for values in twin.state.values():
        del values[name]
    for each in (optimizer, twin):
        go(each, range(2, 3))
        assert name not in states(each)[0]
    assert same(snapshot(optimizer), snapshot(twin)) and not same(known, snapshot(twin))
    changed = made(parameters(torch.bfloat16, SHAPES), rounding=before)
    go(changed, range(1))
    for param in params_of(changed):
        param.data, param.grad = param.data.float(), None
    with pytest.raises(
        RuntimeError, match=f"state '{name}' is of rounding='{before}', and torch.float32 parameters of its group"
    ):
        go(changed, range(1, 2))
    changed.load_state_dict(changed.state_dict())
    go(changed, range(1, 2))
    assert name not in states(changed)[0]


def test_parameters_change_their_dtype():
    """As model.bfloat16() does between steps: states stay as they are kept."""
    optimizer = made(parameters(shapes=SHAPES))
    go(optimizer, range(2))
    for param in params_of(optimizer):
        param.data = param.data.bfloat16()
    before = flat(params_of(optimizer))
    go(optimizer, range(2, 4))
    assert rms(flat(params_of(optimizer)) - before) > 0.005
    kinds = [state["exp_avg"].dtype for state in states(optimizer)]
    assert kinds == [torch.int8] * 3 + [torch.float32]


@pytest.mark.parametrize("size", [1e-37, 1e37])
def test_values_at_the_ends_of_float32_are_kept(size):
    codec, values = CODECS["int8"], torch.linspace(-1, 1, 32).reshape(1, 32) * size
    codes, scale = codec.encode(values, None)
    assert ((codec.decode(codes, scale) - values).abs() <= 0.01 * size).all() and codes.abs().max() == 126


@pytest.mark.parametrize("kept", NAMES)
def test_small_gradients_take_no_large_steps(kept):
    """Squares of 1e-6 and less, which float16 has not, by whose roots AdamW divides; within what 4 bits keep."""
    found = []
    for way in ("float32", kept):
        optimizer = made(parameters(shapes=[(64, 64)]), way, weight_decay=0.0, eps=1e-15, foreach=False)
        start = flat(params_of(optimizer))
        for step in range(20):
            Gradients().set(params_of(optimizer), step)
            params_of(optimizer)[0].grad.mul_(torch.logspace(-5, -3, 64)[:, None])
            optimizer.step()
        found.append((flat(params_of(optimizer)) - start) / 0.01)
    assert rms(found[0]) > 3 and found[1].abs().max() < 1.5 * found[0].abs().max()
    assert rms(found[1] - found[0]) < 0.5 * rms(found[0])


@pytest.mark.parametrize("kept", ["float16", "float16_nearest"])
def test_roots_in_float16_are_what_they_stand_for(kept):
    """Of states that are never negative, also those that start elsewhere than at zero, and through conversions."""
    params = parameters(shapes=[(64, 64)])
    optimizer = compiledopt.Adagrad(params, lr=0.01, initial_accumulator_value=0.1, state_dtype=kept, foreach=False)
    exact = compiledopt.Adagrad(copies(params), lr=0.01, initial_accumulator_value=0.1)
    for step in range(3):
        for each in (optimizer, exact):
            Gradients().set(params_of(each), step)
            for param in params_of(each):
                param.grad.mul_(0.1)
            each.step()
    kept_root, wanted = states(optimizer)[0]["sum"], states(exact)[0]["sum"]
    assert kept_root.dtype == torch.float16 and (wanted > 0.1).double().mean() > 0.9
    torch.testing.assert_close(kept_root.double().square(), wanted.double(), rtol=4e-3, atol=0)
    back = optimizer.state_dict(precision="float32")["state"][0]["sum"]
    torch.testing.assert_close(back, wanted, rtol=4e-3, atol=0)
    again = compiledopt.Adagrad(copies(params), state_dtype=kept)
    again.load_state_dict(optimizer.state_dict(precision="float32"))
    assert same(again.state[params_of(again)[0]]["sum"], kept_root)


def test_random_bits_follow_a_count_that_all_parameters_share():
    """A schedule around Schedule-Free counts steps in the group: random rounding had asked for each parameter's own."""
    found = []
    for how in ({"compiled": True}, {"foreach": True}, {"foreach": False}):
        params = parameters(torch.bfloat16, [(64, 64)])
        rate = 0.1 * schedules.exponential(0.8)
        optimizer = compiledopt.SGDScheduleFree(params, lr=rate, state_dtype={"z": "bfloat16"}, rounding="stochastic", **how)
        run(optimizer, params, Gradients(torch.bfloat16), range(3))
        assert optimizer.param_groups[0]["step"] == 3 and "step" not in optimizer.state[params[0]]
        found.append(snapshot(optimizer))
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert rms(flat(params) - flat(parameters(torch.bfloat16, [(64, 64)]))) > 1e-3
