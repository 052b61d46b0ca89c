"""Where the published algorithms stand: imported when they are asked for, so that `import compiledopt` is not slower."""

from __future__ import annotations

import importlib
from typing import Any

# {class: file in algorithms/published}
PUBLISHED = {
    "AdaBelief": "adabelief",
    "DAdaptAdam": "dadapt_adam",
    "DoG": "dog",
    "Lion": "lion",
    "Prodigy": "prodigy",
    "QHAdam": "qhadam",
    "Signum": "signum",
    "Tiger": "tiger",
    "Yogi": "yogi",
}


def published(name: str) -> Any:
    """The class of a published algorithm. Raises: KeyError where there is none of that name."""
    return getattr(importlib.import_module(f"compiledopt.algorithms.published.{PUBLISHED[name]}"), name)
