"""Write your own: the examples of docs/write-your-own.md, and what a defined class must do."""

import copy
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest
import test_parity
import torch
from catalog import CATALOG, DTYPES, EXECUTORS, Algorithm
from contract import CONTRACTS, Subject
from helpers import Gradients, copies, flat, parameters, rms, run, same, snapshot

import compiledopt
from compiledopt import total
from compiledopt.rules.trace import TraceError

PAGE = Path(__file__).parent.parent / "docs" / "write-your-own.md"


def test_the_pages_examples():
    if not PAGE.exists():
        pytest.skip("the tests run without the repository around them")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 10
    namespace = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), namespace)


@compiledopt.define
def Lion(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Lion: the sign of a momentum."""
    update = (betas[0] * exp_avg + (1 - betas[0]) * grad).sign()
    param = param * (1 - lr * weight_decay) - lr * update
    return param, betas[1] * exp_avg + (1 - betas[1]) * grad


class PlainLion(torch.optim.Optimizer):
    """Lion as its authors wrote it, one operation at a time."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False, foreach=None):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = state["exp_avg"].clone().mul_(beta1).add(grad, alpha=1 - beta1).sign_()
                p.add_(update, alpha=-group["lr"])
                state["exp_avg"].mul_(beta2).add_(grad, alpha=1 - beta2)
        return loss


# An algorithm that torch.optim has not, in every test of the others: its class, its configurations, its rule again by hand.
LION = Algorithm(
    Lion,
    {
        "default": {"lr": 0.01},
        "tensor_lr": lambda: {"lr": torch.tensor(0.01)},
        "all": {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True},
    },
    reference=PlainLion,
)


@compiledopt.define(scalars=("step", "decay"), initial={"decay": 1.0, "peak": 0.5})
def Own(param, grad, step, decay, peak, *, lr=0.1, rate=0.9, flag=False):
    decay = decay * rate
    grad = grad.abs() if flag else grad
    peak = torch.maximum(peak, grad.abs())
    return param - lr * decay * grad / peak, step + 1, decay, peak


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("maximize", [False, True])
def test_lion_against_its_authors(executor, maximize):
    theirs, mine = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    reference = PlainLion(theirs, **options, maximize=maximize)
    optimizer = Lion(mine, **options, maximize=maximize, **EXECUTORS[executor])
    gradients = Gradients(torch.float64, skip=True)
    run(reference, theirs, gradients, range(50))
    run(optimizer, mine, gradients, range(50))
    assert optimizer.executor == executor
    effect = rms(flat(theirs) - flat(parameters(dtype=torch.float64)))
    assert effect > 0.01 and (flat(mine) - flat(theirs)).abs().max() <= 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", LION.cases, ids=str)
def test_error_against_the_oracle(case, executor, dtype):
    test_parity.test_error_against_the_oracle(case, dtype, executor)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", LION.cases, ids=str)
def test_states_and_special_values(case, executor):
    test_parity.test_states_and_missing_gradients(case, executor)
    test_parity.test_special_values(case, executor)


@pytest.mark.parametrize("promise", CONTRACTS, ids=lambda promise: promise.__name__)
def test_promises(promise):
    promise(Subject(LION, ours=False))
    promise(Subject(LION, ours=True))


def test_a_rule_that_is_not_its_reference_is_noticed():
    @compiledopt.define
    def Wrong(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        return param * (1 - lr * weight_decay) - lr * exp_avg.sign(), exp_avg.lerp(grad, 1 - betas[1])

    wrong = Algorithm(Wrong, LION.configurations, reference=PlainLion)
    for executor in EXECUTORS:
        with pytest.raises(AssertionError):
            test_parity.test_error_against_the_oracle(wrong.cases[0], torch.float32, executor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("algorithm", [Lion, Own])
def test_every_executor_and_dtype(algorithm, executor, dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    start, lr = parameters(dtype), 0.2 if dtype is torch.bfloat16 else 0.01
    oracle, mine = copies(start, wide), copies(start)
    run(algorithm(oracle, lr=lr, foreach=False), oracle, Gradients(dtype), range(20))
    optimizer = algorithm(mine, lr=lr, **EXECUTORS[executor])
    run(optimizer, mine, Gradients(dtype), range(20))
    effect = rms(flat(oracle) - flat(start))
    assert effect > 0.01 and optimizer.executor == executor
    # Lion takes signs, which may turn over where a momentum passes zero: hence a mean.
    assert rms(flat(mine) - flat(oracle)) <= (0.2 if dtype is torch.bfloat16 else 0.01) * effect


def test_a_defined_class_has_torchs_habits():
    assert str(inspect.signature(Lion)).startswith("(params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, *, maximize=False")
    assert Lion.__name__ == "Lion" and Lion.__doc__.startswith("Lion: the sign") and Lion.__module__ == __name__
    assert "Own, of the rule Own" in Own.__doc__
    params = parameters()
    optimizer = Lion([{"params": params[:2], "lr": 0.5}, {"params": params[2:]}], 0.1, (0.5, 0.6))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1] and optimizer.defaults["betas"] == (0.5, 0.6)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    before = compiledopt.compile_stats()["kernels_compiled"]
    run(optimizer, params, Gradients(), range(1))
    compiled = compiledopt.compile_stats()["kernels_compiled"]
    for step in range(1, 4):
        scheduler.step()
        run(optimizer, params, Gradients(skip=True), range(step, step + 1))
    assert compiledopt.compile_stats()["kernels_compiled"] == compiled <= before + 1
    for clone in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        twin = clone(optimizer)
        twins = [p for group in twin.param_groups for p in group["params"]]
        run(twin, twins, Gradients(), range(4, 6))
        assert all(torch.isfinite(p).all() for p in twins)
    others = copies(params)
    other = Lion([{"params": others[:2]}, {"params": others[2:]}])
    other.load_state_dict(optimizer.state_dict())
    assert same([state for _, _, state in snapshot(other)], [state for _, _, state in snapshot(optimizer)])
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert "sign" in optimizer.explain() and Lion(parameters(), lr=torch.tensor(0.1)).executor == "compiled"


def test_a_checkpoint_from_before_an_option():
    """A class that was given an option since: groups saved without it get its default."""

    @compiledopt.define
    def Before(param, grad, *, lr=0.1):
        return param - lr * grad

    @compiledopt.define
    def After(param, grad, *, lr=0.1, factor=2.0, sharp=False):
        return param - factor * lr * (grad.sign() if sharp else grad)

    params = parameters(shapes=[(3,)])
    optimizer = After(params)
    optimizer.load_state_dict(Before(parameters(shapes=[(3,)]), lr=0.5).state_dict())
    group, start = optimizer.param_groups[0], params[0].detach().clone()
    assert (group["lr"], group["factor"], group["sharp"]) == (0.5, 2.0, False)
    params[0].grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), start - 1.0)


def test_initial_values():
    params = parameters(shapes=[(3,)])
    params[0].grad = torch.tensor([0.1, -2.0, 0.2])
    optimizer = Own(params, lr=0.1)
    optimizer.step()
    state = optimizer.state[params[0]]
    assert state["step"] == 1 and state["decay"] == pytest.approx(0.9) and list(state) == ["step", "decay", "peak"]
    torch.testing.assert_close(state["peak"], torch.tensor([0.5, 2.0, 0.5]))


def test_bad_arguments():
    for arguments, error, words in (
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"betas": (0.5, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
        ({"weight_decay": float("nan")}, ValueError, "Invalid weight_decay value: nan"),
        ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
        ({"momentum": 0.9}, TypeError, "unexpected keyword argument 'momentum'"),
        ({"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            Lion(parameters(), **arguments)

    @compiledopt.define
    def needs(param, grad, *, lr):
        return param - lr * grad

    with pytest.raises(TypeError, match=r"missing a required (keyword-only )?argument: 'lr'"):
        needs(parameters())
    with pytest.raises(TypeError, match=r"the first two arguments must be \(param, grad\)"):
        compiledopt.define(lambda grad, param: None)
    with pytest.raises(TypeError, match="branches names 'weight_decay'"):
        compiledopt.define(branches=("weight_decay",))(lambda param, grad: param)


def authored(body, declared=False):
    """A function whose third line is the culprit; its second is neither pointwise nor a reduction that passes know."""
    namespace = {"torch": torch}
    size = "grad.reshape(-1).sort().values.norm()"
    source = f"def Bad(param, grad, *, lr=0.1):\n    size = {size}\n    {body}\n    return param - lr * grad / size"
    exec(compile(source, "author.py", "exec"), namespace)
    return compiledopt.define(elementwise=not declared)(namespace["Bad"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("param.add_(grad)", "author.py:3: add_ mutates param; a rule returns new values"),
        ("grad += 1", "author.py:3: (add_|__iadd__|iadd) mutates grad"),
        ("param[0] = 1", "author.py:3: __setitem__ mutates param"),
        ("if size > 1: pass", "author.py:3: a rule must not branch on or read the value"),
        ("if lr > 1: pass", "author.py:3: a rule must not branch on or read the value"),
        ("size.item()", "author.py:3: a rule must not branch on or read the value"),
        ("return size", r"author.py:1: rule Bad returned a tensor of shape \(\) for param, which is \(40, 50\)"),
        ("return param, grad", r"author.py:1: rule Bad must return \(param\), got 2 values"),
        ("return 3.0", "author.py:1: rule Bad returned float for param, not a tensor"),
    ],
)
def test_rules_that_are_not_pointwise_are_tried_before_they_write(body, words):
    params = parameters()
    run(compiledopt.SGD(params, lr=0.0), params, Gradients(), range(1))
    optimizer = authored(body, declared=True)(params)
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(TraceError, match=words):
            optimizer.step()
        assert same(before, snapshot(optimizer)) and not optimizer.state


def test_what_is_not_pointwise_falls_back_with_a_reason():
    params = parameters(shapes=[(4, 3), (4, 3), (5,)])
    optimizer = authored("pass")(params)
    Gradients().set(params, 0)
    with pytest.warns(UserWarning, match=r"because author.py:2: sort is not a pointwise operation"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # once is enough
        authored("pass")(params, foreach=False, compiled=False)
    assert optimizer.executor == "foreach" and "author.py:2: sort" in optimizer.explain()
    with pytest.raises(RuntimeError, match="compiled=True cannot be had"):
        authored("pass")(params, compiled=True).step()


def test_stacks_agree_with_single_tensors_and_with_the_definition():
    results = []
    for options in ({}, {"foreach": False}):
        params = parameters(shapes=[(4, 3), (4, 3), (5,), (5,), ()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(authored("pass")(params, lr=0.1, **options), params, Gradients(), range(5))
        results.append(flat(params))
    expected = parameters(shapes=[(4, 3), (4, 3), (5,), (5,), ()])
    for step in range(5):
        Gradients().set(expected, step)
        with torch.no_grad():
            for param in expected:
                param -= 0.1 * param.grad / param.grad.norm()
    for result in results:
        torch.testing.assert_close(result, flat(expected))


def test_a_rule_that_cannot_be_stacked_runs_one_by_one():
    @compiledopt.define(elementwise=False)
    def data_dependent(param, grad, *, lr=0.1):
        return param - lr * grad / torch.nonzero(grad).shape[0]

    params = parameters(shapes=[(6,), (6,)])
    Gradients().set(params, 0)
    before = flat(params)
    data_dependent(params).step()
    torch.testing.assert_close(flat(params), before - 0.1 * flat([p.grad for p in params]) / 6)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_rule_without_a_learning_rate(executor):
    @compiledopt.define
    def Fixed(param, grad, *, rate=0.1):
        return param - rate * grad

    params, start = parameters(shapes=[(5,)]), parameters(shapes=[(5,)])
    optimizer = Fixed(params, ema_decay=0.5, **EXECUTORS[executor])
    run(optimizer, params, Gradients(), range(1))
    torch.testing.assert_close(params[0], start[0] - 0.1 * params[0].grad)
    again = Fixed(copies(params), ema_decay=0.5)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["rate"] == 0.1 and "lr" not in again.param_groups[0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_options_named_as_the_librarys_are_the_rules_own(executor):
    @compiledopt.define
    def Own(param, grad, *, lr=0.1, max_grad_norm=1.0, ema_decay=0.5):
        return param - lr * max_grad_norm * grad - ema_decay

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.full((3,), 100.0)
    optimizer = Own([param], **EXECUTORS[executor])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 10 - 0.5))
    assert optimizer.grad_norm is None and not optimizer.state[param]
    with pytest.raises(TypeError, match="max_grad_norm"):
        Own([param], 0.1, 1.0, 0.5, max_grad_norm=1.0)


def test_a_branch_that_would_fail_later_fails_at_once():
    """`if pull > 0` went well while pull was 0, and raised in the middle of training."""

    @compiledopt.define(branches=("pull",))
    def Pulled(param, grad, *, lr=0.1, pull=0.0):
        if pull > 0:
            param = param * (1 - pull)
        return param - lr * grad

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    for pull in (0.0, 0.5):
        with pytest.raises(TypeError, match=r"test_own.py:\d+: .* write != 0|must not branch on the value"):
            Pulled([param], pull=pull).step()
    assert torch.equal(param.detach(), torch.ones(3))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_number_may_be_compared_with_zero_either_way(executor):
    @compiledopt.define(branches=("pull",))
    def Pulled(param, grad, *, lr=0.1, pull=0.0):
        if pull == 0:
            return param - lr * grad
        return param - lr * grad if pull == 0 else param * (1 - pull) - lr * grad

    for pull in (0.0, 0.5):
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        Pulled([param], pull=pull, **EXECUTORS[executor]).step()
        torch.testing.assert_close(param.detach(), torch.full((3,), 1 - pull - 0.1))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_first_update_after_states_were_made_ahead(executor):
    @compiledopt.define
    def Counting(param, grad, count, *, lr=0.1, first):
        return param - lr * grad, count + first

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Counting(params, **EXECUTORS[executor])
    optimizer.make_states()
    for late in (False, False, True, True):
        params[0].grad = torch.ones(3)
        params[1].grad = torch.ones(3) if late else None
        optimizer.step()
    assert all(torch.equal(optimizer.state[param]["count"], torch.ones(3)) for param in params)


@compiledopt.define
def Keeps(param, grad, old, older, *, lr=0.5):
    return param - lr * grad, param, old


@compiledopt.define
def KeepsMean(param, grad, old, older, *, lr=0.5):
    return param - lr * grad * grad.mean(), param, old


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("optimizer", [Keeps, KeepsMean], ids=["pointwise", "reducing"])
def test_a_state_may_be_what_the_parameter_was(optimizer, executor, dtype):
    """What is written first is not what the next one reads."""
    param = torch.nn.Parameter(torch.arange(3.0, dtype=dtype))
    mine = optimizer([param], **EXECUTORS[executor])
    for _ in range(3):
        param.grad = torch.ones(3, dtype=dtype)
        mine.step()
    state = mine.state[param]
    found = [values.tolist() for values in (param.detach(), state["old"], state["older"])]
    assert found == [[-1.5, -0.5, 0.5], [-1.0, 0.0, 1.0], [-0.5, 0.5, 1.5]]


def test_a_state_that_a_number_makes_optional_is_another_program():
    """One class, with and without momentum: the second had lost its state without a word."""

    @compiledopt.define(optional={"buffer": "momentum"})
    def Heavy(param, grad, buffer, *, lr=0.1, momentum=0.0):
        if buffer is not None:
            grad = buffer = momentum * buffer + grad
        return param - lr * grad, buffer

    for momentum, expected in ((0.0, 0.8), (0.5, 0.75), (None, 0.8)):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = Heavy([param], momentum=momentum, foreach=False)
        for _ in range(2):
            param.grad = torch.ones(3)
            optimizer.step()
        assert ("buffer" in optimizer.state[param]) == bool(momentum)
        torch.testing.assert_close(param.detach(), torch.full((3,), expected))


def test_a_list_as_long_as_an_option():
    @compiledopt.define(lists={"window": lambda param, options: len(options["betas"])})
    def Several(param, grad, window, *, lr=0.1, betas=(0.5, 0.9)):
        window = [beta * one + grad for beta, one in zip(betas, window, strict=True)]
        return param - lr * sum(window), window

    for betas in ((0.5, 0.9), (0.1, 0.2, 0.3)):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = Several([param], betas=betas, foreach=False)
        for _ in range(2):
            param.grad = torch.ones(3)
            optimizer.step()
        assert sorted(optimizer.state[param]) == [f"window_{index}" for index in range(len(betas))]
        torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.1 * (2 * len(betas) + sum(betas))))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_total_of_numbers_counts_elements(executor):
    @compiledopt.define(scalars=("step",))
    def Mean(param, grad, step, *, lr=0.5):
        step = step + 1
        mean = total(grad * grad) / total(torch.ones_like(grad))
        return param - lr * mean * grad + 0.0 * total(step), step

    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((3, 4), (5,))]
    optimizer = Mean(params, **EXECUTORS[executor])
    for param, value in zip(params, (1.0, 2.0), strict=True):
        param.grad = torch.full_like(param, value)
    optimizer.step()
    mean = (12 * 1.0 + 5 * 4.0) / 17
    for param in params:
        torch.testing.assert_close(param.detach(), -0.5 * mean * param.grad, rtol=1e-12, atol=0)


def test_bounds_are_those_of_the_defaults():
    """A name whose default is out of torch's bounds means something else there; the others are bounded."""

    @compiledopt.define
    def Positive(param, grad, *, lr=0.1, betas=(0.9, 1.0)):
        return param - lr * betas[1] * grad

    param = torch.nn.Parameter(torch.ones(3))
    assert Positive([param], betas=(0.5, 2.0)).param_groups[0]["betas"] == (0.5, 2.0)
    for options, message in (({"betas": (1.0, 2.0)}, "index 0: 1.0"), ({"lr": -1.0}, "learning rate: -1.0")):
        with pytest.raises(ValueError, match=message):
            Positive([param], **options)


@compiledopt.define
def Mixed(param, grad, average, *, lr=0.1, mix=(0.5, 0.5), mode="plain", extra=None):
    average = mix[0] * average + mix[1] * grad
    return param - lr * average, average


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": "fast"}, "lr must be a number, got 'fast' (str)"),
        ({"lr": [0.1]}, "lr must be a number, got [0.1] (list)"),
        ({"mix": 0.5}, "mix must be a tuple of numbers, got 0.5"),
        ({"mix": (0.5, "a")}, "mix must be a number, got 'a' (str)"),
        ({"extra": {"a": 1}}, "extra must be a number, a flag, text or a tuple of numbers, got {'a': 1}"),
    ],
)
def test_what_is_no_number_is_named(options, words):
    """In the constructor, in a group, and put there between steps."""
    params = parameters(shapes=[(2, 3)])
    Gradients().set(params, 0)
    optimizer = Mixed(params)
    optimizer.step()
    optimizer.param_groups[0].update(options)
    before = snapshot(optimizer)
    with pytest.raises(TypeError, match=re.escape(words)):
        optimizer.step()
    assert same(before, snapshot(optimizer))
    for make in (lambda: Mixed(params, **options), lambda: Mixed([{"params": params, **options}])):
        with pytest.raises(TypeError, match=re.escape(words)):
            make().step()  # an option without a number as its default is looked at by the step
    assert Mixed(params, mode="other", mix=[0.5, 0.5], lr=torch.tensor(0.1)).step() is None


def test_what_is_no_number_in_a_group():
    """By the step: torch's constructors look at no group."""
    params = parameters(shapes=[(2, 3)])
    Gradients().set(params, 0)
    for algorithm in (one for one in CATALOG.values() if hasattr(one.ours, "rule")):
        with pytest.raises(TypeError, match="lr must be a number, got 'fast'"):
            algorithm.ours([{"params": params, "lr": "fast"}], **algorithm.promised | {"lr": 0.1}).step()


@pytest.mark.filterwarnings("ignore:.*returned a tensor of another shape:UserWarning")  # before it is refused
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("(param - lr * grad).sum(), average", r"returned a tensor of shape \(\) for param, which is \(4, 3\)"),
        ("param, grad.mean(dim=-1, keepdim=True)", r"returned a tensor of shape \(4, 1\) for average, which is \(4, 3\)"),
        ("[param - lr * grad, average]", r"must return \(param, average\), got list, which is no tuple"),
        ("f'{grad:.3f}'", "author.py:2: a rule has no values that '.3f' could format"),
    ],
)
def test_results_of_another_shape_or_kind(result, words, options):
    """Nothing is spread over a parameter or a state silently."""
    namespace = {}
    source = f"def Bad(param, grad, average, *, lr=0.1):\n    return {result}"
    exec(compile(source, "author.py", "exec"), namespace)
    params = parameters(shapes=[(4, 3)])
    Gradients().set(params, 0)
    with pytest.raises(TraceError, match=words):
        compiledopt.define(namespace["Bad"])(params, **options).step()


def test_pythons_min_names_its_mend():
    @compiledopt.define(scalars=("step",))
    def Least(param, grad, step, *, lr=0.1):
        step = step + 1
        return param - min(lr, 1 / step) * grad, step

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(TraceError, match=r"min, max and .*\.clamp_max"):
        Least([param]).step()
    with pytest.raises(TypeError, match=r"torch.where\(first > 0, ..., scale"):
        compiledopt.define(scalars=("scale",), initial={"scale": lambda param: param.norm()})(
            lambda param, grad, scale: (param, scale)
        )


def test_an_optional_state_of_a_rule_that_is_called_on_tensors():
    for bound, states in ((None, []), (0.5, ["max"])):
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = compiledopt.Fromage([param], p_bound=bound, foreach=False)
        optimizer.step()
        assert list(optimizer.state[param]) == states
        wanted = (1 - 0.01) / (1 + 0.01**2) ** 0.5 if bound is None else 0.5
        torch.testing.assert_close(param.detach(), torch.full((3,), wanted))
