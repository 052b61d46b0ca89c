"""The codecs that there are. One line here and one file in this folder each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compiledopt.storage.blocks import Int8, UInt8
from compiledopt.storage.codec import Codec
from compiledopt.storage.derived import STATE_DTYPE
from compiledopt.storage.dynamic import Dynamic8, UDynamic8
from compiledopt.storage.float8 import Float8
from compiledopt.storage.four_bits import Int4, UInt4
from compiledopt.storage.rounded import Root, StochasticallyRounded, StochasticRoot, Stored

CODECS: dict[str, Codec] = {
    one.name: one
    for one in (
        Stored("float32", torch.float32),
        StochasticallyRounded("bfloat16", torch.bfloat16),
        StochasticallyRounded("float16", torch.float16, unsigned="float16_root"),
        StochasticRoot(),
        Stored("bfloat16_nearest", torch.bfloat16),
        Stored("float16_nearest", torch.float16, unsigned="float16_root_nearest"),
        Root(),
        Int8(),
        UInt8(),
        Dynamic8(),
        UDynamic8(),
        Float8(),
        Int4(),
        UInt4(),
    )
}


def name_of(asked: Any) -> str:
    """The name of a codec, of what stands in a group. Raises: ValueError."""
    name = str(asked).removeprefix("torch.") if isinstance(asked, torch.dtype) else asked
    if name not in CODECS:
        raise ValueError(f"Invalid {STATE_DTYPE} value: {asked!r}; it is one of {', '.join(CODECS)}, or the torch.dtype of one")
    return str(name)


def asked_for(group: Mapping[str, Any]) -> dict[str, str]:
    """{state: name of a codec}, "*" for those that are not named. Raises: ValueError."""
    asked = group.get(STATE_DTYPE)
    if asked is None:
        return {}
    return {k: name_of(v) for k, v in asked.items() if v is not None} if isinstance(asked, Mapping) else {"*": name_of(asked)}
