"""Triton's interpreter, made to round to bfloat16 as processors do: by itself it cuts off (`_convert_float` of 3.6 and 3.7)."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_plain = InterpreterBuilder.cast_impl


def _cast(self, src, dst_type):
    old, new = src.dtype.scalar, dst_type.scalar
    if (old, new) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), new)
    if (old, new) == (tl.bfloat16, tl.float32):
        return TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), new)
    return _plain(self, src, dst_type)


def round_to_nearest():
    InterpreterBuilder.cast_impl = _cast
