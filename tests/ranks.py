"""What one process of a distributed run does: python ranks.py SCENARIO,... RANK WORLD FOLDER, by test_distributed.py."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from catalog import CATALOG, EXECUTORS, WHOLE_MODEL, one_per_kind
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import compiledopt
from compiledopt import schedules
from compiledopt.storage import CODECS

BATCH, STEPS = 8, 4


def network(bias=True):
    """Shards of unequal and of no length."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(6, 13, bias=bias),
        torch.nn.GELU(),
        torch.nn.Linear(13, 5, bias=bias),
        torch.nn.Linear(5, 1, bias=bias),
    ]
    return torch.nn.Sequential(*layers).double()


def sharded(net):
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    return fully_shard(net)


def train(net, optimizer, steps, part=slice(None)):
    losses = []
    for step in steps:
        x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss = (net(x[part]).sin() - x[part].sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole(params):
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in params]


def mine(rank, world):
    return slice(rank * BATCH // world, (rank + 1) * BATCH // world)


def assert_same_training(net, optimizer, alone, reference, start, tolerance=1e-6):
    moved = max((a - b).abs().max().item() for a, b in zip(whole(alone.parameters()), start, strict=True))
    assert moved > 1e-3
    for p, q in zip(whole(net.parameters()), whole(alone.parameters()), strict=True):
        assert (p - q).abs().max().item() <= tolerance * moved if p.numel() else True


def fsdp(rank, world, folder):
    """Every algorithm compiled, and one of each kind by every executor, against one process that sees the whole batch."""
    kinds = one_per_kind(lambda one: one.elementwise)
    whole_models = [(one, EXECUTORS["compiled"]) for one in CATALOG.values() if one.elementwise]
    whole_models += [(one, how) for one in kinds for how in EXECUTORS.values() if how != EXECUTORS["compiled"]]
    runs = [(one, how, {"lr": 0.05, **one.sharded}) for one, how in whole_models]
    around = {"max_grad_norm": 0.1, "ema_decay": 0.5, "lr": 0.1 * schedules.exponential(0.7)}
    runs += [(one, how, around) for one in kinds[:2] for how in EXECUTORS.values()]
    summing = {one.sums: one for one in WHOLE_MODEL.values() if one.sums}  # one over groups, one over the model
    runs += [(one, how, one.promised) for one in summing.values() for how in EXECUTORS.values()]
    gathered = one_per_kind(lambda one: one.rule.dense and not one.elementwise)
    runs += [(one, how, {"lr": 0.05}) for one in gathered for how in ({}, {"foreach": False})]
    runs += [(one, {}, {"lr": 0.05, "max_grad_norm": 0.1}) for one in gathered if one.reduces]
    for of, how, more in runs:
        net, alone = sharded(network(of.takes_vectors)), network(of.takes_vectors)
        start = whole(network(of.takes_vectors).parameters())
        optimizer, reference = (of.ours(one.parameters(), **more, **how) for one in (net, alone))
        train(net, optimizer, range(STEPS), mine(rank, world))
        train(alone, reference, range(STEPS))
        # Products are in bfloat16, where the last bit of a gradient may be another one.
        assert_same_training(net, optimizer, alone, reference, start, 0.05 if of.multiplies else 1e-5)
        whole_matrices = {"foreach": "foreach", "for-loop": "for-loop", "compiled": "foreach"}  # they are gathered
        assert optimizer.executor == (whole_matrices[reference.executor] if of.reduces else reference.executor)
        for param in net.parameters():
            for key, value in optimizer.state[param].items():
                if key not in (*optimizer.rule.scalars, "step", "n_averaged"):
                    assert isinstance(value, DTensor), (of.name, key)
                    assert value.shape != param.shape or value.placements == param.placements, (of.name, key)
        if "max_grad_norm" in more:
            assert abs(optimizer.grad_norm.item() / reference.grad_norm.item() - 1) < 1e-9
        if "ema_decay" in more:
            for a, b in zip(whole(optimizer.ema_parameters()), reference.ema_parameters(), strict=True):
                assert (a - b).abs().max() < 1e-9 if a.numel() else True


def between_steps(rank, world, folder):
    """States loaded, gradients absent, no plan more than needed, and a refusal that changes nothing."""
    net, alone = sharded(network()), network()
    optimizer, reference = compiledopt.AdamW(net.parameters(), lr=0.05), compiledopt.AdamW(alone.parameters(), lr=0.05)
    start = whole(alone.parameters())
    for one, which, part in ((net, optimizer, mine(rank, world)), (alone, reference, slice(None))):
        train(one, which, range(2), part)
        which.load_state_dict(copy.deepcopy(which.state_dict()))
        one[0].bias.requires_grad_(False)
        train(one, which, range(2, 4), part)
        one[0].bias.requires_grad_(True)
        train(one, which, range(4, 6), part)
    assert_same_training(net, optimizer, alone, reference, start)
    before = compiledopt.compile_stats()["plans_built"]
    train(net, optimizer, range(6, 9), mine(rank, world))
    assert compiledopt.compile_stats()["plans_built"] == before
    attribute, compiledopt.torch_private.LOCAL_TENSOR = compiledopt.torch_private.LOCAL_TENSOR, "gone in this torch"
    train(net, optimizer, range(9, 11), mine(rank, world))
    compiledopt.torch_private.LOCAL_TENSOR = attribute
    train(alone, reference, range(6, 11))
    assert_same_training(net, optimizer, alone, reference, start)
    param = net[0].weight
    optimizer.state[param]["exp_avg"] = torch.zeros(3)
    kept = [p.to_local().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"state 'exp_avg' must be a tensor of shape \(13, 6\)"):
        optimizer.step()
    assert all(torch.equal(a, b.to_local()) for a, b in zip(kept, net.parameters(), strict=True))


def ddp(rank, world, folder):
    net, alone = DistributedDataParallel(network()), network()
    start = whole(network().parameters())
    optimizer, reference = compiledopt.AdamW(net.parameters(), lr=0.05), compiledopt.AdamW(alone.parameters(), lr=0.05)
    losses = train(net, optimizer, range(STEPS), mine(rank, world))
    train(alone, reference, range(STEPS))
    assert_same_training(net, optimizer, alone, reference, start)
    assert len(losses) == STEPS and optimizer.executor == "compiled"


def zero(rank, world, folder):
    net, alone = DistributedDataParallel(network()), network()
    start = whole(network().parameters())
    optimizer = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=compiledopt.AdamW, lr=0.05, weight_decay=0.1)
    reference = compiledopt.AdamW(alone.parameters(), lr=0.05, weight_decay=0.1)
    scheduler = compiledopt.lr_scheduler.StepLR(optimizer, 2)
    for step in range(STEPS):
        train(net, optimizer, [step], mine(rank, world))
        scheduler.step()
        reference.param_groups[0]["lr"] = 0.05 * (0.1 if step >= 2 else 1)
        train(alone, reference, [step])
    assert_same_training(net, optimizer, alone, reference, start)
    assert isinstance(optimizer.optim, compiledopt.AdamW) and optimizer.optim.executor == "compiled"
    optimizer.consolidate_state_dict(0)
    if rank == 0:
        assert len(optimizer.state_dict()["state"]) == len(list(alone.parameters()))


