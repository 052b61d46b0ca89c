"""A program as users write it, as mypy --strict sees it: everything public, with the types that it says."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
    from typing import Any

    import torch
    from torch import Tensor, nn

    import compiledopt
    from compiledopt import SAM, Combined, Lookahead, define, hidden_matrices, lr_scheduler, schedules, swa_utils, total

    model = nn.Linear(4, 2)
    optimizer = compiledopt.AdamW(
        model.named_parameters(), lr=torch.tensor(1e-3), betas=(0.9, 0.99), fused=True, max_grad_norm=1.0, ema_decay=0.99,
        state_dtype={"exp_avg": torch.bfloat16, "exp_avg_sq": "int8"}, rounding="stochastic", cautious=True,
        grokfast=(0.98, 2.0),
    )
    base: torch.optim.Optimizer = compiledopt.Lion(model.parameters(), lr=3e-4 * schedules.cosine_annealing(100))
    both = Combined(compiledopt.Muon(hidden_matrices(model)[0]), compiledopt.SGD(model.parameters()), skip_nonfinite=True)
    slow = Lookahead(compiledopt.SGD([{"params": model.parameters(), "lr": 0.1}]), k=5)
    sharp = SAM(compiledopt.create_optimizer("lion", model.parameters(), lr=1e-4))


    def closure() -> float:
        return 1.0


    def hook(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...


    optimizer.register_step_post_hook(hook)
    optimizer.step()
    loss: float = optimizer.step(closure)
    loss = optimizer.step(closure=closure)
    loss = compiledopt.LBFGS(model.parameters(), line_search_fn="strong_wolfe").step(closure)
    measured: Tensor = optimizer.step(lambda: model(torch.ones(1, 4)).sum())
    state: dict[str, Any] = optimizer.state_dict(precision="float32")
    norm: Tensor | None = optimizer.grad_norm
    averages: list[Tensor] = optimizer.ema_parameters()
    with optimizer.use_ema(), optimizer.evaluating():
        text: str = optimizer.explain(source=True) + optimizer.executor
    scheduler: torch.optim.lr_scheduler.LRScheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    rate: float = lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step).schedule()(5)
    swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99)).update_parameters(model)


    @define
    def Own(param: Tensor, grad: Tensor, momentum: Tensor, *, lr: float = 1e-4, beta: float = 0.9) -> tuple[Tensor, Tensor]:
        momentum = momentum.lerp(grad, 1 - beta)
        return param - lr * momentum / total(grad * grad).sqrt(), momentum


    @define(scalars=("step",), name="Counted")
    def counted(param: Tensor, grad: Tensor, step: Tensor, *, lr: float = 0.1) -> tuple[Tensor, Tensor]:
        return param - lr * grad, step + 1


    kind: type[compiledopt.Optimizer] = Own
    own = Own(model.parameters(), lr=1e-3, beta=0.5, max_grad_norm=1.0)
    loss = own.step(closure)
    counted([model.weight], 0.3).step()


    class Mine(compiledopt.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure=closure)
"""
WRONG = """
    compiledopt.AdamW(model.parameters(), lr="0.1")
    compiledopt.AdamW(model.parameters(), learning_rate=0.1)
    compiledopt.Adam(model.parameters(), max_grad_norm="x")
    compiledopt.NoSuch
    Own(3)
"""


@pytest.mark.slow
@pytest.mark.processes
def test_mypy_takes_what_is_right_and_refuses_what_is_wrong(tmp_path):
    pytest.importorskip("mypy", reason="the extra `dev` has it")
    right = textwrap.dedent(PROGRAM)
    wrong = right.count("\n") + 1
    (tmp_path / "program.py").write_text(right + textwrap.dedent(WRONG))
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = [int(line.split(":")[1]) for line in errors]
    assert found == list(range(wrong + 1, wrong + 6)), done.stdout + done.stderr
