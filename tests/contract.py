"""What every optimizer promises, each as one function: it holds for torch.optim, and must hold here (test_contract.py). The
first line of each docstring stands in docs/compatibility.md."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from catalog import Algorithm

CONTRACTS: list[Any] = []


def contract(function: Any) -> Any:
    CONTRACTS.append(function)
    return function


class Subject:
    """One algorithm, ours or its counterpart, on matrices, which all of them take."""

    def __init__(self, of: Algorithm, ours: bool) -> None:
        self.of, self.ours = of, ours
        self.kind = of.ours if ours else of.counterpart
        self.needs_closure = of.rule is None
        self.target = torch.linspace(-1, 1, 12).reshape(4, 3)

    def params(self, count: int = 2) -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(7)
        return [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(count)]

    def make(self, params: Any, **more: Any) -> Any:
        return self.kind(params, **{**self.of.promised, **more})

    def loss(self, params: Any) -> torch.Tensor:
        return sum(((param - self.target) ** 2).sum() for param in params)  # type: ignore[return-value]

    def backward(self, params: Any) -> float:
        params = [p for p in params if p.requires_grad]
        for param in params:
            param.grad = None
        loss = self.loss(params)
        loss.backward()
        if self.of.sparse_only:
            for param in params:
                param.grad = param.grad.to_sparse(1)
        return loss.item()

    def step(self, optimizer: Any, params: Any) -> Any:
        self.backward(params)
        return optimizer.step((lambda: self.backward(params)) if self.needs_closure else None)

    def run(self, optimizer: Any, params: Any, steps: int = 3) -> None:
        for _ in range(steps):
            self.step(optimizer, params)

    def values(self, params: Any) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in params]).clone()


def saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ---- minimizing ----


@contract
def descends(subject: Subject) -> None:
    """A sum of squares falls, for parameters contiguous or not, with `lr` as a number or a tensor."""
    for tensor_lr in (False, True):
        for transposed in (False, True):
            params = subject.params()
            if transposed and subject.needs_closure and not subject.ours:
                continue  # it takes views of gradients, which those of such parameters do not have
            if transposed:
                params = [torch.nn.Parameter(p.detach().t().contiguous().t()) for p in params]
                assert not params[0].is_contiguous()
            more = {"lr": torch.tensor(subject.of.promised["lr"])} if tensor_lr else {}
            optimizer = subject.make(params, **more)
            before = subject.loss(params).item()
            subject.run(optimizer, params, 20)
            assert subject.loss(params).item() < before


@contract
def descends_under_schedulers(subject: Subject) -> None:
    """The same with one or two schedulers at work."""
    scheduler = torch.optim.lr_scheduler
    for makers in (
        [lambda o: scheduler.StepLR(o, 5, 0.9)],
        [lambda o: scheduler.ExponentialLR(o, 0.99), lambda o: scheduler.LinearLR(o)],
    ):
        params = subject.params()
        optimizer = subject.make(params)
        schedulers = [make(optimizer) for make in makers]
        before = subject.loss(params).item()
        for _ in range(20):
            subject.step(optimizer, params)
            for one in schedulers:
                one.step()
        assert subject.loss(params).item() < before


@contract
def maximizes(subject: Subject) -> None:
    """With `maximize=True`, where there is such an option, it rises instead."""
    if "maximize" not in inspect.signature(subject.kind).parameters:  # torch's LBFGS has it since 2.14
        return
    params = subject.params()
    optimizer = subject.make(params, maximize=True)
    before = subject.loss(params).item()
    subject.run(optimizer, params, 10)
    assert subject.loss(params).item() > before


# ---- groups ----


@contract
def groups_have_options_of_their_own(subject: Subject) -> None:
    """A group's options are its own; what it does not say comes from the constructor."""
    if subject.needs_closure:
        return
    params = subject.params()
    least = 1e-30 if subject.of.sparse_only else 0.0  # torch's SparseAdam wants more than 0
    optimizer = subject.make([{"params": params[:1]}, {"params": params[1:], "lr": least}], lr=0.05)
    before = [p.detach().clone() for p in params]
    subject.run(optimizer, params, 2)  # ADOPT's first step moves nothing
    assert (params[0] - before[0]).abs().max() > 1e-5
    moved = (params[1] - before[1]).abs().max()
    assert moved == 0 or subject.of.moves_without_rate
    assert optimizer.param_groups[0]["lr"] == 0.05 and set(optimizer.param_groups[0]) == set(optimizer.param_groups[1])


