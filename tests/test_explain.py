"""explain and the command line tell the truth, to people and to machines."""

import json
import sys

import pytest
import torch
from catalog import EXECUTORS
from helpers import Gradients, parameters, run

import compiledopt
from compiledopt.__main__ import main

explaining = sys.modules["compiledopt.explain"]


def test_numbers_of_adamw(monkeypatch):
    monkeypatch.setattr(explaining, "memory_bandwidth", lambda *_: 2e9)
    params = parameters(shapes=[(10, 10), (50,)])
    optimizer = compiledopt.AdamW(params)
    found = optimizer._explanation()
    assert (found.executor, found.tensors, found.elements, found.launches_per_step, found.kernels) == ("compiled", 2, 150, 1, 1)
    assert found.parts[0].bytes_read_per_element == 16 and found.parts[0].bytes_written_per_element == 12
    assert found.bytes_per_step == 150 * 28
    assert found.memory_bandwidth == 2e9 and found.floor_seconds == pytest.approx(150 * 28 / 2e9)
    assert not optimizer.state, "explaining changed the optimizer"
    run(optimizer, params, Gradients(), range(2))
    assert optimizer._explanation().launches_per_step == len(optimizer._plan.batches) == 1
    text = optimizer.explain(source=True)
    assert text.startswith("AdamW: compiled, 2 tensors, 150 elements, 1 launch per step, 1 kernel\n")
    assert "compiled (the default): 2 tensors of float32\n  1 launch per step, 1 row of scalars\n" in text
    assert " kernel(" in text and "def scalars(" in text


def test_parts_are_apart():
    params = [*parameters(shapes=[(4,)]), *parameters(torch.bfloat16, [(4,), (5,)])]
    groups = [{"params": params[:1]}, {"params": params[1:2], "foreach": True}, {"params": params[2:], "momentum": 0.9}]
    found = compiledopt.SGD(groups)._explanation()
    assert found.executor == "compiled + foreach"
    assert [(p.executor, p.reason, p.tensors, p.dtypes) for p in found.parts] == [
        ("compiled", "the default", 1, ["float32"]),
        ("foreach", "foreach=True", 1, ["bfloat16"]),
        ("compiled", "the default", 1, ["bfloat16"]),
    ]
    assert found.parts[2].bytes_read_per_element == 6
    assert [part.kernels for part in found.parts] == [1, 0, 1] and found.kernels == 2


def test_bandwidth_counts_two_reads_and_a_write(monkeypatch):
    """Of an addition in place; here one that takes two seconds by the clock that is asked."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(explaining.time, "perf_counter", lambda: next(clock))
    assert explaining.memory_bandwidth.__wrapped__("cpu", 4000) == 3 * 4000 / 2


def test_rows_are_counted():
    params = parameters()
    optimizer = compiledopt.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}])
    run(optimizer, params, Gradients(), range(3))
    assert optimizer._explanation().parts[0].rows == 2
    run(optimizer, params, Gradients(skip=True), range(3))
    assert optimizer._explanation().parts[0].rows > 2


@pytest.mark.parametrize("executor", EXECUTORS)
def test_command_line(capsys, executor):
    flag = {"compiled": "compiled=True", "foreach": "foreach=True", "for-loop": "foreach=False"}[executor]
    assert main(["explain", "AdamW", "--option", flag, "--option", "amsgrad=True", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["executor"] == executor and found["elements"] == 4 * (1024 * 1024 + 1024)
    assert found["parts"][0]["bytes_read_per_element"] == 20
    assert main(["explain", "SGD", "--source", "--dtype", "float16", "--option", flag]) == 0
    assert {"compiled": " kernel(", "foreach": "_foreach_add_", "for-loop": "param_.add_"}[executor] in capsys.readouterr().out


def test_command_line_errors(capsys):
    for argv in (["explain", "Nothing"], ["explain", "SGD", "--option", "lr"], ["explain", "SGD", "--option", "lr=x+"], []):
        with pytest.raises(SystemExit):
            main(argv)
        assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [name for name in compiledopt.__all__ if getattr(getattr(compiledopt, name), "for_matrices", False)]
)
def test_command_line_of_what_takes_matrices_alone(capsys, name):
    assert main(["explain", name, "--option", "foreach=True", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 4


def test_command_line_refuses_in_words(capsys):
    for option, words in (
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("other=1", "unexpected keyword"),
        ("compiled=True", "cannot be had"),
    ):
        assert main(["explain", "SOAP", "--option", option]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "AdamW", "--arch", "hopper"])
    assert "an architecture is written sm_90, got 'hopper'" in capsys.readouterr().err


def test_operations_are_counted():
    """What explain says of the eager executors, against what torch really calls."""
    params = parameters(shapes=[(3,), (4,)])
    for executor in ("foreach", "for-loop"):
        optimizer = compiledopt.AdamW(params, **EXECUTORS[executor])
        expected = optimizer._explanation().launches_per_step
        run(optimizer, params, Gradients(), range(1))
        with torch.profiler.profile() as profile:
            optimizer._plan.batches[0].prepare()
            with torch.no_grad():
                optimizer._plan.batches[0].update()
        top = [e for e in profile.events() if e.cpu_parent is None and e.name.startswith("aten::") and "item" not in e.name]
        top = [e for e in top if e.name != "aten::empty"]  # the memory that is asked for before
        assert len(top) == expected, [e.name for e in top]


def test_an_eager_executor_moves_more_than_its_operands_once():
    for executor, options in EXECUTORS.items():
        told = compiledopt.AdamW(parameters(), **options).explain()
        assert ("at least 16 bytes read" in told and "memory: at least" in told) is (executor != "compiled")


def test_states_are_told_as_they_are_kept():
    """Scales are shared by the elements of their blocks; what is too small for blocks stays as the rule makes it."""
    params = [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(64))]
    optimizer = compiledopt.AdamW(params, state_dtype="int8", foreach=True)
    blocks, plain = optimizer._explanation().parts
    assert blocks.state_bytes_per_element == 2 + 2 * 4 / 32 and plain.state_bytes_per_element == 8
    assert blocks.bytes_read_per_element == 4 + 4 + 2.25 and blocks.bytes_written_per_element == 4 + 2.25
    assert "exp_avg int8" in blocks.states and "2.25 bytes per element" in optimizer.explain()


def test_a_rule_that_asks_for_its_device_says_so():
    told = compiledopt.Muon([torch.nn.Parameter(torch.zeros(8, 8))]).explain()
    assert "the device's type is not known where a kernel is made" in told
