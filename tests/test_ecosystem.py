"""What others see of the classes: registries, pickles, type checks."""

import pickle
import pickletools
import subprocess
import sys
import typing

import pytest
import torch
from torch.distributed.optim.utils import as_functional_optim

import compiledopt
from compiledopt import schedules

CLASSES = [value for name in compiledopt.__all__ if isinstance(value := getattr(compiledopt, name), type)]


def below(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from below(sub)


def test_walking_down_from_torchs_optimizer_finds_each_of_torchs_names_once():
    class Mine(compiledopt.AdamW):
        pass

    names = [cls.__name__ for cls in below(torch.optim.Optimizer)]
    public = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type) and name != "Optimizer"]
    assert {name: names.count(name) for name in public} == dict.fromkeys(public, 1)
    assert Mine in list(below(torch.optim.Optimizer))


def test_schedulers_say_that_they_stand_in_a_private_module():
    """They inherit from torch's, so that a walk does find them: it passes over private modules, by class_resolver's test (any
    part of the module's name) and by jsonargparse's (of the shortest path under which the class is found)."""
    public = [cls for cls in below(torch.optim.lr_scheduler.LRScheduler) if not cls.__name__.startswith("_")]
    ours = [cls for cls in public if cls.__module__.startswith("compiledopt")]
    assert len(ours) > 10
    for cls in ours:
        assert cls.__module__ == "compiledopt._lr_scheduler" and not hasattr(compiledopt, cls.__name__)
        assert pickle.loads(pickle.dumps(cls)) is pickle.loads(f"ccompiledopt.lr_scheduler\n{cls.__name__}\n.".encode()) is cls


def globals_of(value):
    """The classes and functions that a pickle names."""
    texts = []
    for op, argument, _ in pickletools.genops(pickle.dumps(value, protocol=2)):  # which names them as they are
        if op.name == "GLOBAL":
            texts.append(argument.replace(" ", "."))
    return {name for name in texts if name.startswith("compiledopt")}


def test_pickles_name_public_modules_alone():
    """Files may move: a pickle holds no name of one."""
    assert {cls.__module__ for cls in CLASSES if cls is not compiledopt.Optimizer} == {"compiledopt"}
    assert typing.get_type_hints(compiledopt.AdamW)
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    lr = 0.1 * schedules.sequential([schedules.linear(0.1, 1.0, 2), schedules.cosine_annealing(9)], [2])
    optimizer = compiledopt.AdamW([param], lr=lr, compiled=False)
    optimizer.step()
    assert globals_of(optimizer) <= {
        "compiledopt.AdamW",
        "compiledopt.ScheduledGroup",
        *(f"compiledopt.schedules.{name}" for name in ("Schedule", "_sequential", "_linear", "_cosine_annealing", "_at")),
    }
    again = pickle.loads(pickle.dumps(optimizer))
    assert type(again) is compiledopt.AdamW and again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_pickles_that_name_files_still_load():
    for module, name in (("algorithms.adam", "AdamW"), ("algorithms.sgd", "SGD"), ("executors.groups", "ScheduledGroup")):
        assert pickle.loads(f"ccompiledopt.{module}\n{name}\n.".encode()) is getattr(compiledopt, name)
    assert pickle.loads(b"ccompiledopt.compiler.schedule\nSchedule\n.") is schedules.Schedule


def test_no_instance_of_torchs_classes():
    """Those who look at the type compare it, or look it up: to inherit would change nothing there (docs/ecosystem.md), and
    put our names below torch's classes, where registries would find them twice."""
    optimizer = compiledopt.AdamW([torch.nn.Parameter(torch.ones(1))])
    assert not isinstance(optimizer, torch.optim.AdamW) and isinstance(optimizer, torch.optim.Optimizer)
    with pytest.raises(ValueError, match="does not have a functional counterpart"):
        as_functional_optim(compiledopt.AdamW)


@pytest.mark.trainers
def test_class_resolver():
    code = "import compiledopt; from class_resolver.contrib.torch import optimizer_resolver as known; import torch;"
    code += "assert known.lookup('AdamW') is torch.optim.AdamW and known.lookup(compiledopt.AdamW) is compiledopt.AdamW;"
    code += "param = torch.nn.Parameter(torch.ones(1)); made = known.make(compiledopt.AdamW, {'lr': 0.5}, params=[param]);"
    code += "assert type(made) is compiledopt.AdamW and made.defaults['lr'] == 0.5"
    pytest.importorskip("class_resolver", reason="pip install '.[trainers]'")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=120)


@pytest.mark.trainers
@pytest.mark.parametrize(("given", "found"), [("AdamW", torch.optim.AdamW), ("compiledopt.AdamW", compiledopt.AdamW)])
def test_names_on_the_command_line(given, found):
    """As LightningCLI's --optimizer and --lr_scheduler."""
    jsonargparse = pytest.importorskip("jsonargparse", reason="pip install '.[trainers]'")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"}, instantiate=False)
    parsed = parser.parse_args([f"--optimizer={given}", "--optimizer.lr=0.5"])
    assert parsed.optimizer.class_path == f"{'torch.optim' if found is torch.optim.AdamW else 'compiledopt'}.AdamW"
    assert parsed.optimizer.init_args.lr == 0.5
    parser.add_subclass_arguments(torch.optim.lr_scheduler.LRScheduler, "scheduler", skip={"optimizer"}, instantiate=False)
    parsed = parser.parse_args(["--scheduler=StepLR", "--scheduler.step_size=5"])
    assert parsed.scheduler.class_path == "torch.optim.lr_scheduler.StepLR"
    parsed = parser.parse_args(["--scheduler=compiledopt.lr_scheduler.StepLR", "--scheduler.step_size=5"])
    assert parsed.scheduler.class_path == "compiledopt.lr_scheduler.StepLR"
