"""The menu: where the published algorithms stand, and every optimizer by the names that timm and Transformers know."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from compiledopt import around
from compiledopt.arguments import Extras, ParamsT

if TYPE_CHECKING:
    from compiledopt.optimizer import Optimizer

# {class: file in algorithms/published}: imported when they are asked for, so that `import compiledopt` is not slower.
PUBLISHED = {
    "ADOPT": "adopt",
    "AdEMAMix": "ademamix",
    "AdaBelief": "adabelief",
    "AdamWScheduleFree": "adamw_schedule_free",
    "DAdaptAdam": "dadapt_adam",
    "AdaGO": "adago",
    "DAdaptAdaGrad": "dadapt_adagrad",
    "DAdaptAdan": "dadapt_adan",
    "DAdaptLion": "dadapt_lion",
    "DAdaptSGD": "dadapt_sgd",
    "Scion": "scion",
    "Conda": "conda",
    "FiraAdamW": "fira_adamw",
    "RACS": "racs",
    "SPlus": "splus",
    "DoG": "dog",
    "DistributedShampoo": "distributed_shampoo",
    "Lion": "lion",
    "Prodigy": "prodigy",
    "AdaBound": "adabound",
    "APOLLOAdamW": "apollo_adamw",
    "AdaMuon": "adamuon",
    "AdamAtan2": "adam_atan2",
    "AdamMini": "adam_mini",
    "AdamP": "adamp",
    "Adan": "adan",
    "CAME": "came",
    "DiffGrad": "diffgrad",
    "GaLoreAdafactor": "galore_adafactor",
    "GaLoreAdamW": "galore_adamw",
    "Grams": "grams",
    "GrokAdamW": "grokadamw",
    "Kron": "kron",
    "LAMB": "lamb",
    "LARS": "lars",
    "LaProp": "laprop",
    "MADGRAD": "madgrad",
    "MARS": "mars",
    "NAdamW": "nadamw",
    "NorMuon": "normuon",
    "NovoGrad": "novograd",
    "QHAdam": "qhadam",
    "RAdamScheduleFree": "radam_schedule_free",
    "RMSpropTF": "rmsprop_tf",
    "SGDScheduleFree": "sgd_schedule_free",
    "SGDP": "adamp",
    "SGDW": "sgdw",
    "SM3": "sm3",
    "SOAP": "soap",
    "Shampoo": "shampoo",
    "Signum": "signum",
    "SophiaG": "sophia",
    "StableAdamW": "stable_adamw",
    "Tiger": "tiger",
    "AdaGC": "adagc",
    "AdaHessian": "adahessian",
    "Adai": "adai",
    "AdamG": "adamg",
    "AdaMod": "adamod",
    "AdaNorm": "adanorm",
    "AdaPNM": "adapnm",
    "AggMo": "aggmo",
    "Amos": "amos",
    "Ano": "ano",
    "EXAdam": "exadam",
    "FAdam": "fadam",
    "Fromage": "fromage",
    "FTRL": "ftrl",
    "GrokFastAdamW": "grokfast_adamw",
    "Kate": "kate",
    "PAdam": "padam",
    "PID": "pid",
    "PNM": "pnm",
    "QHM": "qhm",
    "SimplifiedAdEMAMix": "simplified_ademamix",
    "SophiaH": "sophia_h",
    "StableSPAM": "stable_spam",
    "Yogi": "yogi",
    "AliG": "alig",
    "AvaGrad": "avagrad",
    "AdamS": "adams",
    "AdaShift": "adashift",
    "Nero": "nero",
    "Gravity": "gravity",
    "A2Grad": "a2grad",
    "TAM": "tam",
    "ApolloDQN": "apollo_dqn",
    "SGDSaI": "sgd_sai",
    "Aida": "aida",
    "Rose": "rose",
    "AccSGD": "accsgd",
    "MSVAG": "msvag",
    "FOCUS": "focus",
    "BCOS": "bcos",
    "VSGD": "vsgd",
    "DualAdam": "dual_adam",
    "AdaSmooth": "adasmooth",
}
OF_TORCH = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop"]
OF_TORCH += ["Rprop", "SGD", "SparseAdam"]
Entry = tuple[str, dict[str, Any]]
CLASSES: dict[str, Entry] = {name.lower(): (name, {}) for name in (*OF_TORCH, *PUBLISHED)}
_NESTEROV = {"momentum": 0.9, "nesterov": True}
# Names of timm and Transformers that are a class with options. Numbers that only timm chooses otherwise stay the class's own.
VARIANTS: dict[str, Entry] = {
    "apollo_adamw": ("APOLLOAdamW", {}),
    "galore_adafactor": ("GaLoreAdafactor", {"scale_parameter": False}),
    "galore_adamw": ("GaLoreAdamW", {}),
    "adabelief": ("AdaBelief", {"rectify": False}),
    "adamp": ("AdamP", {"wd_ratio": 0.01, "nesterov": True}),
    "adamw_anyprecision": ("AdamW", {"rounding": "compensated"}),
    "adamw_torch_4bit": ("AdamW", {"state_dtype": "int4"}),
    "adamwlegacy": ("AdamW", {}),
    "adanw": ("Adan", {"no_prox": True}),
    "adoptw": ("ADOPT", {"decoupled": True}),
    "kronw": ("Kron", {}),
    "lambc": ("LAMB", {"trust_clip": True}),
    "lambcw": ("LAMB", {"trust_clip": True, "decoupled_decay": True}),
    "lambw": ("LAMB", {"decoupled_decay": True}),
    "larc": ("LARS", {"momentum": 0.9, "trust_clip": True}),
    "lars": ("LARS", {"momentum": 0.9}),
    "madgradw": ("MADGRAD", {"decoupled_decay": True}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nadamlegacy": ("NAdam", {}),
    "nesterov": ("SGD", _NESTEROV),
    "nesterovw": ("SGDW", _NESTEROV),
    "nlarc": ("LARS", {**_NESTEROV, "trust_clip": True}),
    "nlars": ("LARS", _NESTEROV),
    "nadamuon": ("AdaMuon", {"nesterov": True}),
    "nmuon": ("Muon", {"nesterov": True}),
    "novogradw": ("NovoGrad", {"decoupled_decay": True}),
    "radabelief": ("AdaBelief", {"rectify": True}),
    "radamlegacy": ("RAdam", {}),
    "radamw": ("RAdam", {"decoupled_weight_decay": True}),
    "rmsproptf": ("RMSpropTF", {"momentum": 0.9}),
    "rmsproptfw": ("RMSpropTF", {"momentum": 0.9, "decoupled_decay": True}),
    "schedule_free_adamw": ("AdamWScheduleFree", {}),
    "schedule_free_radam": ("RAdamScheduleFree", {}),
    "schedule_free_sgd": ("SGDScheduleFree", {}),
    "sgdp": ("SGDP", _NESTEROV),
    "sgdw": ("SGDW", _NESTEROV),
}
# timm's prefix c is caution, its suffix c a decay in proportion to γ² / the largest γ: {its name: what it is without}.
CORRECTED = {"adamc": "adamw", "nadamc": "nadamw", "sgdc": "sgdw", "adoptc": "adoptw", "lambcd": "lambw", "lionc": "lion"}
CORRECTED |= {"kronc": "kronw", "lapropc": "laprop", "rmsproptfc": "rmsproptfw", "novogradc": "novogradw"}
CAUTIOUS = [
    "adafactor",
    "adamp",
    "adamw",
    "adan",
    "adanw",
    "adopt",
    "adoptw",
    "lamb",
    "lambw",
    "laprop",
    "lion",
    "mars",
    "nadamw",
]
CAUTIOUS += ["rmsproptf", "sgdp", "sgdw", "adamc", "adoptc", "nadamc", "sgdc", "lionc"]
# The options of those variants, which stand around any rule.
AROUND = {"cautious", "corrected_decay", "state_dtype"}
# What stands before or behind a name: options.
PREFIXES: dict[str, dict[str, Any]] = {"paged_": {}, "fused": {"fused": True}, "bnb": {}}
SUFFIXES: dict[str, dict[str, Any]] = {"_fused": {"fused": True}, "_foreach": {"foreach": True}, "_torch": {}, "_bnb": {}}
SUFFIXES |= {"_32bit": {}, "_8bit": {"state_dtype": "int8"}, "8bit": {"state_dtype": "int8"}}
LOOKAHEAD = "lookahead_"  # timm's prefix for Lookahead around an optimizer
# Names of others that are one of these with more around it, for the list.
SPELLED = [f"fused{name}" for name in ("adam", "adamw", "lamb", "novograd", "sgd")]
SPELLED += [f"bnb{name}{bits}" for name in ("adam", "adamw", "ademamix", "lion", "sgd") for bits in ("", "8bit")]
SPELLED += [f"paged_{name}_{bits}" for name in ("adamw", "ademamix", "lion") for bits in ("32bit", "8bit")]
SPELLED += [f"adamw_{end}" for end in ("torch", "torch_fused", "torch_8bit", "bnb_8bit", "8bit")]
SPELLED += [f"rmsprop_bnb{bits}" for bits in ("", "_8bit", "_32bit")] + ["ademamix_8bit", "lion_8bit", "lion_32bit"]
ALIASES = {"stable_adamw": "stableadamw"}
# Names of pytorch_optimizer.
ALIASES |= {
    "apollo": "apolloadamw",
    "fira": "firaadamw",
    "galore": "galoreadamw",
    "scalableshampoo": "distributedshampoo",
    "signsgd": "signum",
}
ALIASES |= {f"schedulefree{name}": f"{name}schedulefree" for name in ("adamw", "radam", "sgd")}
SPELLED += [*ALIASES]
_IN_BACKWARD = (
    "updates each parameter within backward, so that no gradient is kept; make one optimizer per parameter, and call "
)
_IN_BACKWARD += "its step in register_post_accumulate_grad_hook, as docs/training-loop.md does"
_LOW_RANK = "keeps other states than AdamW's of a projected gradient; 'galore_adamw' and 'apollo_adamw' are here"
_ITS_RANK = f"{_LOW_RANK}, and compiledopt.define makes others"
_THE_LOSS = "changes its rate by averages of the loss; 'alig' takes the loss, and 'prodigy' and 'dog' find a rate without it"
_MODULES = "wants to know the modules behind the parameters, and an optimizer here is given parameters"
# Names of others for which there is nothing here: why, and what instead.
REFUSED = {
    "adafactorbv": "has a momentum in half precision and a decay of its own; 'adafactor' is torch's",
    "adafactorbvc": "has a momentum in half precision and a decay of its own; 'adafactor' is torch's",
    "adalomo": _IN_BACKWARD,
    "adamw_torch_npu_fused": "is for NPUs; 'adamw' runs where torch does",
    "adamw_torch_xla": "is for XLA devices, whose step torch_xla compiles; use torch.optim.AdamW there",
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "cadafactorbv": "has a momentum in half precision and a decay of its own; 'cadafactor' is torch's, cautious",
    "cadafactorbvc": "has a momentum in half precision and a decay of its own; 'cadafactor' is torch's, cautious",
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit": "keeps moments of a projected gradient in blocks, which follow a parameter's shape here",
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
    # Of pytorch_optimizer.
    "alice": _ITS_RANK,
    "sara": "is AdamW on those weights alone that were small at first, a mask that compiledopt.define has as a state",
    "spectralsphere": "keeps matrices on a sphere, by a search as long as the data want it; 'scion' keeps them in a ball",
    **dict.fromkeys(("emofact", "emolynx", "emonavi"), _THE_LOSS),
    "adalite": "has no paper; 'adafactor' and 'came' keep a second moment by its rows and columns too",
    "adamwsn": "keeps one second moment for some elements of a matrix; 'adammini' keeps one for each row",
    "adatam": "is TAM's momentum over the root of Adam's second moment, without its corrections; 'tam' is here",
    "bsam": "perturbs the parameters before the gradient is taken; compiledopt.SAM does so around any optimizer",
    "dash": "solves for the roots of Shampoo's matrices in blocks; 'shampoo' takes them by eigenvalues",
    "demo": "sends parts of the momentum between processes, in the place of gradients",
    "distributedmuon": "is Muon over shards, which 'muon' is where parameters are sharded",
    "flashadamw": "is create_optimizer('adamw', params, state_dtype='int8', rounding='split') here",
    "lorarite": _MODULES,
    "magma": "draws one random number for each parameter and step, and the noise of a rule here is each element's own",
    "scionlight": "keeps its momentum in p.grad, never zeroed, and a step here writes no gradient; 'scion' has a state for it",
    "muonclip": f"is 'muon' and a clip of the attention's weights: it {_MODULES}",
    "ranger21": "is AdamW with eight additions; clipping, centralization and schedules stand around any rule here",
    "spam": "has masks of parameters that move, drawn anew now and then; its successor 'stablespam' is here",
    "srmm": "averages parameters from zero on, so that its first step takes a part of them; ema_decay averages them here",
    "swats": "changes from Adam to SGD where one number of the run says so; make the other optimizer there",
    "ranger": "is Lookahead around RAdam: create_optimizer('lookahead_radam', params, gradient_centralization=True)",
}


def published(name: str) -> Any:
    """The class of a published algorithm. Raises: KeyError where there is none of that name."""
    return getattr(importlib.import_module(f"{__package__}.algorithms.published.{PUBLISHED[name]}"), name)


def names() -> list[str]:
    """All names that `create_optimizer` knows, without the patterns of PREFIXES and SUFFIXES that nobody else spells."""
    corrected = [f"c{name}" for name in CAUTIOUS]
    known = {*CLASSES, *VARIANTS, *CORRECTED, *corrected, *SPELLED}
    have = {*Extras.__annotations__, *around.options()}
    entries = {name: _entry(name) for name in known}
    return sorted(name for name, entry in entries.items() if entry is not None and {*entry[1]} & AROUND <= have)


def list_optimizers(filter: str | Iterable[str] = "", exclude_filters: Iterable[str] = ()) -> list[str]:
    """The names that `create_optimizer` takes, sorted: every class here in lower case, and timm's and Transformers' names.

    filter: a pattern with wildcards ("adam*"), or several, of which one must match. exclude_filters: patterns, none of which
    may. Mutates: nothing.
    """
    wanted = [filter] if isinstance(filter, str) else list(filter)
    found = [name for name in names() if not any(wanted) or any(fnmatch(name, each) for each in wanted)]
    return [name for name in found if not any(fnmatch(name, each) for each in exclude_filters)]


def create_optimizer(name: str, params: ParamsT, **options: Any) -> Optimizer:
    """Make the optimizer that timm, Transformers or this library calls `name`: `create_optimizer("lion", params, lr=1e-4)`.

    name: one of `list_optimizers()`, in any case, or such a name with timm's prefix "lookahead_", whose options are then
    lookahead_alpha and lookahead_k. params: as every optimizer's. options: the class's; they go before those
    that a name means, as "sgdw" means momentum=0.9 and nesterov=True. Returns: the optimizer. Mutates: nothing.
    Raises: ValueError for a name that is none, with those near it, or that names what is not here, with the reason; TypeError
    for an option that the class has not.
    Deviations: learning rates and decays are the class's own defaults. "sgd" and "rmsprop" are torch's and Transformers',
    without timm's momentum of 0.9 ("nesterov", "momentum"); "paged_" is AdamW, Lion and so on with states that are not paged.
    """
    low = name.lower().replace("-", "_")
    if low.startswith(LOOKAHEAD):
        return _looking_ahead(low.removeprefix(LOOKAHEAD), params, options)
    entry = _entry(low)
    if entry is None:
        raise ValueError(_unknown(name, low))
    title, meant = entry
    algorithm = getattr(importlib.import_module(__package__), title)
    known = {*inspect.signature(algorithm).parameters, *Extras.__annotations__, *around.options()}
    missing = [f"{option}={value!r}" for option, value in meant.items() if option not in known]
    if missing:
        raise ValueError(
            f"{name!r} is {title} with {', '.join(missing)}, which {title} does not take here; use {title.lower()!r}"
        )
    if low.startswith("paged_"):
        warnings.warn(f"{name!r}: states are not paged here; they stay on their parameters' device", UserWarning, stacklevel=2)
    made: Optimizer = algorithm(params, **{**meant, **options})
    return made


def _looking_ahead(name: str, params: ParamsT, options: dict[str, Any]) -> Optimizer:
    """timm's prefix: slow weights around an optimizer of that name."""
    lookahead = importlib.import_module(f"{__package__}.lookahead")
    own = {key: options.pop(f"{LOOKAHEAD}{key}") for key in ("alpha", "k") if f"{LOOKAHEAD}{key}" in options}
    made: Optimizer = lookahead.Lookahead(create_optimizer(name, params, **options), **own)
    return made


def _entry(name: str) -> Entry | None:
    """The class that a name means, and its options; None where it means none."""
    name = ALIASES.get(name, name)
    found = VARIANTS.get(name) or CLASSES.get(name)
    if found is not None:
        return found if found[0].lower() in CLASSES else None
    if name in CORRECTED:
        return _with(CORRECTED[name], {"corrected_decay": True})
    if name[:1] == "c" and name[1:] in CAUTIOUS:
        return _with(name[1:], {"cautious": True})
    for suffix, options in SUFFIXES.items():
        if name.endswith(suffix) and name not in REFUSED:
            return _with(name.removesuffix(suffix), options)
    for prefix, options in PREFIXES.items():
        if name.startswith(prefix):
            return _with(name.removeprefix(prefix), options)
    return None


def _with(name: str, options: dict[str, Any]) -> Entry | None:
    entry = _entry(name)
    return None if entry is None else (entry[0], {**entry[1], **options})


def _unknown(name: str, low: str) -> str:
    if low in REFUSED:
        return f"There is no {name!r} here: it {REFUSED[low]}"
    near = difflib.get_close_matches(low, names(), 3)
    return f"There is no optimizer {name!r}" + (f"; near it: {', '.join(near)}" if near else "; see list_optimizers()")