def zero_kept(rank, world, folder):
    """Codes, scales and what rounding keeps, spread over processes by parameter: consolidated they are those of one optimizer,
    bit for bit; from a file they go on with ZeroRedundancyOptimizer and without; torch's get what they stand for."""
    for number, options in enumerate([{"state_dtype": "int8"}, {"state_dtype": "int4"}, {"rounding": "split"}]):
        dtype = torch.bfloat16 if "rounding" in options else torch.float32
        nets = [DistributedDataParallel(network().to(dtype)) for _ in range(2)]
        options = {**options, "min_quantized_numel": 0, "seed": 5}
        reference = compiledopt.AdamW(nets[0].parameters(), lr=0.05, **options)
        optimizer = ZeroRedundancyOptimizer(nets[1].parameters(), optimizer_class=compiledopt.AdamW, lr=0.05, **options)
        for net, one in zip(nets, (reference, optimizer), strict=True):
            train_in(dtype, net, one, range(3), mine(rank, world))
        optimizer.consolidate_state_dict(0)
        path = folder / f"zero-{number}.pt"
        if rank == 0:
            torch.save(optimizer.state_dict(), path)
        dist.barrier()
        saved, expected = torch.load(path, weights_only=True), reference.state_dict()
        assert same_bits(saved["state"], expected["state"]) and any(v.any() for v in saved["state"][0].values())
        other = ZeroRedundancyOptimizer(nets[1].parameters(), optimizer_class=compiledopt.AdamW, lr=0.5, **options)
        other.load_state_dict(torch.load(path, weights_only=True))
        alone = compiledopt.AdamW(copy.deepcopy(nets[0].module).parameters(), lr=0.5, **options)
        alone.load_state_dict(saved)
        plain = alone.state_dict(precision="float32")["state"]
        assert same_bits(plain, reference.state_dict(precision="float32")["state"])
        start = whole(nets[0].parameters())
        for net, one in zip(nets, (reference, other), strict=True):
            train_in(dtype, net, one, range(3, 5), mine(rank, world))
        found, wanted = whole(nets[1].parameters()), whole(nets[0].parameters())
        assert all(map(torch.equal, found, wanted)) and not any(map(torch.equal, found[:1], start[:1])), options
        assert isinstance(other.optim, compiledopt.AdamW) and other.optim.executor == "compiled"


