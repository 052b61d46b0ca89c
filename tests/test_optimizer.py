"""What torch's Optimizer promises beyond the update: groups, names, hooks, closures, errors, schedulers, choice."""

import inspect
import re
import warnings

import pytest
import torch
from catalog import ALGORITHMS, EXECUTORS, by_kind, one_per_algorithm, with_and_without_count
from helpers import Gradients, flat, parameters, run
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import compiledopt

# torch refuses these for a limit of its own implementation; here they work (docs/compatibility.md).
SUPPORTED_HERE = ("not supported for capturable=False and foreach=True", "lr as Tensor doesn't work with foreach")


def database():
    for info in optim_db:
        if info.optim_cls.__name__ in ALGORITHMS:
            yield info


def error_inputs():
    for info in database():
        for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            yield pytest.param(
                info.optim_cls.__name__, error, id=f"{info.optim_cls.__name__}-{error.optimizer_error_input.desc}"
            )


@pytest.mark.parametrize(("name", "error"), list(error_inputs()))
def test_torchs_error_inputs(name, error):
    given = error.optimizer_error_input
    params = given.params if given.params is not None else parameters(shapes=[(1, 1)])
    if any(text in error.error_regex for text in SUPPORTED_HERE):
        getattr(compiledopt, name)(params, **given.kwargs)
        return
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with expected(error.error_type, match=error.error_regex):
        getattr(compiledopt, name)(params, **given.kwargs)


def inputs():
    for info in database():
        for given in info.optim_inputs_func(device="cpu"):
            yield pytest.param(info.optim_cls.__name__, given.kwargs, id=f"{info.optim_cls.__name__}-{given.desc}")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("name", "kwargs"), list(inputs()))
def test_torchs_inputs(name, kwargs, executor):
    theirs, mine = parameters(), parameters()
    run(getattr(torch.optim, name)(theirs, foreach=False, **kwargs), theirs, Gradients(), range(10))
    run(getattr(compiledopt, name)(mine, **kwargs, **EXECUTORS[executor]), mine, Gradients(), range(10))
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ALGORITHMS)
def test_signature_is_torchs(name):
    """The same arguments, order, kinds and defaults, and `compiled` at the end."""
    ours = inspect.signature(getattr(compiledopt, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    own = [name for name in ("capturable", "compiled") if name not in theirs]
    assert list(ours) == [*theirs, *own, "extras"]
    for key, parameter in theirs.items():
        assert ours[key].kind == parameter.kind and ours[key].default == parameter.default
    assert issubclass(getattr(compiledopt, name), torch.optim.Optimizer)
    mine, reference = getattr(compiledopt, name)(parameters()), getattr(torch.optim, name)(parameters())
    assert mine.defaults == {"capturable": False, **reference.defaults, "compiled": None}


def test_nan_and_type_errors():
    with pytest.raises(ValueError, match="Invalid learning rate: nan"):
        compiledopt.SGD(parameters(), lr=float("nan"))
    for options, words in (
        ({"lr": "1e-3"}, r"lr must be a number, got '1e-3' (str); float('1e-3') makes one"),  # as YAML reads it
        ({"lr": None}, "lr must be a number, got None (NoneType)"),
        ({"betas": 0.9}, "betas must be a pair of numbers, got 0.9"),
    ):
        with pytest.raises(TypeError, match=re.escape(words)):
            compiledopt.AdamW(parameters(), **options)
    with pytest.raises(IndexError, match=r"betas must be a pair of numbers, got \(0\.9,\)"):
        compiledopt.AdamW(parameters(), betas=(0.9,))
    with pytest.raises(ValueError, match="Invalid epsilon value: -1"):
        compiledopt.Adam(parameters(), eps=-1)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        compiledopt.Adam([])
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        compiledopt.SGD(parameters(), nesterov=True)


@pytest.mark.parametrize("case", by_kind())
def test_named_parameters_and_new_groups(case):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = case.ours(model[0].named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    optimizer.add_param_group({"params": list(model[1].named_parameters()), "lr": 0.5})
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model[1].weight)
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["weight", "bias"]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": list(model[1].named_parameters())})
    assert "Parameter Group 1" in repr(optimizer) and "compiled: True" in repr(optimizer)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_hooks_and_closure(executor):
    params = parameters(shapes=[(4,)])
    optimizer = one_per_algorithm()[0].ours(params, executor)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post")),
        register_optimizer_step_pre_hook(lambda o, a, k: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append("global post")),
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("state pre")),
        optimizer.register_state_dict_post_hook(lambda o, s: seen.append("state post")),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("load pre")),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load post")),
    ]

    def closure():
        seen.append("closure")
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss

    before = params[0].detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx((before**2).sum().item())
    assert not torch.equal(before, params[0])
    optimizer.load_state_dict(optimizer.state_dict())
    expected = ["global pre", "pre", "closure", "post", "global post", "state pre", "state post", "load pre", "load post"]
    assert seen == expected
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert seen == expected
    optimizer.zero_grad()
    assert params[0].grad is None


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", by_kind())
def test_gradients_are_never_written(case, executor):
    params = parameters()
    optimizer = case.ours(params, executor)
    for step in range(3):
        Gradients().set(params, step)
        kept = [(p.grad, p.grad.clone()) for p in params]
        optimizer.step()
        for param, (grad, copy) in zip(params, kept, strict=True):
            assert param.grad is grad and torch.equal(grad, copy)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_torchs_schedulers_and_tensor_lr_in_place(executor):
    for start in (0.1, torch.tensor(0.1)):
        theirs, mine = parameters(), parameters()
        for o, params in (
            (torch.optim.SGD(theirs, lr=start if isinstance(start, float) else start.clone(), foreach=False), theirs),
            (compiledopt.SGD(mine, lr=start if isinstance(start, float) else start.clone(), **EXECUTORS[executor]), mine),
        ):
            scheduler = torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=20, cycle_momentum=False)
            for step in range(20):
                Gradients().set(params, step)
                o.step()
                scheduler.step() if step < 19 else None
        assert (flat(theirs) - flat(mine)).abs().max() < 1e-5
        assert type(o.param_groups[0]["lr"]) is type(start)


