"""The tracer and what is derived from a program: the scalar part, the in-place sequences, the errors for rules."""

import math

import pytest
import torch
from catalog import CASES, one_per_algorithm
from expecttest import assert_expected_inline
from helpers import Gradients, flat, parameters, run

import compiledopt
from compiledopt.backends.eager.foreach import cut
from compiledopt.backends.eager.sequence import eager
from compiledopt.backends.inductor import evaluate
from compiledopt.rules.ops import OPS
from compiledopt.rules.rule import rule
from compiledopt.rules.trace import TraceError, trace
from compiledopt.rules.traced import traced


def program_of(case):
    optimizer = case.ours(parameters())
    return traced(type(optimizer).rule, optimizer.param_groups[0])


def test_adamw_sequence():
    """Eight operations and one temporary, as torch's hand-written loop."""
    case = next(c for c in CASES if str(c) == "AdamW-default")
    assert_expected_inline(
        eager(program_of(case).program, foreach=False, compute=None).source,
        """\
def update(columns, param, grad, exp_avg, exp_avg_sq):
    c0, c1, c2, c3, c4, c5, c6 = columns
    param.mul_(c0)
    exp_avg.lerp_(grad, c1)
    exp_avg_sq.mul_(c3)
    exp_avg_sq.addcmul_(grad, grad, value=c4)
    t1 = sqrt(exp_avg_sq)
    t1.mul_(c5)
    t1.add_(c6)
    param.addcdiv_(exp_avg, t1, value=-c2)
    del t1""",
    )


def test_sgd_sequence():
    case = next(c for c in CASES if str(c) == "SGD-nesterov")
    assert_expected_inline(
        eager(program_of(case).program, foreach=True, compute=None).source,
        """\
def update(columns, param, grad, momentum_buffer):
    c0, c1, c2, c3, c4 = columns
    t1 = _foreach_add(grad, param, alpha=c0)
    _foreach_mul_(momentum_buffer, c1)
    _foreach_add_(momentum_buffer, t1, alpha=c2)
    _foreach_add_(t1, momentum_buffer, alpha=c3)
    _foreach_add_(param, t1, alpha=-c4)
    del t1""",
    )


@rule(scalars=("step",))
def everything(param, grad, step, a, b, c, *, lr, k):
    """Every kind of operation, values used twice and after their storage could have been taken."""
    step = step + 1
    old = param
    ratio = (2.0 / (grad.abs() + 1)) ** k
    param = torch.where(grad > 0, param - lr * ratio, torch.minimum(param, grad)) + 1 / step
    a = torch.where(lr > 0.5, a * grad, b)
    b, c = c, b
    b = torch.addcmul(b, grad, old, value=0.5).clamp_min(-1.0) - torch.maximum(c, grad) * a.sign()
    c = torch.addcdiv(c, grad, old.square() + 1, value=lr) + 0.1 * old.sub(grad, alpha=2).tanh().exp().sqrt()
    return param, step, a, b, 3 - torch.where(step > 1, c, grad) / 4


@pytest.mark.parametrize("lr", [0.25, 0.75])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("compute", [None, torch.float64])
def test_sequences_compute_what_the_program_says(foreach, compute, lr):
    """In place, folded and aliased as they are: against a plain evaluation of the same program."""
    some = traced(everything, {"lr": lr, "k": 1.5})
    torch.manual_seed(0)
    tensors = [torch.randn(40, dtype=torch.float64) for _ in some.program.tensors]
    columns, fresh = some.scalars({"lr": lr, "k": 1.5}, {}, (0.0, 3.0))
    assert fresh == [4.0]
    as_tensors = [torch.tensor(c, dtype=torch.float64 if not isinstance(c, bool) else torch.bool) for c in columns]
    expected = evaluate(some.program, tensors, as_tensors, arithmetic=None)
    written = [t.clone() for t in tensors]
    sequence = eager(some.program, foreach=foreach, compute=compute)
    sequence.function(columns, *([[t] for t in written] if foreach else written))
    results = [w for node, w in zip(some.program.tensors, written, strict=True) if node.name in some.program.tensor_outputs]
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, equal_nan=True)
    assert torch.equal(written[1], tensors[1]), "the gradient was written"
    direct = everything(
        *[t.clone() for t in tensors[:2]], torch.tensor(3.0), *[t.clone() for t in tensors[2:]], lr=torch.tensor(lr), k=1.5
    )
    for result, value in zip(results, (direct[0], *direct[2:]), strict=True):
        torch.testing.assert_close(result, value, equal_nan=True)


@pytest.mark.parametrize("name", OPS)
def test_numbers_follow_ieee(name):
    """Each operation on Python floats against torch on float64, at zeros, infinities, NaN and overflow."""
    op = OPS[name]
    values = [0.0, -0.0, 1.0, -1.5, 0.3, 2.0, 3.0, 710.0, 1e308, -1e308, math.inf, -math.inf, math.nan]
    sample = [values] * op.arity if op.arity < 3 else [values[:6], values[:6], [0.0, 0.3, 1.0]]
    for args in torch.cartesian_prod(*[torch.tensor(v, dtype=torch.float64) for v in sample]).reshape(-1, op.arity).tolist():
        tensors = [torch.tensor(a, dtype=torch.float64) for a in args]
        if name == "where":
            args[0], tensors[0] = bool(args[0]), tensors[0].bool()
        expected, got = op.tensor(*tensors).item(), op.number(*args)
        assert got == pytest.approx(expected, rel=1e-14, abs=0.0, nan_ok=True), (name, args)
        assert bool(got) == bool(expected)


