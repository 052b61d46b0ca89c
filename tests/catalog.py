"""One Algorithm for each of the library's, and its Cases. Tests, docs and measurements read what they run over from here:
a new algorithm enrols by adding one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from published import written

import compiledopt
from compiledopt import around
from compiledopt.rules.rule import Rule
from compiledopt.rules.traced import traced

EXECUTORS: dict[str, dict[str, Any]] = {
    "compiled": {"compiled": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Algorithm:
    """What tests, docs and measurements know of one algorithm.

    ours: the class. reference: one with torch.optim's interface and the same options (or more, which it may ignore) that
        computes the same: torch.optim's of that name, or, where there is none, one that is written out beside the test.
    configurations: {label: options, or a function that makes them anew}; "default" is the barest and "all" the richest.
    formulas: the options whose formulas the docs print. promised: the options under which contract.py tries it.
    steady: what keeps parameters still where gradients are zero. sparse: the options tried with sparse gradients.
    unrolled: the options under which steps are differentiated. measured: the options in perf/, None where it is not.
    sharded: the options under which tests/ranks.py shards it.
    tensor_options: whether torch takes tensors for its decay and betas, and differentiates to them.
    moves_without_rate, states_at_once, takes_empty: what torch's does at lr=0, has before a step, and takes.
    decouples: whether its weight decay stands apart from the gradient, whatever its options say, as its paper has it.
    multiplies: whether it multiplies matrices, in bfloat16 as torch's does: runs differ by the rounding of those.
    brief: whether its kernels are made by slow tests alone: its mathematics is proved, or else run by the for-loop.
    """

    ours: type[compiledopt.Optimizer]
    configurations: Mapping[str, Any] = field(default_factory=dict)
    reference: Any = None
    formulas: Sequence[dict[str, Any]] = ({},)
    promised: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.05})
    steady: Mapping[str, Any] = field(default_factory=dict)
    sparse: Sequence[dict[str, Any]] = ()
    unrolled: Sequence[dict[str, Any]] = ()
    measured: Mapping[str, Any] | None = field(default_factory=dict)
    sharded: Mapping[str, Any] = field(default_factory=dict)
    tensor_options: bool = False
    moves_without_rate: bool = False
    states_at_once: bool = False
    takes_empty: bool = True
    decouples: bool = False
    multiplies: bool = False
    brief: bool = False

    @property
    def name(self) -> str:
        return self.ours.__name__

    def __str__(self) -> str:
        return self.name

    @property
    def in_torch(self) -> bool:
        return hasattr(torch.optim, self.name)

    @property
    def counterpart(self) -> Any:
        return self.reference or getattr(torch.optim, self.name)

    @property
    def rule(self) -> Rule | None:
        return getattr(self.ours, "rule", None)

    @property
    def elementwise(self) -> bool:
        """Whether it is one kernel over all tensors."""
        return self.rule is not None and self.rule.elementwise and self.rule.dense

    @property
    def counts(self) -> bool:
        """Whether each parameter has a count of its own updates."""
        return self.rule is not None and "step" in self.rule.scalars

    @property
    def sums(self) -> tuple[bool, ...]:
        """Whether it sums over groups, and whether over the model."""
        if self.rule is None or not (self.elementwise or self.reduces):
            return ()
        param = torch.nn.Parameter(torch.ones(2, 3))
        found = traced(self.rule, self.ours([param], **self.promised).param_groups[0]).measured(param)
        return tuple(sorted({node.is_of_group for measure in found.measures for node in measure.totals}))

    @property
    def sparse_only(self) -> bool:
        return self.rule is not None and not self.rule.dense

    @property
    def reduces(self) -> bool:
        """Whether it is compiled into passes between its reductions, for matrices."""
        if self.rule is None or not self.rule.dense or self.rule.every:
            return False
        param = torch.nn.Parameter(torch.ones(2, 3))
        group = self.ours([param], **self.promised).param_groups[0]
        found = traced(around.derived(self.rule, group), group)  # which has the elements of lists as states
        return not found.elementwise and not isinstance(found.variant(param), str)

    @property
    def takes_vectors(self) -> bool:
        """Whether a parameter may be anything but a matrix."""
        try:
            return bool(self.ours([torch.nn.Parameter(torch.ones(3))], **self.promised))
        except ValueError:
            return False

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is not mathematics: which way it runs, how many 0-dim states it has, whether it asks for the first update,
        whether a state starts from more than a number."""
        assert self.rule is not None
        made = any(not isinstance(value, float) for name, value in self.rule.initial.items() if name not in self.rule.scalars)
        way = (self.elementwise, self.rule.dense, self.reduces)
        return (*way, min(len(self.rule.scalars), 2), "first" in self.rule.options, made)

    def takes(self, option: str) -> bool:
        return option in inspect.signature(self.ours).parameters

    @property
    def cases(self) -> list[Case]:
        return [
            Case(self.name, label, options if callable(options) else (lambda options=options: dict(options)), self)
            for label, options in self.configurations.items()
        ]