def test_grad_scaler():
    """torch.amp.GradScaler on the CPU: unscales, skips a step with an infinity, goes on."""
    params = parameters(shapes=[(5,)])
    optimizer = compiledopt.AdamW(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((params[0] ** 2).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.state[params[0]]["step"].item() == 1
    params[0].grad = torch.full((5,), torch.inf)
    before = params[0].detach().clone()
    scaler.step(optimizer)
    assert torch.equal(before, params[0])


def test_two_optimizers_on_one_parameter():
    theirs, mine = parameters(), parameters()
    for library, params in ((torch.optim, theirs), (compiledopt, mine)):
        pair = library.SGD(params, lr=0.1, momentum=0.9), library.AdamW(params)
        for step in range(5):
            Gradients().set(params, step)
            for optimizer in pair:
                optimizer.step()
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_parameter_listed_twice_is_updated_twice(executor):
    theirs, mine = parameters(), parameters()
    for o, params in (
        (torch.optim.AdamW([*theirs, theirs[0], theirs[1], theirs[0]], foreach=False), theirs),
        (compiledopt.AdamW([*mine, mine[0], mine[1], mine[0]], **EXECUTORS[executor]), mine),
    ):
        run(o, params, Gradients(), range(5))
        assert [o.state[param]["step"].item() for param in params[:3]] == [15, 10, 5]
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5


def test_choice():
    """docs/executors.md, line by line."""
    expected = [
        ({}, "compiled"),
        ({"compiled": True}, "compiled"),
        ({"fused": True}, "compiled"),
        ({"foreach": True}, "foreach"),
        ({"foreach": False}, "for-loop"),
        ({"fused": False}, "for-loop"),
        ({"compiled": False}, "for-loop"),
        ({"compiled": False, "foreach": True}, "foreach"),
        ({"differentiable": True}, "for-loop"),
    ]
    for options, executor in expected:
        optimizer = compiledopt.AdamW([torch.nn.Parameter(torch.ones(3))], **options)
        assert optimizer.executor == executor, options
    for options, words in [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together."),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
        ({"compiled": True, "foreach": True}, "`compiled` and `foreach` cannot be `True` together."),
        ({"compiled": True, "differentiable": True}, "`compiled` does not support `differentiable`"),
        ({"compiled": False, "fused": True}, "declines"),
    ]:
        for algorithm in with_and_without_count():
            with pytest.raises(RuntimeError, match=words):
                algorithm.ours(parameters(), **options)


def test_options_may_change_between_steps():
    """Flags and executors are group options: changing one changes the next step."""
    theirs, mine = parameters(), parameters()
    changes = [{}, {"maximize": True}, {"amsgrad": True}, {"weight_decay": 0.0}, {"weight_decay": 0.2}, {"betas": (0.5, 0.6)}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for o, params in ((torch.optim.AdamW(theirs, foreach=False), theirs), (compiledopt.AdamW(mine), mine)):
            for step, change in enumerate(changes):
                for group in o.param_groups:
                    group.update(change)
                    if "amsgrad" in change and isinstance(o, torch.optim.AdamW):
                        for p in params:
                            o.state[p]["max_exp_avg_sq"] = torch.zeros_like(p)
                run(o, params, Gradients(), range(step, step + 1))
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-5
    for flags, executor in (({"foreach": True}, "foreach"), ({"foreach": None}, "compiled"), ({"foreach": False}, "for-loop")):
        o.param_groups[0].update(flags)
        run(o, mine, Gradients(), range(9, 10))
        assert o.executor == executor


def test_what_stands_around_a_step_is_there_where_it_is_seen():
    """torch's wrapper, with the profiler's range and the hooks, is left out where nobody sees it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    class Own(compiledopt.SGD):
        def step(self, closure=None):
            return super().step(closure)

    def into(seen, what):
        return lambda *_: seen.append(what)

    for make in (compiledopt.SGD, Own):
        params, seen = parameters(shapes=[(3,)]), []
        optimizer = make(params, lr=0.1)
        params[0].grad = torch.ones(3)
        with torch.profiler.profile() as profile:
            optimizer.step()
            optimizer.zero_grad()
        names = {event.name for event in profile.events()}
        assert {f"Optimizer.step#{make.__name__}.step", f"Optimizer.zero_grad#{make.__name__}.zero_grad"} <= names
        assert params[0].grad is None
        params[0].grad = torch.ones(3)
        with torch.autograd.profiler.emit_itt(enabled=False):
            optimizer.step()
        handles = [
            optimizer.register_step_pre_hook(into(seen, "pre")),
            optimizer.register_step_post_hook(into(seen, "post")),
            register_optimizer_step_pre_hook(into(seen, "all pre")),
            register_optimizer_step_post_hook(into(seen, "all post")),
        ]
        optimizer.step()
        assert seen == ["all pre", "pre", "post", "all post"]
        for handle in handles:
            handle.remove()
        optimizer.step()
        assert len(seen) == 4
        before = params[0].detach().clone()
        with pytest.raises(RuntimeError, match="must return None or a tuple"):
            optimizer.register_step_pre_hook(lambda *_: 1)
            optimizer.step()
        assert torch.equal(before, params[0].detach())
