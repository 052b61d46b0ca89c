"""Two processes on this machine, with gloo: DDP, FSDP2, ZeroRedundancyOptimizer, distributed checkpoints (tests/ranks.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

import compiledopt

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this build of torch has no gloo", allow_module_level=True)
SECONDS = 300


def run(scenario, world, folder):
    """Start the processes, and end them all when one fails or takes too long."""
    root = str(Path(compiledopt.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(Path(__file__).parent / "ranks.py"), scenario]
    logs = [(folder / f"{scenario}-{world}-{rank}.log").open("w+") for rank in range(world)]
    started = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    for log in logs:
        log.seek(0)
    assert codes == [0] * world, "\n".join(log.read()[-3000:] for log in logs)


@pytest.mark.processes
@pytest.mark.parametrize("scenarios", [pytest.param("fsdp", marks=pytest.mark.slow), "between_steps,ddp,zero,zero_kept"])
def test_two_processes(scenarios, tmp_path):
    """One after the other in the same two: starting them takes longer."""
    run(scenarios, 2, tmp_path)


@pytest.mark.processes
@pytest.mark.slow
def test_codes_are_the_same_on_1_2_and_4_shards(tmp_path):
    """And a checkpoint of two processes goes on with four."""
    for world in (1, 2, 4):
        run("kept", world, tmp_path)


@pytest.mark.processes
def test_distributed_checkpoints(tmp_path):
    """Saved by two processes, loaded by two and by one, and going on equal."""
    run("save", 2, tmp_path)
    run("load", 2, tmp_path)
    run("load", 1, tmp_path)