@dataclass(frozen=True)
class Case:
    """algorithm: the class name; options: a function, so that tensors are made anew; of: the algorithm."""

    algorithm: str
    label: str
    options: Callable[[], dict[str, Any]] = field(repr=False)
    of: Algorithm = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.label}"

    def kwargs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        options = self.options()
        # As torch's own database: 1e-8 is zero in float16, and the quotient infinite.
        if dtype in (torch.float16, torch.bfloat16) and self.of.takes("eps"):
            usual = inspect.signature(self.of.ours).parameters["eps"].default
            options.setdefault("eps", (1e-3, *usual[1:]) if isinstance(usual, tuple) else 1e-3)
        return options

    def ours(self, params: Any, executor: str = "compiled", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        return self.of.ours(params, **{**self.kwargs(dtype), **EXECUTORS.get(executor, {}), **more})

    def torch(self, params: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        """The counterpart, which is torch's where torch has one."""
        return self.of.counterpart(params, **{"foreach": False, **self.kwargs(dtype), **more})


_SGD = {
    "default": {"lr": 0.1},
    "tensor_lr": lambda: {"lr": torch.tensor(0.05)},
    "one_element_lr": lambda: {"lr": torch.tensor([0.05])},
    "weight_decay": {"lr": 0.1, "weight_decay": 0.5},
    "tensor_weight_decay": lambda: {"lr": 0.1, "weight_decay": torch.tensor(0.5)},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "maximize": {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "momentum_decay": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "all": {"lr": 0.1, "momentum": 0.8, "dampening": 0.25, "weight_decay": 0.1, "maximize": True},
}
_ADAM = {
    "default": {"lr": 0.01},
    "tensor_lr": lambda: {"lr": torch.tensor(0.01)},
    "tensor_betas": lambda: {
        "lr": torch.tensor(0.01),
        "betas": (torch.tensor([[[0.9]]], dtype=torch.float64), torch.tensor([[0.99]], dtype=torch.float64)),
    },
    "weight_decay": {"lr": 0.01, "weight_decay": 0.1},
    "no_decay": {"lr": 0.01, "weight_decay": 0.0},
    "maximize": {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    "amsgrad": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "all": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    "small_betas": {"lr": 0.01, "betas": (0.0, 0.3)},
    "capturable": {"lr": 0.01, "capturable": True},
}
_COMMON = {
    "default": {"lr": 0.02},
    "tensor_lr": lambda: {"lr": torch.tensor(0.02)},
    "one_element_lr": lambda: {"lr": torch.tensor([0.02])},
    "weight_decay": {"lr": 0.02, "weight_decay": 0.1},
    "capturable": {"lr": 0.02, "capturable": True},
    "all": {"lr": 0.02, "weight_decay": 0.1, "maximize": True},
}
_DECOUPLED = {**_COMMON, "decoupled": {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}}
_ADADELTA = {
    label: {**options, "lr": 1.0} if isinstance(options, dict) else (lambda make=options: {"lr": make()["lr"] * 50})
    for label, options in _COMMON.items()
} | {"all": {"lr": 3.0, "rho": 0.8, "weight_decay": 0.1, "maximize": True}}
_ADAGRAD = {
    **{label: options for label, options in _COMMON.items() if label != "capturable"},
    "lr_decay": {"lr": 0.1, "lr_decay": 0.01},
    "initial": {"lr": 0.1, "initial_accumulator_value": 0.1},
}
_ASGD = {**_COMMON, "averaging": {"lr": 0.02, "t0": 5, "lambd": 0.01, "alpha": 0.5}}
_RMSPROP = {
    **_COMMON,
    "momentum": {"lr": 0.01, "momentum": 0.9},
    "centered": {"lr": 0.01, "centered": True},
    "all": {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1, "maximize": True},
}
_RPROP = {
    **{label: options for label, options in _COMMON.items() if label not in ("weight_decay", "all")},
    "etas": {"lr": 0.02, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.5)},
    "all": {"lr": 0.02, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.5), "maximize": True},
}
_ADAFACTOR = {
    "default": {},
    "weight_decay": {"lr": 0.05, "weight_decay": 0.1},
    "maximize": {"maximize": True},
    "tensor_lr": {"lr": torch.tensor(0.05)},
    "all": {"lr": 0.05, "eps": (1e-6, 1e-2), "d": 1.5, "beta2_decay": -0.5, "weight_decay": 0.1, "maximize": True},
}
_MUON = {
    "default": {"lr": 0.02},
    "plain": {"lr": 0.02, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "original"},
    "tensor_lr": {"lr": torch.tensor(0.02)},
    "all": {"lr": 0.02, "momentum": 0.5, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "weight_decay": 0.3},
}
DECAYED = [{"weight_decay": 0.1}]
CATALOG: dict[str, Algorithm] = {
    one.name: one
    for one in (
        Algorithm(
            compiledopt.SGD,
            _SGD,
            formulas=[{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}],
            promised={"lr": 0.05, "momentum": 0.9},
            sparse=[
                {"lr": 0.1},
                {"lr": 0.1, "momentum": 0.9},
                {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
                {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
            ],
            tensor_options=True,
            unrolled=[{}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}, {"maximize": True}],
            measured={"lr": 1e-3, "momentum": 0.9},
            sharded={"momentum": 0.9},
        ),
        Algorithm(
            compiledopt.Adam,
            {**_ADAM, "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}},
            formulas=[{"weight_decay": 0.1}, {"amsgrad": True}],
            tensor_options=True,
            unrolled=[{}, {"amsgrad": True}, {"maximize": True}, {"decoupled_weight_decay": True}],
            measured={"lr": 1e-3, "amsgrad": True},
        ),
        Algorithm(
            compiledopt.AdamW,
            _ADAM,
            steady={"weight_decay": 0.0},
            decouples=True,
            tensor_options=True,
            unrolled=[{}, {"amsgrad": True}],
            measured={"lr": 1e-3, "weight_decay": 0.1},
            sharded={"amsgrad": True},
        ),
        Algorithm(compiledopt.Adadelta, _ADADELTA, formulas=DECAYED, promised={"lr": 1.0}, unrolled=[{}], sharded={"lr": 1.0}),
        Algorithm(
            compiledopt.Adagrad,
            _ADAGRAD,
            formulas=DECAYED,
            sparse=[{"lr": 0.1}, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "maximize": True}],
            unrolled=[{"lr_decay": 0.1}],
            states_at_once=True,
        ),
        Algorithm(compiledopt.Adamax, _COMMON, formulas=DECAYED, unrolled=[{}]),
        Algorithm(
            compiledopt.ASGD,
            _ASGD,
            formulas=DECAYED,
            steady={"lambd": 0.0},
            unrolled=[{"lambd": 0.1, "t0": 1}],
            moves_without_rate=True,  # it decays
        ),
        Algorithm(
            compiledopt.NAdam,
            {**_DECOUPLED, "momentum_decay": {"lr": 0.02, "momentum_decay": 0.1}},
            formulas=DECAYED,
            unrolled=[{"decoupled_weight_decay": True}],
        ),
        Algorithm(compiledopt.RAdam, _DECOUPLED, formulas=DECAYED, unrolled=[{"betas": (0.5, 0.6)}]),
        Algorithm(
            compiledopt.RMSprop,
            _RMSPROP,
            formulas=[{"weight_decay": 0.1}, {"centered": True, "momentum": 0.9}],
            unrolled=[{"momentum": 0.5, "centered": True}],
        ),
        Algorithm(compiledopt.Rprop, _RPROP, unrolled=[{}], moves_without_rate=True),  # its first steps are of size lr
        Algorithm(compiledopt.Adafactor, _ADAFACTOR, formulas=DECAYED, takes_empty=False, decouples=True),
        Algorithm(compiledopt.Muon, _MUON, steady={"weight_decay": 0.0}, takes_empty=False, decouples=True, multiplies=True),
        Algorithm(compiledopt.LBFGS, promised={"lr": 0.5, "max_iter": 4}, measured=None),
        Algorithm(
            compiledopt.SparseAdam,
            sparse=[{"lr": 0.1}, {"lr": torch.tensor(0.1), "betas": (0.5, 0.9), "eps": 1e-4, "maximize": True}],
            measured=None,
        ),
    )
}


def _published(
    name: str, rich: Mapping[str, Any], lr: float = 0.01, more: Mapping[str, Any] | None = None, **known: Any
) -> Algorithm:
    """One of the menu. rich: the options of its richest configuration; more: further configurations; known: of Algorithm."""
    ours = getattr(compiledopt, name)
    labels = {"default": {}, "maximize": {"maximize": True}, **(more or {}), "all": rich}
    steady = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(ours).parameters else {}
    found = {label: {"lr": lr, **options} for label, options in labels.items()}
    # The same flags as in "all", so that one kernel does for the quick tests.
    return Algorithm(ours, found, written(ours), promised={**rich, "lr": 5 * lr}, steady=steady, **known)


# Those that torch.optim lacks, each against its paper (tests/published.py): tests/test_published.py.
PUBLISHED: dict[str, Algorithm] = {
    one.name: one
    for one in (
        _published(
            "ADOPT",
            {"weight_decay": 0.1, "decoupled": True, "betas": (0.8, 0.99), "clip_exp": 0.25},
            more={"unclipped": {"clip_exp": None, "weight_decay": 0.1}},
        ),
        _published(
            "AdaGO",
            {"weight_decay": 0.1, "gamma": 3.0, "nesterov": True},
            lr=0.05,
            more={"least": {"eps": 0.02}},
            brief=True,
            moves_without_rate=True,  # by eps at least
        ),
        _published("AdaMuon", {"weight_decay": 0.1, "ns_steps": 3}),
        _published("AdamAtan2", {"weight_decay": 0.1, "a": 1.1, "b": 0.9}),
        _published("AdamMini", {"weight_decay": 0.1}),
        _published("AdamP", {"weight_decay": 0.1, "delta": 5.0, "nesterov": True}, more={"never": {"delta": 0.0}}),
        _published("CAME", {"weight_decay": 0.1, "eps": (1e-8, 1e-6), "betas": (0.8, 0.9, 0.95)}),
        _published(
            "MARS",
            {"weight_decay": 0.1, "gamma": 0.1},
            more={"lion": {"mars_type": "lion", "optimize_1d": True}, "vectors": {"betas_1d": (0.8, 0.9), "lr_1d_factor": 0.5}},
        ),
        _published("NAdamW", {"weight_decay": 0.1, "betas": (0.8, 0.99)}),
        _published("NorMuon", {"weight_decay": 0.1, "nesterov": False}),
        _published(
            "NovoGrad",
            {"weight_decay": 0.1, "amsgrad": True},
            more={"averaged": {"weight_decay": 0.1, "grad_averaging": True, "decoupled_decay": True}},
        ),
        _published("SGDP", {"weight_decay": 0.1, "momentum": 0.5, "delta": 5.0}, more={"nesterov": {"nesterov": True}}),
        _published("SM3", {"momentum": 0.9, "beta": 0.9}, lr=0.05, more={"sums": {"momentum": 0.5}}),
        _published("SophiaG", {"weight_decay": 0.1, "bs": 16}),
        _published(
            "AdEMAMix",
            {"weight_decay": 0.1, "alpha": 5.0, "alpha_warmup": 20, "beta3_warmup": 30},
            more={"warm": {"alpha_warmup": 20}},
        ),
        _published(
            "AdaBelief",
            {"weight_decay": 0.1, "amsgrad": True, "rectify": False},
            more={"coupled": {"weight_decay": 0.1, "decoupled_decay": False}, "rectified": {"amsgrad": True}},
        ),
        # It has bounds of its own where its first lr is 0.
        _published("AdaBound", {"weight_decay": 0.1, "amsbound": True, "gamma": 0.1}, moves_without_rate=True),
        _published("Adan", {"weight_decay": 0.1, "no_prox": True}, more={"proximal": {"weight_decay": 0.1}}),
        _published("DiffGrad", {"weight_decay": 0.1}),
        _published("Grams", {"weight_decay": 0.1}),
        _published(
            "GrokAdamW",
            {"weight_decay": 0.1, "gamma": 0.2, "gradient_clipping": 3.0},
            more={"unclipped": {"gradient_clipping": 0.0, "alpha_init": 0.5}},
        ),
        _published(
            "LAMB",
            {"weight_decay": 0.1, "trust_clip": True},
            more={
                "plain": {"weight_decay": 0.0, "bias_correction": False, "grad_averaging": False},
                "decoupled": {"weight_decay": 0.1, "decoupled_decay": True, "always_adapt": True},
            },
        ),
        _published(
            "LARS",
            {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.1, "trust_coeff": 0.1},
            lr=0.1,
            more={"clip": {"trust_clip": True, "always_adapt": True, "momentum": 0.9, "nesterov": True, "trust_coeff": 0.1}},
        ),
        _published("LaProp", {"weight_decay": 0.1}),
        _published("Lion", {"weight_decay": 0.1}),
        _published(
            "MADGRAD",
            {"weight_decay": 0.1, "momentum": 0.8},
            more={"no_momentum": {"momentum": 0.0, "weight_decay": 0.1, "decoupled_decay": True}},
            moves_without_rate=True,  # it adds eps to lr
        ),
        _published("QHAdam", {"weight_decay": 0.1, "nus": (0.7, 0.9)}, more={"decoupled": {"decouple_weight_decay": True}}),
        _published(
            "RMSpropTF",
            {"weight_decay": 0.1, "momentum": 0.9, "centered": True},
            more={
                "rate": {"weight_decay": 0.1, "momentum": 0.9, "decoupled_decay": True, "lr_in_momentum": False},
            },
        ),
        _published(
            "SGDW",
            {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
            more={"dampened": {"momentum": 0.9, "dampening": 0.3}},
        ),
        _published("RACS", {"weight_decay": 0.01, "beta": 0.8, "gamma": 1.001}, lr=0.5, brief=True),
        _published(
            "Scion",
            {"momentum": 0.1, "scale": 2.0, "unconstrained": True},
            more={
                "plain": {},
                "within": {"momentum": 0.1, "scale": 2.0},
                "narrow": {"norm": "Spectral", "norm_kwargs": {"max": True, "normalized": False, "steps": 3}},
                "signs": {"norm": "Sign", "momentum": 0.1, "scale": 50.0},
                "columns": {"norm": "ColNorm", "norm_kwargs": {"normalized": True}, "scale": 50.0},
                "tokens": {"norm": "ColNorm", "norm_kwargs": {"transpose": True}, "momentum": 0.1},
                "rows": {"norm": "RowNorm", "scale": 50.0, "momentum": 0.5},
                "lengths": {"norm": "RowNorm", "norm_kwargs": {"normalized": False, "transpose": True}},
            },
            brief=True,
        ),
        _published("Signum", {"weight_decay": 0.1, "momentum": 0.7}, more={"no_momentum": {"momentum": 0.0}}),
        _published("StableAdamW", {"weight_decay": 0.1}),
        _published("Tiger", {"weight_decay": 0.1}),
        _published("AdaHessian", {"weight_decay": 0.1, "eps": 0.5}, lr=0.05, brief=True),
        _published("AdaMod", {"weight_decay": 0.1, "betas": (0.8, 0.9, 0.95)}, lr=0.1, brief=True),
        _published("AdaNorm", {"weight_decay": 0.1, "ams_bound": True}, brief=True),
        _published("AdaPNM", {"weight_decay": 0.1}, more={"unbounded": {"ams_bound": False}}, brief=True),
        _published("AdamG", {"weight_decay": 0.1, "p": 0.5}, lr=1.0, brief=True),
        _published("AggMo", {"weight_decay": 0.1, "betas": (0.1, 0.5, 0.9)}, brief=True),
        _published("Amos", {"momentum": 0.9, "extra_l2": 0.01}, lr=0.1, brief=True),
        _published(
            "StableSPAM",
            {"weight_decay": 0.1, "t_max": 9, "update_proj_gap": 7, "theta": 0.5},
            more={"steady": {"theta": 0.5, "gamma1": 0.5}},
            brief=True,
        ),
        _published("Ano", {"weight_decay": 0.1, "logarithmic_schedule": True}, brief=True),
        _published("EXAdam", {"weight_decay": 0.1, "eps": 1e-3}, brief=True),
        _published("FAdam", {"weight_decay": 0.3, "clip": 0.5, "p": 0.4}, brief=True),
        _published("FTRL", {"lr_power": -0.4, "beta": 1.0, "lambda_1": 0.5, "lambda_2": 0.1}, lr=0.1, brief=True),
        _published("Fromage", {"p_bound": 1.5}, brief=True),
        _published("GrokFastAdamW", {"weight_decay": 0.1, "grokfast_alpha": 0.9}, brief=True),
        _published("Kate", {"weight_decay": 0.1, "delta": 0.1}, brief=True),
        _published("PAdam", {"weight_decay": 0.1, "partial": 0.125}, brief=True),
        _published("PID", {"weight_decay": 0.1, "momentum": 0.8, "dampening": 0.1}, brief=True),
        _published("PNM", {"weight_decay": 0.1, "betas": (0.8, 0.9)}, brief=True),
        _published("QHM", {"weight_decay": 0.1, "momentum": 0.9}, brief=True),
        _published("SimplifiedAdEMAMix", {"weight_decay": 0.1, "alpha": 0.2, "beta1_warmup": 30}, brief=True),
        _published("SophiaH", {"weight_decay": 0.1, "eps": 0.5, "p": 0.5}, lr=0.1, brief=True),
        _published("AccSGD", {"weight_decay": 0.1, "kappa": 100.0, "xi": 5.0, "smallConst": 0.6}, lr=0.05, brief=True),
        _published("MSVAG", {"beta": 0.8}, lr=0.1, brief=True),
        _published("FOCUS", {"weight_decay": 0.1, "betas": (0.8, 0.95), "gamma": 0.2}, lr=0.1, brief=True),
        _published(
            "BCOS",
            {"weight_decay": 0.1, "beta2": 0.95},
            more={"coupled": {"decouple_wd": False}},
            brief=True,
        ),
        _published("VSGD", {"weight_decay": 0.1, "ghattg": 10.0, "ps": 1e-2, "tau1": 0.7}, lr=0.05, brief=True),
        _published("DualAdam", {"weight_decay": 0.1, "switch_rate": 0.03}, brief=True),
        _published("AdaSmooth", {"weight_decay": 0.1, "betas": (0.4, 0.95), "eps": 1e-4}, brief=True),
        _published(
            "A2Grad",
            {"variant": "exp", "rho": 0.6, "lips": 5.0, "beta": 1.0},
            lr=0.8,
            more={"inc": {"variant": "inc", "lips": 5.0}},
            brief=True,
        ),
        _published("TAM", {"weight_decay": 0.1, "momentum": 0.8, "decay_rate": 0.7}, lr=0.1, brief=True),
        _published(
            "ApolloDQN",
            {"weight_decay": 0.1, "rebound": "belief", "weight_decay_type": "stable", "warmup": 9, "init_lr": 1e-2},
            more={"decoupled": {"weight_decay": 0.1, "weight_decay_type": "decoupled", "warmup": 9}},
            brief=True,
        ),
        _published("SGDSaI", {"weight_decay": 0.1, "momentum": 0.8}, more={"no_momentum": {"momentum": 0.0}}, brief=True),
        _published("Aida", {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "K": 3, "xi": 1e-3}, brief=True),
        _published("Rose", {"weight_decay": 0.1}, more={"plain": {"centralize": False, "stabilize": False}}, brief=True),
        _published("AdaShift", {"keep_num": 3, "betas": (0.8, 0.95), "reduce_func": "mean"}, brief=True),
        # Each of its steps ends in the form that it keeps.
        _published("Nero", {"beta": 0.9}, more={"free": {"constraints": False}}, brief=True, moves_without_rate=True),
        # What it starts from is drawn anew for each; tests/test_published.py has that.
        _published(
            "Gravity",
            {"alpha": 0.0, "beta": 0.8},
            lr=0.1,
            more={"default": {"alpha": 0.0}, "maximize": {"alpha": 0.0, "maximize": True}},
            brief=True,
        ),
        _published("Yogi", {"weight_decay": 0.1}, more={"coupled": {"weight_decay": 0.1, "weight_decouple": False}}),
    )
}
# Those that sum over the whole model or share states: tests/test_whole_model.py and test_evaluation.py have the authors'
# algorithms, over all groups at once.
WHOLE_MODEL: dict[str, Algorithm] = {
    one.name: one
    for one in (
        Algorithm(compiledopt.AdamS, promised={"lr": 0.05, "weight_decay": 0.1}, steady={"weight_decay": 0.0}, brief=True),
        Algorithm(compiledopt.AliG, promised={"lr": 0.05, "momentum": 0.5, "loss": 1.0}, brief=True),
        Algorithm(compiledopt.AvaGrad, promised={"lr": 0.5}, brief=True),
        Algorithm(compiledopt.AdaGC, promised={"lr": 0.05, "warmup_steps": 3}, steady={"weight_decay": 0.0}),
        Algorithm(compiledopt.Adai, promised={"lr": 0.05}),
        Algorithm(compiledopt.AdamWScheduleFree),
        Algorithm(compiledopt.DAdaptAdaGrad, promised={"d0": 1e-2}, brief=True),
        Algorithm(compiledopt.DAdaptAdam, promised={"d0": 1e-2}),
        Algorithm(compiledopt.DAdaptAdan, promised={"d0": 1e-2}, steady={"weight_decay": 0.0}, brief=True),
        Algorithm(compiledopt.DAdaptLion, promised={"d0": 1e-2}, brief=True),
        Algorithm(compiledopt.DAdaptSGD, promised={"d0": 1e-2}, brief=True),
        Algorithm(compiledopt.DoG, promised={"reps_rel": 1e-2}),
        Algorithm(compiledopt.Prodigy, promised={"d0": 1e-2}),
        Algorithm(compiledopt.RAdamScheduleFree),
        Algorithm(compiledopt.SGDScheduleFree),
    )
}
# Those with matrices among their states, and work that is not due at every step: tests/test_menu_matrices.py.
MATRICES: dict[str, Algorithm] = {
    one.name: one
    for one in (
        Algorithm(compiledopt.APOLLOAdamW, promised={"lr": 0.05}),
        Algorithm(compiledopt.Conda, promised={"lr": 0.05}, brief=True),
        Algorithm(compiledopt.DistributedShampoo, promised={"lr": 0.05, "epsilon": 1e-3}, brief=True),
        Algorithm(compiledopt.FiraAdamW, promised={"lr": 0.05}, brief=True),
        Algorithm(compiledopt.GaLoreAdafactor, promised={"lr": 0.05}, brief=True),
        Algorithm(compiledopt.GaLoreAdamW, promised={"lr": 0.05}),
        Algorithm(compiledopt.Kron, promised={"lr": 0.05}),
        Algorithm(compiledopt.SOAP, promised={"lr": 0.05}),
        Algorithm(compiledopt.SPlus, promised={"lr": 0.5}, brief=True),
        Algorithm(compiledopt.Shampoo, promised={"lr": 0.05}),
    )
}
MENU = dict(sorted({**PUBLISHED, **WHOLE_MODEL, **MATRICES}.items()))
# What is tried on every executor: those that are elementwise. tests/test_not_elementwise.py has the others.
CASES: list[Case] = [case for one in CATALOG.values() if one.elementwise for case in one.cases]
ALGORITHMS = list(dict.fromkeys(case.algorithm for case in CASES))
# torch refuses capturable=True on the CPU; the baseline runs without it.
BASELINE: dict[str, dict[str, Any]] = {"capturable": {"capturable": False}}


def in_every_dtype(cases: Iterable[Case], dtypes: Iterable[torch.dtype], slow: Iterable[torch.dtype] = ()) -> list[Any]:
    """(case, dtype): all in float32, and in the others the richest of each algorithm; the rest of them, and all in a dtype of
    `slow`, among the slow tests."""
    import pytest  # perf/ takes the catalog too

    richest, found = one_per_algorithm(), []
    for case in cases:
        for dtype in dict.fromkeys((torch.float32, *dtypes, *slow)):
            is_quick = dtype is torch.float32 or (case in richest and dtype in dtypes)
            marks = [] if is_quick else [pytest.mark.slow]
            found.append(pytest.param(case, dtype, marks=marks, id=f"{case}-{dtype}"))
    return found


def with_slow(cases: Iterable[tuple[Any, ...]], quick: Callable[..., bool]) -> list[Any]:
    """Those that are not quick are among the slow tests."""
    import pytest

    return [pytest.param(*x, marks=[] if quick(*x) else [pytest.mark.slow], id="-".join(map(str, x))) for x in cases]


def one_per_algorithm() -> list[Case]:
    """The richest configuration of each, for tests that need not see all."""
    return [next(case for case in reversed(CASES) if case.algorithm == name and case.label == "all") for name in ALGORITHMS]


def one_per_kind(wanted: Callable[[Algorithm], Any] = lambda one: True) -> list[Algorithm]:
    """The first of each kind among those that are wanted, for tests of what is alike for all of a kind."""
    found: dict[tuple[Any, ...], Algorithm] = {}
    for one in CATALOG.values():
        if one.rule is not None and wanted(one):
            found.setdefault(one.kind, one)
    return list(found.values())


def with_and_without_count() -> list[Algorithm]:
    """One whose parameters count their updates, and one whose parameters do not, for what concerns the numbers of a step."""
    return [next(one for one in CATALOG.values() if one.elementwise and one.counts is counts) for counts in (True, False)]


def by_kind(subjects: Iterable[Case | Algorithm] | None = None) -> list[Any]:
    """The cases or algorithms (else a case per algorithm), for tests of machinery: the first of each kind; the others among the
    slow tests."""
    import pytest

    first = {one.name for one in one_per_kind()}
    subjects, found = one_per_algorithm() if subjects is None else subjects, []
    for one in subjects:
        name = one.name if isinstance(one, Algorithm) else one.algorithm
        found.append(pytest.param(one, marks=[] if name in first else [pytest.mark.slow], id=str(one)))
    return found
