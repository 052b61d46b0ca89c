"""What happens where nothing can be compiled: a fallback with one warning, or an error where it was asked for."""

import inspect
import re
import subprocess
import time
import warnings

import pytest
import torch
from helpers import Gradients, flat, parameters, run

import compiledopt
from compiledopt import errors
from compiledopt.backends import cache, inductor
from compiledopt.backends.cpp import kernels as cpp
from compiledopt.backends.cpp import processes
from compiledopt.backends.layout import tensor_reason
from compiledopt.backends.registry import compiled_for
from compiledopt.backends.triton import kernels as triton
from compiledopt.step import choose


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """No kernel in memory, none on disk, but for the launcher, which takes seconds; restored afterwards."""
    cpp.launcher()
    name = cache.key("launcher", cpp._with_runtime(*cpp.LAUNCHER), cpp.LAUNCHER_FLAGS)
    content = cache.load(f"{name}.so")
    monkeypatch.setenv("COMPILEDOPT_CACHE_DIR", str(tmp_path))
    cache.store(f"{name}.so", content)
    kernels, launcher = dict(cpp._kernels), cpp._launcher
    cpp._kernels.clear()
    yield monkeypatch
    cpp._kernels.clear()
    cpp._kernels.update(kernels)
    cpp._launcher = launcher


def no_compiler(patch):
    patch.setattr(cache, "compiler", lambda: None)


def failing_compiler(patch):
    patch.setattr(cache, "compiler", lambda: ["/bin/false"])


def absent_compiler(patch):
    patch.setattr(cpp, "_compiler", lambda: ["/nonexistent/g++"])


def inductor_raises(patch):
    def raises(*args):
        raise AttributeError("graph.gone")

    patch.setattr(inductor, "_codegen", raises)


def in_ascii(patch):
    """A locale in whose encoding torch cannot read its own files."""
    error = UnicodeDecodeError("ascii", b"\xe2", 0, 1, "ordinal not in range(128)")
    patch.setattr(inductor, "_codegen", lambda *args: (_ for _ in ()).throw(error))


def several_kernels(patch):
    patch.setattr(inductor, "_codegen", lambda *args: (["a", "b"], [1, 2], []))


def unknown_form(patch):
    patch.setattr(inductor, "_codegen", lambda *args: (["no source"], [([], [])], []))


def own_buffer(patch):
    patch.setattr(inductor, "_codegen", lambda *args: (["r'''x'''"], [(["buf0", "ks0"], ["float*", "int64_t"])], []))


def no_launcher(patch):
    cpp._launcher = None
    patch.setattr(cpp, "_import_launcher", lambda *args: (_ for _ in ()).throw(ImportError("undefined symbol")))


def no_python_headers(patch):
    cpp._launcher = None
    patch.setenv("COMPILEDOPT_CACHE_DIR", "/proc/compiledopt")  # where there is no launcher either
    patch.setattr("sysconfig.get_paths", lambda: {"include": "/nonexistent"})


def unknown_tensors(patch):
    cpp._launcher = None
    patch.setattr(torch.Tensor, "data_ptr", lambda self: 12345)


def no_temporary_files(patch):
    patch.setattr(cache, "scratch", lambda name: (_ for _ in ()).throw(OSError("disk full")))


def full_disk(patch):
    """As the compiler meets it."""
    patch.setattr(processes, "run", lambda *args: (1, "fatal error: error writing to /tmp/a.s: No space left on device"))


def no_room_for_the_launcher(patch):
    cpp._launcher = None
    patch.setattr(cache, "scratch", lambda name, own=cache.scratch: own(name) / ("none" if "loaded" in name else ""))


def no_place_to_load_from(patch):
    """A TMPDIR that is mounted noexec."""
    patch.setattr(cpp.ctypes, "CDLL", lambda *args: (_ for _ in ()).throw(OSError("failed to map segment")))


def on_windows(patch):
    patch.setattr(cpp.sys, "platform", "win32")


