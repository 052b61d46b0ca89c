"""States in float8: 4 bits of exponent and 3 of significand, on the scale of a block's largest size. Programs see the bytes:
neither every compiler nor every device knows the type, and it has no infinities."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.rules.composed import largest, operation
from compiledopt.storage.codec import Codec
from compiledopt.storage.pieces import share_of

MOST, SMALLEST_NORMAL = 448.0, 2.0**-6
PLACES, BIAS = 20, 120  # of float32's significand beyond 3; of float32's exponent beyond that of 4 bits


@operation
def decode_float8(codes: Any, scale: Any) -> Any:
    """x = a·e4m3(q) / 448, of the byte q; 127 is NaN, 255 and 128 (−0) are the infinities."""
    negative = codes > 127
    size = torch.where(negative, codes - 128, codes)
    normal = ((size.to(torch.int32) + (BIAS << 3)) * (1 << PLACES)).view(torch.float32).to(codes.dtype)
    share = torch.where(size < 8, size * 2.0**-9, normal) * (1 / MOST)
    special = torch.where(codes > 254, torch.inf, torch.where(negative, -torch.inf, torch.nan))
    finite = scale * torch.copysign(share, 127.5 - codes)
    return torch.where((size > 126) | (codes == 128), special, finite)


@operation
def encode_float8(x: Any, scale: Any) -> Any:
    """The byte of the E4M3 nearest to 448·x / a, to an even one of two, and none of 0 where x ≠ 0."""
    size = x.abs()
    share = share_of(size, scale) * MOST
    bits = share.to(torch.float32).view(torch.int32)
    normal = ((bits + ((1 << (PLACES - 1)) - 1) + ((bits >> PLACES) & 1)) >> PLACES) - (BIAS << 3)
    code = torch.where(share < SMALLEST_NORMAL, (share * 2.0**9).round(), normal.to(x.dtype))
    least = torch.where(size > 0, 1.0, 0.0)
    code = torch.where(code > least, code, least) + torch.where(x < 0, 128.0, 0.0)
    special = torch.where(x == x, torch.where(x > 0, 255.0, 128.0), 127.0)
    return torch.where(size < torch.inf, code, special)


class Float8(Codec):
    """q = E4M3(448·x / a)."""

    name, dtype, block = "float8_e4m3fn", torch.float8_e4m3fn, 256
    source = "Micikevicius et al. 2022, arXiv:2209.05433; blocks as in torchao"

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_float8(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = largest(values, self.block)
        return encode_float8(values, scale), scale