@contract
def groups_can_be_added(subject: Subject) -> None:
    """`add_param_group` in the middle of a run; parameters of it take part from then on."""
    if subject.needs_closure or (subject.of.states_at_once and not subject.ours):
        return  # torch 2.11's Adagrad makes states in its constructor alone
    params = subject.params(3)
    optimizer = subject.make(params[:2])
    subject.run(optimizer, params[:2])
    optimizer.add_param_group({"params": params[2]})
    before = params[2].detach().clone()
    subject.run(optimizer, params)
    assert not torch.equal(before, params[2]) and len(optimizer.param_groups) == 2


@contract
def wrong_parameters_are_refused(subject: Subject) -> None:
    """Sets, numbers, tensors in no list, empty lists, results of operations and parameters in two groups raise."""
    params = subject.params()
    leaf = torch.zeros(2, 2, requires_grad=True)
    for given, error in (
        (params[0], TypeError),
        ([], ValueError),
        ([1.0], TypeError),
        ([{"params": set(params)}], TypeError),
        ([leaf * 2], ValueError),
        ([{"params": params[:1]}, {"params": params[:1]}], ValueError),
        ([("a", params[0]), params[1]], (TypeError, ValueError)),
        ([{"params": [("a", params[0])]}, {"params": [params[1]]}], ValueError),
    ):
        with pytest.raises(error):
            subject.make(given)


@contract
def parameters_may_come_from_a_generator(subject: Subject) -> None:
    """An iterator of parameters, or of names and parameters, is read once; names are kept in the groups."""
    params = subject.params()
    assert subject.make(p for p in params).param_groups[0]["params"] == params
    named = subject.make((name, p) for name, p in zip("ab", params, strict=True))
    assert named.param_groups[0]["param_names"] == ["a", "b"]


# ---- gradients ----


@contract
def nothing_happens_without_gradients(subject: Subject) -> None:
    """A step in which no parameter has a gradient changes no parameter."""
    params = subject.params()
    optimizer = subject.make(params)
    before = subject.values(params)
    optimizer.step(*([lambda: 1.0] if subject.needs_closure else []))
    assert torch.equal(before, subject.values(params))


@contract
def nothing_happens_for_zeros(subject: Subject) -> None:
    """Gradients of zeros, without decay, change no parameter."""
    params = subject.params()
    optimizer = subject.make(params, **subject.of.steady)
    before = subject.values(params)
    for param in params:
        zeros = torch.zeros_like(param)
        param.grad = zeros.to_sparse(1) if subject.of.sparse_only else zeros
    optimizer.step(*([lambda: 1.0] if subject.needs_closure else []))
    assert torch.equal(before, subject.values(params))


@contract
def absent_gradients_leave_a_parameter_out(subject: Subject) -> None:
    """A parameter without a gradient stays, with its states, while others move."""
    if subject.needs_closure:
        return
    params = subject.params()
    optimizer = subject.make(params)
    subject.run(optimizer, params)
    before, state = params[1].detach().clone(), copy.deepcopy(dict(optimizer.state[params[1]]))
    params[1].requires_grad_(False)
    params[1].grad = None
    subject.run(optimizer, params)
    assert torch.equal(before, params[1]) and str(state) == str(dict(optimizer.state[params[1]]))


