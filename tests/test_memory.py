"""What a step takes on top of parameters, gradients and states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"
PROGRAM = """
import json, sys, memory, torch, compiledopt
def measured(library, name, flags, shape):
    params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(20)]
    for p in params: p.grad = torch.randn(shape)
    return memory.extra_mib(getattr({"torch": torch.optim, "ours": compiledopt}[library], name)(params, **flags).step)
print(json.dumps([measured(*one) for one in json.loads(sys.argv[1])]))
"""
MODEL = 24e6 / 2**20  # MiB of parameters


def measured(*what):
    """One after the other in one process: freed memory goes back to the system at once, so none hides in another's."""
    sys.path.insert(0, str(PERF))
    try:
        import memory
    finally:
        sys.path.remove(str(PERF))
    command = [sys.executable, "-c", PROGRAM, json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, env=memory.environment(), timeout=300)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not reset the peak of a process")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not PERF.exists(), reason="the tests run without the repository around them")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux")
@pytest.mark.processes
def test_extra_memory():
    """Compiled: nothing, where torch's foreach takes as much as the model; ours keeps to its limit."""
    flat, matrix, foreach = [300_000], [600, 500], {"foreach": True}
    torchs, compiled, coded, passes, passes_of_one, mine, loop, again = measured(
        ("torch", "AdamW", foreach, flat),
        ("ours", "AdamW", {"compiled": True}, flat),
        ("ours", "AdamW", {"compiled": True, "state_dtype": "int8"}, matrix),
        ("ours", "Adafactor", {"compiled": True}, matrix),
        ("ours", "Adafactor", {"compiled": True}, flat),
        ("ours", "AdamW", foreach, flat),
        ("ours", "AdamW", {"foreach": False}, flat),
        ("torch", "AdamW", foreach, flat),
    )
    assert min(torchs, again) > 0.8 * MODEL, "the measurement does not see temporaries"
    assert max(compiled, coded) <= 0.01 * MODEL + 0.25
    assert max(passes, passes_of_one) <= 0.01 * MODEL + 0.25, "the sums of parts, and tiles"
    assert mine <= 6, "chunks of 4 MiB"
    assert loop <= MODEL / 20 + 0.25