def train_in(dtype, net, optimizer, steps, part):
    for step in steps:
        x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        (net(x[part]).sin() - x[part].sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def wide(rank, world):
    """With matrices that are kept in blocks, in shards of unequal length; states follow from whole gradients, the same for any
    number of processes."""
    torch.manual_seed(0)
    shapes = {"even": (64, 72), "odd": (67, 75), "four": (66, 4, 5, 9), "vector": (301,)}
    net = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
    return fully_shard(net) if world > 1 else net


def gradients(net, step):
    generator = torch.Generator().manual_seed(100 + step)
    for param in net.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        placed = isinstance(param, DTensor)
        param.grad = distribute_tensor(grad, param.device_mesh, param.placements) if placed else grad


KEPT = [{"state_dtype": name} for name, codec in CODECS.items() if name not in {one.unsigned for one in CODECS.values()}]
ROUNDED = [{"state_dtype": "int8", "rounding": name} for name in ("stochastic", "compensated", "split")]


def whole_states(net, optimizer):
    """The states by the parameter's name, and the parameters, each as one tensor. gloo gathers no int16, as NCCL."""
    found = {}
    for name, param in net.items():
        states = {key: v.int() if v.dtype == torch.int16 else v for key, v in optimizer.state[param].items()}
        found[name] = dict(zip(states, whole(states.values()), strict=True))
    return found, dict(zip(net, whole(net.parameters()), strict=True))


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        same_bits(a[k], b[k]) if isinstance(a[k], dict) else (a[k].dtype == b[k].dtype and torch.equal(a[k], b[k])) for k in a
    )


def kept(rank, world, folder):
    """Parameters, codes and scales are the same bit for bit on any number of shards; so is what goes on from a checkpoint that
    another number wrote, and what another precision makes of it."""
    for number, options in enumerate([*KEPT, *ROUNDED]):
        path, net = folder / f"kept-{number}", wide(rank, world)
        net = net.bfloat16() if "rounding" in options else net
        optimizer = compiledopt.AdamW(net.parameters(), lr=0.01, seed=5, **options)
        assert optimizer.executor == "compiled"
        for step in range(3):
            gradients(net, step)
            optimizer.step()
        if world == 2:
            model, state = get_state_dict(net, optimizer)
            dcp.save({"model": model, "optimizer": state}, checkpoint_id=path)
        plain = optimizer.state_dict(precision="float32")["state"]
        averages = dict(zip(net, whole(plain[number]["exp_avg"] for number in range(len(net))), strict=True))
        middle = (*whole_states(net, optimizer), averages)
        gradients(net, 3)
        optimizer.step()
        found = (*middle, *whole_states(net, optimizer))
        if world == 1:
            torch.save(found, f"{path}.pt")
        else:
            expected = torch.load(f"{path}.pt", weights_only=True)
            assert all(map(same_bits, found, expected)), options
        if world == 4:
            resumed(net, optimizer, path, expected, options)


def resumed(net, optimizer, path, expected, options):
    """From what two processes wrote: on, and into another precision."""
    other = compiledopt.AdamW(net.parameters(), lr=0.5, **{**options, "state_dtype": "float32"})
    model, state = get_state_dict(net, optimizer)
    dcp.load({"model": model, "optimizer": state}, checkpoint_id=path)
    set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=state)
    other.load_state_dict(optimizer.state_dict())
    for name, param in net.items():
        average = other.state[param]["exp_avg"]
        assert average.placements == param.placements and average.dtype == torch.float32
        assert torch.equal(average.full_tensor(), expected[2][name]) and (expected[2][name] != 0).any()
    gradients(net, 3)
    optimizer.step()
    found = whole_states(net, optimizer)
    assert all(map(same_bits, found, expected[3:])), options


OPTIONS = {"lr": 0.05 * schedules.exponential(0.9), "ema_decay": 0.5, "max_grad_norm": 1.0}


def save(rank, world, folder):
    net = sharded(network())
    optimizer = compiledopt.AdamW(net.parameters(), **OPTIONS)
    train(net, optimizer, range(3), mine(rank, world))
    model, state = get_state_dict(net, optimizer)
    dcp.save({"model": model, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    train(net, optimizer, range(3, 6), mine(rank, world))
    found = (whole(net.parameters()), whole(optimizer.ema_parameters()))
    if rank == 0:
        torch.save(found, folder / "expected.pt")


def load(rank, world, folder):
    """With as many processes as there are, or one: sharded over it, or not at all."""
    for net in [sharded(network()), *([network()] if world == 1 else [])]:
        with torch.no_grad():
            for param in net.parameters():
                param.zero_()
        optimizer = compiledopt.AdamW(net.parameters(), **OPTIONS)
        model, state = get_state_dict(net, optimizer)
        dcp.load({"model": model, "optimizer": state}, checkpoint_id=folder / "checkpoint")
        set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=state)
        train(net, optimizer, range(3, 6), mine(rank, world))
        expected = torch.load(folder / "expected.pt")
        for found, wanted in zip((whole(net.parameters()), whole(optimizer.ema_parameters())), expected, strict=True):
            for p, q in zip(found, wanted, strict=True):
                assert torch.allclose(p, q, rtol=1e-9, atol=1e-12), (p - q).abs().max()
        assert optimizer.state[next(iter(net.parameters()))]["step"].item() == 6


def main():
    scenarios, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store-{scenarios}-{world}")
    init_device_mesh("cpu", (world,))
    for scenario in scenarios.split(","):
        globals()[scenario](rank, world, folder)
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads end a process with SIGABRT now and then, also without us


if __name__ == "__main__":
    main()
