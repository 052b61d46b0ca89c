"""Where the published algorithms stand: imported when they are asked for, so that `import compiledopt` is not slower."""

from __future__ import annotations

import importlib
from typing import Any

# {class: file in algorithms/published}
PUBLISHED = {
    "ADOPT": "adopt",
    "AdEMAMix": "ademamix",
    "AdaBelief": "adabelief",
    "AdamWScheduleFree": "adamw_schedule_free",
    "DAdaptAdam": "dadapt_adam",
    "DoG": "dog",
    "Lion": "lion",
    "Prodigy": "prodigy",
    "AdaBound": "adabound",
    "Adan": "adan",
    "DiffGrad": "diffgrad",
    "Grams": "grams",
    "LAMB": "lamb",
    "LARS": "lars",
    "LaProp": "laprop",
    "MADGRAD": "madgrad",
    "QHAdam": "qhadam",
    "RAdamScheduleFree": "radam_schedule_free",
    "RMSpropTF": "rmsprop_tf",
    "SGDScheduleFree": "sgd_schedule_free",
    "SGDW": "sgdw",
    "Signum": "signum",
    "StableAdamW": "stable_adamw",
    "Tiger": "tiger",
    "Yogi": "yogi",
}


def published(name: str) -> Any:
    """The class of a published algorithm. Raises: KeyError where there is none of that name."""
    return getattr(importlib.import_module(f"compiledopt.algorithms.published.{PUBLISHED[name]}"), name)