@contract
def gradients_are_zeroed_or_dropped(subject: Subject) -> None:
    """`zero_grad()` sets gradients to None, `zero_grad(set_to_none=False)` to zeros in place."""
    params = subject.params()
    optimizer = subject.make(params)
    if not subject.of.sparse_only:
        subject.backward(params)
        kept = params[0].grad
        optimizer.zero_grad(set_to_none=False)
        assert params[0].grad is kept and not kept.any()
    subject.backward(params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@contract
def gradients_are_not_written(subject: Subject) -> None:
    """A step reads gradients and leaves them as they were."""
    if subject.needs_closure:
        return
    params = subject.params()
    optimizer = subject.make(params)
    subject.backward(params)
    before = [p.grad.to_dense().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(a, p.grad.to_dense()) for a, p in zip(before, params, strict=True))


@contract
def a_closure_is_called_with_gradients_enabled(subject: Subject) -> None:
    """`step(closure)` calls it with gradients enabled, also under no_grad, and returns its loss; without one, None."""
    params = subject.params()
    optimizer = subject.make(params)
    seen = []

    def closure() -> float:
        seen.append(torch.is_grad_enabled())
        return subject.backward(params)

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert seen and all(seen) and loss == pytest.approx(subject.loss(subject.params()).item())
    if not subject.needs_closure:
        assert subject.step(optimizer, params) is None


# ---- states ----


@contract
def states_are_made(subject: Subject) -> None:
    """After a step there are states, for the parameters that took part."""
    params = subject.params()
    optimizer = subject.make(params)
    assert len(optimizer.state) == 0 or subject.of.states_at_once
    subject.step(optimizer, params)
    assert set(optimizer.state) <= set(params) and all(len(state) for state in optimizer.state.values())
    assert subject.needs_closure or len(optimizer.state) == len(params)


@contract
def states_go_through_a_file(subject: Subject) -> None:
    """A state_dict, saved and loaded with `weights_only=True`, continues a run as if nothing had happened."""
    params = subject.params()
    optimizer = subject.make(params)
    subject.run(optimizer, params)
    state, twins = saved(copy.deepcopy(optimizer.state_dict())), [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = subject.make(twins)
    again.load_state_dict(state)
    subject.run(optimizer, params)
    subject.run(again, twins)
    assert torch.equal(subject.values(params), subject.values(twins))


@contract
def states_have_the_form_of_torchs(subject: Subject) -> None:
    """`state_dict()` has `state` by number and `param_groups` with numbers for parameters, as torch's."""
    params = subject.params()
    optimizer = subject.make(params)
    subject.step(optimizer, params)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"} and state["param_groups"][0]["params"] == [0, 1]
    assert set(state["state"]) <= {0, 1}
    theirs = Subject(subject.of, ours=False)
    reference = theirs.make(theirs.params())
    theirs.step(reference, reference.param_groups[0]["params"])
    wanted = reference.state_dict()
    scratch = {"al"} if subject.needs_closure else set()  # of its recursion; ours keeps none
    assert [set(v) - scratch for v in state["state"].values()] == [set(v) - scratch for v in wanted["state"].values()]
    assert set(wanted["param_groups"][0]) <= set(state["param_groups"][0])


@contract
def states_of_named_parameters(subject: Subject) -> None:
    """States of named and unnamed parameters load into each other; names of the loading one stay."""
    params = subject.params()
    named, plain = subject.make(list(zip("ab", params, strict=True))), subject.make(subject.params())
    subject.step(named, params)
    assert named.state_dict()["param_groups"][0]["param_names"] == ["a", "b"]
    plain.load_state_dict(copy.deepcopy(named.state_dict()))
    named.load_state_dict({**plain.state_dict()})
    assert named.param_groups[0]["param_names"] == ["a", "b"]


@contract
def steps_that_are_numbers(subject: Subject) -> None:
    """Old checkpoints keep `step` as a number; they load."""
    params = subject.params()
    optimizer = subject.make(params)
    subject.run(optimizer, params)
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        if "step" in values:
            values["step"] = int(values["step"])
    again = subject.make(params)
    again.load_state_dict(state)
    subject.step(again, params)
    assert all(float(values.get("step", 4)) == 4 for values in again.state.values())


@contract
def loading_casts_to_the_parameters(subject: Subject) -> None:
    """A loaded state takes its parameter's dtype, but for what is one number: counts and products of betas."""
    if subject.needs_closure or subject.of.sparse_only:
        return
    params = subject.params()
    optimizer = subject.make(params)
    subject.step(optimizer, params)
    wide = [torch.nn.Parameter(p.detach().double()) for p in params]
    again = subject.make(wide)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    numbers = {"step", *(() if subject.of.rule is None else subject.of.rule.scalars)}
    for values in again.state.values():
        assert all(v.dtype == torch.float64 for name, v in values.items() if name not in numbers and v is not None)


@contract
def misfits_are_refused(subject: Subject) -> None:
    """A state_dict with other groups, or with groups of other sizes, raises ValueError."""
    optimizer = subject.make(subject.params())
    for state in (subject.make(subject.params(3)).state_dict(), {"state": {}, "param_groups": []}):
        with pytest.raises(ValueError, match="loaded state dict"):
            optimizer.load_state_dict(state)


# ---- copies and hooks ----


@contract
def copies_go_on_alone(subject: Subject) -> None:
    """deepcopy and pickle, with the parameters, make optimizers that go on alike; public attributes are all there."""
    if subject.needs_closure and not subject.ours:
        return  # its copies lack an attribute that step reads
    params = subject.params()
    optimizer = subject.make(params)
    subject.run(optimizer, params)
    for twin, twins in (copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))):
        assert {k for k in vars(optimizer) if not k.startswith("_")} == {k for k in vars(twin) if not k.startswith("_")}
        mine = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = subject.make(mine)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        subject.run(twin, twins)
        subject.run(other, mine)
        assert torch.equal(subject.values(twins), subject.values(mine))


