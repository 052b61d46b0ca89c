"""What stands in for libdevice where TRITON_INTERPRET=1: the interpreter has tensors of numpy, and no CUDA functions.

Tried on triton 3.6.0 and 3.7.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle


class Libdevice:
    """`libdevice.pow(a, b)` and the like, elementwise on numpy arrays."""

    functions: dict[str, Any] = {"pow": np.power, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "abs": np.abs}
    functions |= {
        "tanh": np.tanh,
        "sin": np.sin,
        "cos": np.cos,
        "floor": np.floor,
        "exp2": np.exp2,
        "nearbyint": np.rint,
        "copysign": np.copysign,
        "ceil": np.ceil,
        "trunc": np.trunc,
        "isnan": np.isnan,
        "rsqrt": lambda x: 1 / np.sqrt(x),
    }

    def __getattr__(self, name: str) -> Any:
        function = self.functions[name]

        def call(*arguments: Any) -> Any:
            wide = next((a for a in arguments if isinstance(a, tl.tensor)), None)
            assert wide is not None
            values = [a.handle.data if isinstance(a, tl.tensor) else a for a in arguments]
            with np.errstate(all="ignore"):
                result = np.asarray(function(*values)).astype(wide.handle.data.dtype)
            shaped = next((a for a in arguments if isinstance(a, tl.tensor) and a.handle.data.shape == result.shape), wide)
            return tl.tensor(TensorHandle(result, wide.handle.dtype), shaped.type)

        return call


libdevice = Libdevice()