def bad(body):
    """A rule whose third line is the culprit."""
    namespace = {"torch": torch}
    exec(
        compile(f"def bad_rule(param, grad, *, lr):\n    double = grad * 2\n    {body}\n    return param", "author.py", "exec"),
        namespace,
    )
    return rule()(namespace["bad_rule"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("param.add_(grad)", "add_ mutates its operand; a rule returns new values: write add"),
        ("param += grad", r"\+= mutates a tensor in place; write x = x \+ y"),
        ("param[0] = 1", "assigning to elements mutates; use torch.where"),
        ("if grad > 0: pass", "must not branch on the value"),
        ("if lr: pass", "must not branch on the value"),
        ("lr.item()", "reads a tensor's value"),
        ("grad.sum()", "sum is not a pointwise operation"),
        ("torch.fft.fft(grad)", "fft_fft is not a pointwise operation"),
        ("param @ grad if False else torch.matmul(param, grad)", "matmul is not a pointwise operation"),
        ("param = param + 'x'", "computes with its arguments and with numbers, not with str"),
        ("grad.clamp_min(1, 2)", "clamp_min: too many positional arguments"),
    ],
)
def test_rules_that_are_not_rules(body, words):
    with pytest.raises(TraceError, match=words) as caught:
        trace(bad(body), {"lr": 0.1})
    assert "author.py:3" in str(caught.value), "the message must name the author's line"


def test_rules_that_return_the_wrong_things():
    @rule(scalars=("step",))
    def short(param, grad, step, *, lr):
        return param

    @rule(scalars=("step",))
    def tensor_for_scalar(param, grad, step, *, lr):
        return param, grad * 2

    @rule()
    def number(param, grad, *, lr):
        return 3.0

    for wrong, words in (
        (short, r"must return \(param, step\), got 1 values"),
        (tensor_for_scalar, "returned a tensor for step, which is 0-dim"),
        (number, "returned float for param, not a tensor"),
    ):
        with pytest.raises(TraceError, match=words):
            trace(wrong, {"lr": 0.1})


def test_signatures_that_are_not_rules():
    for function, keywords, words in (
        (lambda grad, param: None, {}, r"the first two arguments must be \(param, grad\)"),
        (lambda param, grad, *states: None, {}, r"\*args and \*\*kwargs are not allowed"),
        (lambda param, grad, *, lr: None, {"branches": ["weight_decay"]}, "branches names 'weight_decay'"),
        (lambda param, grad, m: None, {"scalars": ["step"]}, "scalars names 'step'"),
    ):
        with pytest.raises(TypeError, match=words):
            rule(**keywords)(function)


def test_chunks_stay_under_the_limit():
    params = [torch.empty(1000) for _ in range(10)]
    assert cut(params, 1, 2500 * 4) == [0, 2, 4, 6, 8, 10]
    assert cut(params, 1, 10**9) == [0, 10]
    assert cut(params, 2, 100) == list(range(11))
    assert cut([], 1, 100) == [0, 0]


@pytest.mark.parametrize("case", one_per_algorithm(), ids=str)
def test_the_same_operation_is_one_node(case):
    program = program_of(case).program
    lines = [line.split(" = ", 1)[1] for line in program.text.splitlines() if " = " in line]
    assert len(lines) == len(set(lines))


def test_chunks_update_each_parameter_once(monkeypatch):
    """foreach cuts long lists; what a chunk does is done to its own parameters alone."""
    from compiledopt.backends.eager import foreach

    shapes = [(40,), (50,), (3,), (60,), (), (70,)]
    whole, cut_up = parameters(shapes=shapes), parameters(shapes=shapes)
    run(compiledopt.AdamW(whole, lr=0.1, foreach=True), whole, Gradients(), range(3))
    monkeypatch.setattr(foreach, "CPU_LIMIT", 500)
    run(compiledopt.AdamW(cut_up, lr=0.1, foreach=True), cut_up, Gradients(), range(3))
    assert torch.equal(flat(whole), flat(cut_up)) and not torch.equal(flat(whole), flat(parameters(shapes=shapes)))


SPELLINGS = [
    lambda x, y: torch.rsub(x, y),
    lambda x, y: torch.rsub(x, y, alpha=3),
    lambda x, y: x.sub(y, alpha=2) - torch.add(x, y, alpha=0.5),
    lambda x, y: torch.subtract(x, y) * torch.multiply(x, 2.0),
    lambda x, y: torch.true_divide(x, y) + x.divide(3.0) - torch.negative(y),
    lambda x, y: torch.addcmul(x, x, y, value=0.25),
    lambda x, y: torch.addcdiv(x, y, x, value=-2.0) + x.addcdiv(y, x),
    lambda x, y: x.clamp_min(0.1) - torch.clamp_max(y, 0.2),
    lambda x, y: x % 0.75 + y // 0.5,
    lambda x, y: 2 - x + 3 / y + 2**x,
    lambda x, y: torch.lerp(x, y, weight=0.3) - x.lerp(end=y, weight=0.7),
    lambda x, y: (-x).abs().pow(exponent=1.5) + y.square().rsqrt() + abs(x),
    lambda x, y: torch.where((x > y) | (x < -1), x, y) + torch.where(~(x >= 0) & (y <= 1), 1.0, x),
    lambda x, y: torch.where(x == y, 1.0, 2.0) + torch.where(x != y, x, y),
]


@pytest.mark.parametrize("spelled", SPELLINGS, ids=range(len(SPELLINGS)))
def test_operations_as_torch_spells_them(spelled):
    """Every name and keyword of an operation: traced and run, it is what torch computes."""

    def Spelled(param, grad):
        return spelled(param, grad)

    program = traced(rule()(Spelled), {}).program
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    y[:5] = x[:5]
    (found,) = evaluate(program, [x, y], [torch.tensor(node.args[0]) for node in program.columns], arithmetic=None)
    torch.testing.assert_close(found, spelled(x, y).expand_as(x))
