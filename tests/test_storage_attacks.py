"""What happens to a run in the world, with values that are kept in fewer bytes: it goes on bit for bit, or in the values that the
coarser of two ways keeps, and nothing is lost without a word."""

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
PARTNERS = {codec.unsigned for codec in CODECS.values()}  # what a codec takes where it can; by itself for such states alone
NAMES = [name for name in CODECS if name not in PARTNERS]
KEPT = [pytest.param(name, marks=[] if name in ("int8", "bfloat16") else [pytest.mark.slow]) for name in NAMES]


def made(params, kept="int8", **options):
    return compiledopt.AdamW(params, **{"lr": 0.01, "state_dtype": kept, "seed": 3, **options})


# ---- a run that is interrupted ----


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def through_file(optimizer):
    """As weights_only=True lets it."""
    file = io.BytesIO()
    torch.save({"params": optimizer.param_groups[0]["params"], "state": optimizer.state_dict()}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    other = type(optimizer)([torch.nn.Parameter(p) for p in found["params"]], lr=1.0, state_dtype=optimizer.param_groups[0]["state_dtype"])
    other.load_state_dict(found["state"])
    return other


def data_exchanged(optimizer):
    for param in optimizer.param_groups[0]["params"]:
        param.data = param.data.clone()
    return optimizer


def channels_last(optimizer):
    """And back in the end: which values a block has does not depend on how they lie in memory."""
    for param in optimizer.param_groups[0]["params"]:
        if param.dim() == 4:
            param.data = param.data.to(memory_format=torch.channels_last)
    return optimizer


def states_laid_anew(optimizer):
    for values in optimizer.state.values():
        values.update({name: value.clone() for name, value in values.items()})
    return optimizer


WAYS = [pickled, copy.deepcopy, through_file, data_exchanged, channels_last, states_laid_anew]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("executor", ["compiled", pytest.param("foreach", marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_bit_for_bit(kept, executor):
    found = {}
    for way in (lambda optimizer: optimizer, *WAYS):
        optimizer = made(parameters(shapes=SHAPES), kept, **EXECUTORS[executor])
        run(optimizer, optimizer.param_groups[0]["params"], Gradients(), range(3))
        optimizer = way(optimizer)
        run(optimizer, optimizer.param_groups[0]["params"], Gradients(), range(3, 6))
        found[way.__name__] = [(param.contiguous(), {k: v.contiguous() for k, v in state.items()}) for param, _, state in snapshot(optimizer)]
    straight = found.pop("<lambda>")
    assert {name: same(other, straight) for name, other in found.items()} == dict.fromkeys(found, True)
    assert rms(flat(p for p, _ in straight) - flat(parameters(shapes=SHAPES))) > 0.01
