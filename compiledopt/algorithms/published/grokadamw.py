"""GrokAdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from compiledopt.algorithms.parts import moments, with_maximize
from compiledopt.algorithms.reduced import over_all
from compiledopt.algorithms.signals import Signalled
from compiledopt.arguments import BOUNDS, Bound, Extras, LearningRate, ParamsT, Unpack
from compiledopt.rules.rule import PLACE, rule


@rule(scalars=("step", "layer"), initial={"layer": PLACE}, branches=("gradient_clipping",), elementwise=False)
@with_maximize
def grokadamw(
    param,
    grad,
    step,
    layer,
    exp_avg,
    exp_avg_sq,
    grok_ema,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    alpha_init,
    lamb,
    gamma,
    grokking_signal,
    grokking_signal_decay_rate,
    gradient_clipping,
):
    step = step + 1
    if gradient_clipping != 0:
        grad = grad * (gradient_clipping / (over_all(grad * grad, "sum").sqrt() + 1e-6)).clamp_max(1.0)
    grok_ema = grad.lerp(grok_ema, alpha_init * torch.exp(-grokking_signal_decay_rate * grokking_signal))
    amplified = grad + lamb * grok_ema
    exp_avg, exp_avg_sq = moments(amplified, exp_avg, exp_avg_sq, (betas[0] * (1 - gamma) ** layer, betas[1]))
    size = lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step)
    param = param * (1 - lr * weight_decay) - size * exp_avg / (exp_avg_sq.sqrt() + eps)
    return param, step, layer, exp_avg, exp_avg_sq, grok_ema


class GrokAdamW(Signalled):
    """GrokAdamW: AdamW whose slow gradients are amplified, and whose momentum is shorter layer by layer.

        g ← g·min(1, C / (‖g‖ + 1e-6));  e ← α·e + (1 − α)·g,  α = α₀·exp(−κ·s);  ĝ = g + λ_e·e
        m ← β·m + (1 − β)·ĝ,  β = β₁·(1 − Γ)ⁱ;  v ← β₂·v + (1 − β₂)·ĝ²;  θ ← (1 − γ·λ)·θ − γ·√(1 − β₂ᵗ) / (1 − β₁ᵗ)·m / (√v + ε)

    alpha_init (α₀): float. lamb (λ_e): float, how much of the slow gradient is added. gamma (Γ): float; i: the parameter's
        place in its group. grokking_signal_decay_rate (κ): float. gradient_clipping (C): float, for each parameter's own norm;
        0 clips nothing.
    grokking_signal (s): float, to be set in the groups between steps; or
    grokking_signal_fns: functions of nothing, called at each step, of whose results s is the mean; those that return None do
        not count. They are code, and are not saved. Without them s is max(0, eval_loss − train_loss) over the larger of both
        where a group has these two.
    State: `exp_avg` (m), `exp_avg_sq` (v) and `grok_ema` (e), like the parameter; `layer` (i), a 0-dim float.
    Good for: small data and algorithmic tasks, where generalization comes long after the training loss has fallen.
    Start: lr and weight_decay as AdamW's, alpha_init 0.98, lamb 2.0, gamma 0.1.
    Names: those of the authors' package (grokadamw). Its states are kept on the host; an exception in a function is a warning
        there and is raised here; i counts parameters without a gradient too.
    Source: Hartford 2024, https://github.com/cognitivecomputations/grokadamw; Lee et al. 2024, arXiv:2405.20233.
    """

    rule = grokadamw
    bounds = (
        *BOUNDS,
        Bound("alpha_init", "Invalid alpha_init value", most=1.0),
        Bound("gamma", "Invalid gamma value", most=1.0),
        Bound("gradient_clipping", "Invalid gradient_clipping value"),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        alpha_init: float = 0.98,
        lamb: float = 2.0,
        gamma: float = 0.1,
        grokking_signal_fns: Sequence[Callable[[], float | None]] | None = None,
        grokking_signal_decay_rate: float = 0.1,
        gradient_clipping: float = 1.0,
        grokking_signal: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compiled: bool | None = None,
        **extras: Unpack[Extras],
    ) -> None:
        self.signals = tuple(grokking_signal_fns or ())
        super().__init__(params, {name: value for name, value in locals().items() if name != "grokking_signal_fns"})