def on_macos(patch):
    patch.setattr(cpp.sys, "platform", "darwin")


WAYS = {
    no_compiler: "no C++ compiler found",
    failing_compiler: "the C++ compiler /bin/false failed",
    absent_compiler: "could not be run",
    inductor_raises: "could not lower adam",
    in_ascii: "set PYTHONUTF8=1",
    several_kernels: "not one pass over memory",
    unknown_form: "a form that is not known",
    own_buffer: "a buffer of its own",
    no_launcher: "undefined symbol",
    no_python_headers: "Python.h is not in",
    unknown_tensors: "keeps its tensors in a way",
    no_temporary_files: "no room for temporary files: disk full",
    full_disk: "No space left on device. Optimizers made in 10 minutes",
    no_room_for_the_launcher: "no room for temporary files: [Errno 2]",
    no_place_to_load_from: "the compiled kernel cannot be loaded: failed to map segment",
    on_windows: "not for Windows",
    on_macos: "not for macOS",
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_falls_back_with_one_warning(broken, way):
    theirs, mine = parameters(), parameters()
    run(torch.optim.AdamW(theirs, foreach=False), theirs, Gradients(), range(5))
    optimizer = compiledopt.AdamW(mine)
    way(broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(optimizer, mine, Gradients(), range(5))
    assert len(caught) == 1 and WAYS[way] in str(caught[0].message)
    assert optimizer.executor == "for-loop"
    assert (flat(theirs) - flat(mine)).abs().max() < 1e-6
    assert WAYS[way] in optimizer.explain()


@pytest.mark.parametrize("what", ["kernel", "launcher"])
def test_what_may_pass_is_tried_again_later(broken, what):
    """A compiler that took too long was on a machine that was too busy then: not for the rest of the process."""

    def times_out(command, *_):
        raise subprocess.TimeoutExpired(command, cpp.TIMEOUT)

    def made():
        params = parameters(shapes=[(3,)])
        optimizer = compiledopt.AdamW(params, compiled=True)
        run(optimizer, params, Gradients(), range(1))
        return optimizer

    asked, run_as_it_is = [], processes.run
    with broken.context() as patch:
        if what == "launcher":
            made()
            cpp.forget()
            name = f"{cache.key('launcher', cpp._with_runtime(*cpp.LAUNCHER), cpp.LAUNCHER_FLAGS)}.so"
            content = cache.load(name)
            (cache.cache_dir() / name).unlink()
        patch.setattr(processes, "run", lambda command, *more: asked.append(command) or times_out(command))
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"timed out after 300 seconds. Optimizers made in 10 minutes or later"):
                made()
        count = len(asked)
        assert count >= 1
        now = time.monotonic()
        patch.setattr(cpp.time, "monotonic", lambda: now + errors.RETRY_AFTER)
        with pytest.raises(RuntimeError, match="timed out"):
            made()
        assert len(asked) > count
        patch.setattr(cpp.time, "monotonic", lambda: now + 3 * errors.RETRY_AFTER)
        patch.setattr(processes, "run", run_as_it_is)
        if what == "launcher":
            cache.store(name, content)
        assert made().executor == "compiled"


@pytest.mark.parametrize("options", [{"compiled": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_asked_for_by_name_it_raises(broken, way, options):
    params = parameters()
    optimizer = compiledopt.AdamW(params, **options)
    Gradients().set(params, 0)
    way(broken)
    with pytest.raises(RuntimeError, match=re.escape(WAYS[way])):
        optimizer.step()
    with pytest.raises(RuntimeError, match="cannot be had"):
        optimizer.compile()
    assert not optimizer.state


def test_a_failure_is_not_tried_again_for_each_optimizer(broken):
    failing_compiler(broken)
    tried = []
    broken.setattr(cpp, "build", lambda *args: tried.append(1) or (_ for _ in ()).throw(cpp.CompileError("no")))
    for _ in range(5):
        params = parameters(shapes=[(3,)] * 50)
        optimizer = compiledopt.AdamW(params)
        with pytest.warns(UserWarning, match="because no"):
            run(optimizer, params, Gradients(), range(3))
    assert len(tried) <= 3


def test_accelerators_fall_back_to_foreach(monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    reason = compiled_for(torch.device("cuda")).missing(torch.device("cuda"))
    assert reason == "triton is not installed"
    assert compiled_for(torch.device("mps")) is None
    assert choose.eager_choice(torch.device("cuda"), reason).executor == "foreach"
    assert choose.eager_choice(torch.device("cpu"), reason).executor == "for-loop"


def test_meta_parameters_step():
    param = torch.nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones(3, device="meta")
    optimizer = compiledopt.AdamW([param])
    with pytest.warns(UserWarning, match="there is no compiled executor for meta"):
        optimizer.step()
    assert optimizer.state[param]["exp_avg"].is_meta
    words = "`fused=True` requires all the params to be floating point Tensors of supported devices"  # torch's
    for module in (compiledopt, torch.optim):
        with pytest.raises(RuntimeError, match=words):
            module.AdamW([param], fused=True).step()


class Wrapped(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_subclasses_with_their_own_dispatch_take_an_eager_executor():
    param = torch.nn.Parameter(torch.ones(3))
    assert tensor_reason(param) is None
    plain = torch.Tensor._make_subclass(Wrapped, torch.ones(3))
    assert "its own dispatch" in tensor_reason(plain)


def one_strided():
    params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4, 6)[:, ::2].detach()), *parameters()]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


@pytest.mark.parametrize("between", ["nothing", "scheduler", "hooks", "no_grad"])
def test_the_warning_names_the_parameters_and_points_at_the_callers_line(between):
    params = one_strided()
    optimizer = compiledopt.AdamW([{"params": params[2:]}, {"params": params[:2]}], lr=0.1)
    if between == "scheduler":
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    if between == "hooks":
        optimizer.register_step_pre_hook(lambda *args: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step() if between != "no_grad" else torch.no_grad()(optimizer.step)()
        line = inspect.currentframe().f_lineno - 1
    (said,) = caught
    assert (said.filename, said.lineno) == (__file__, line)
    text = str(said.message)
    assert f"1 of {len(params)} parameters runs on the for-loop executor, because a parameter is not dense in memory" in text
    assert "param_groups[1]['params'][1] of shape (4, 3)." in text
    assert "Put it into a group with compiled=False" in text


def test_what_the_warning_advises_silences_it():
    params = one_strided()
    optimizer = compiledopt.AdamW([{"params": [*params[2:], params[0]]}, {"params": [params[1]], "compiled": False}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.executor == "compiled + for-loop"


def test_the_warning_uses_names_and_counts():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    for param in model.parameters():
        param.data = torch.ones(*param.shape, 2)[..., 0]
        param.grad = torch.ones_like(param)
    with pytest.warns(UserWarning, match="parameters run on") as said:
        compiledopt.SGD(model.named_parameters()).step()
    text = str(said[0].message)
    assert "6 of 6 parameters run on" in text and "'0.weight' of shape (2, 2), '0.bias' of shape (2,), '1.weight'" in text
    assert "and 3 more. Pass compiled=False" in text


def test_each_reason_is_said_once():
    """Another reason is another warning; a plan that is made anew says neither again."""
    first, later = one_strided()[:2], torch.nn.Parameter(torch.ones(3, device="meta"))
    later.grad = torch.ones(3, device="meta")
    optimizer = compiledopt.AdamW(first, lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
        optimizer.add_param_group({"params": [later]})
        optimizer.step()
        optimizer.param_groups[0]["maximize"] = True
        optimizer.step()
    assert len(caught) == 2 and "not dense" in str(caught[0].message)
    assert "there is no compiled executor for meta" in str(caught[1].message)
