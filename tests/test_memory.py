"""What a step takes on top of parameters, gradients and states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parent.parent / "perf"
PROGRAM = """
import json, sys, memory, torch, compiledopt
library, name, flags, shape = json.loads(sys.argv[1])
params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(20)]
for p in params: p.grad = torch.randn(shape)
print(memory.extra_mib(getattr({"torch": torch.optim, "ours": compiledopt}[library], name)(params, **flags).step))
"""
MODEL = 80e6 / 2**20  # MiB of parameters


def measured(library, name="AdamW", shape=(1_000_000,), **flags):
    sys.path.insert(0, str(PERF))
    try:
        import memory
    finally:
        sys.path.remove(str(PERF))
    command = [sys.executable, "-c", PROGRAM, json.dumps([library, name, flags, shape])]
    done = subprocess.run(command, capture_output=True, text=True, env=memory.environment(), timeout=300)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not reset the peak of a process")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not PERF.exists(), reason="the tests run without the repository around them")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux")
def test_extra_memory():
    """Compiled: nothing, where torch's foreach takes as much as the model; ours keeps to its limit."""
    assert measured("torch", foreach=True) > 0.8 * MODEL, "the measurement does not see temporaries"
    assert measured("ours", compiled=True) <= 0.01 * MODEL + 0.25
    for shape in ((1_000, 1_000), (1_000_000,)):
        assert measured("ours", "Adafactor", shape, compiled=True) <= 0.01 * MODEL + 0.25, "the sums of parts, and tiles"
    assert measured("ours", foreach=True) <= 64
    assert measured("ours", foreach=False) <= MODEL / 20 + 0.25