@contract
def hooks_are_called_in_order(subject: Subject) -> None:
    """Global and own hooks before and after a step, and around state_dict and load_state_dict, in torch's order."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    params, calls = subject.params(), []
    optimizer = subject.make(params)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global after")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        optimizer.register_state_dict_pre_hook(lambda *_: calls.append("state")),
        optimizer.register_state_dict_post_hook(lambda *_: calls.append("state done")),
        optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load")),
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded")),
    ]
    subject.step(optimizer, params)
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    subject.step(optimizer, params)
    assert calls == ["global before", "before", "after", "global after", "state", "state done", "load", "loaded"]


@contract
def hooks_are_given_the_arguments(subject: Subject) -> None:
    """Hooks of a step are given `(optimizer,)` and `{}`, and the closure where there was one, as it was given."""
    params, given = subject.params(), []
    optimizer = subject.make(params)
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        register(lambda opt, args, kwargs: given.append((opt, args, kwargs)))

    def closure():
        return subject.backward(params)

    calls = [((closure,), {}), ((), {"closure": closure})]
    for args, kwargs in calls if subject.needs_closure else [((), {}), *calls]:
        optimizer.step(*args, **kwargs)
        assert given == [(optimizer, (optimizer, *args), kwargs)] * 2
        given.clear()
    with pytest.raises(TypeError, match=r"\.step\(\) got an unexpected keyword argument 'loss'"):
        optimizer.step(loss=closure)


@contract
def a_hook_may_replace_the_arguments(subject: Subject) -> None:
    """What a step pre-hook returns becomes the arguments; anything but (args, kwargs) raises RuntimeError."""
    params = subject.params()
    optimizer = subject.make(params)
    called: list[int] = []

    def closure() -> float:
        called.append(1)
        return subject.backward(params)

    with pytest.raises(RuntimeError, match=r"\.step at 0x[0-9a-f]+> must return None or a tuple of \(new_args, new_kwargs\)"):
        handle = optimizer.register_step_pre_hook(lambda *_: 3)
        subject.step(optimizer, params)
    handle.remove()
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, closure), {}))
    subject.step(optimizer, params)
    assert called


@contract
def it_can_be_printed(subject: Subject) -> None:
    """`repr` names the class and each group's options."""
    text = repr(subject.make(subject.params()))
    assert text.startswith(f"{subject.kind.__name__} (\nParameter Group 0\n") and "lr: " in text


@contract
def the_profiler_sees_a_step(subject: Subject) -> None:
    """A step is a range `Optimizer.step#<class>.step` in a profile."""
    params = subject.params()
    optimizer = subject.make(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        subject.step(optimizer, params)
    assert f"Optimizer.step#{subject.kind.__name__}.step" in {event.key for event in profile.key_averages()}


@contract
def the_default_dtype_is_respected(subject: Subject) -> None:
    """Under a default dtype of float64, float32 parameters step as before."""
    params, twins = subject.params(), subject.params()
    subject.run(subject.make(params), params)
    torch.set_default_dtype(torch.float64)
    try:
        subject.target = subject.target.float()
        subject.run(subject.make(twins), twins)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype is torch.float32 for p in twins)
    torch.testing.assert_close(subject.values(params), subject.values(twins), rtol=1e-4, atol=1e-5)


@contract
def empty_parameters_are_no_hindrance(subject: Subject) -> None:
    """A parameter without elements takes part without effect."""
    if not subject.of.takes_empty:
        return  # torch's divide by the number of elements
    params = [*subject.params(), torch.nn.Parameter(torch.empty(0, 3))]
    optimizer = subject.make(params)
    before = subject.values(params)
    for _ in range(2):
        subject.backward(params[:2])
        empty = torch.zeros(0, 3)
        params[2].grad = empty.to_sparse(1) if subject.of.sparse_only else empty
        optimizer.step(*([lambda: subject.backward(params[:2])] if subject.needs_closure else []))
    assert not torch.equal(before, subject.values(params))


@contract
def a_parameter_listed_twice_warns(subject: Subject) -> None:
    """The same parameter twice in one group warns and is allowed."""
    params = subject.params()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subject.make([params[0], params[0]])
    assert any("duplicate parameters" in str(warning.message) for warning in caught)
