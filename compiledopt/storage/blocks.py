"""States in 8 bits: the elements of a block share a scale, the largest finite size among them. What is not finite stays what
it is at its element, and a block of zeros is exact."""

from __future__ import annotations

from typing import Any

import torch

from compiledopt.rules.composed import largest, operation
from compiledopt.storage.codec import Codec
from compiledopt.storage.pieces import signed

BLOCK = 32


@operation
def decode_int8(codes: Any, scale: Any) -> Any:
    """x = a·q / (252 − |q|); ±127 are the infinities and −128 is NaN."""
    size = codes.abs()
    special = torch.where(codes < -127, torch.nan, codes * torch.inf)
    return torch.where(size > 126, special, scale * (codes / (252 - size)))


@operation
def encode_int8(x: Any, scale: Any) -> Any:
    """q = round(126·2x / (a + |x|)): finer for the small. Divided first: 252·x is infinite for what is above 1.3e36."""
    size, above = x.abs(), torch.where(scale > 0, scale, 1.0)
    special = torch.where(x == x, signed(127.0, x), -128.0)
    return torch.where(size < torch.inf, (252 * (x / (above + size))).round(), special)


@operation
def decode_uint8(codes: Any, scale: Any) -> Any:
    """x = a·(q / 253)²; 254 is infinity and 255 is NaN."""
    share = codes * (1 / 253)
    special = torch.where(codes > 254, torch.nan, torch.inf)
    return torch.where(codes > 253, special, scale * share * share)


@operation
def encode_uint8(root: Any, scale: Any) -> Any:
    """q = round(253·√x / √a), at least 1 where x > 0: a step divides by the root of such a state. Below 0 it is NaN. root: √x,
    which such a step has computed too."""
    inverse = 253 / torch.where(scale > 0, scale, 1.0).sqrt()
    code = (root * inverse).round()
    code = torch.where((root > 0) & (code < 1), 1.0, code)
    special = torch.where(root > 0, 254.0, 255.0)
    return torch.where((root >= 0) & (root < torch.inf), code, special)


class Int8(Codec):
    """q = round(126·2z / (1 + |z|)) of z = x / a."""

    name, dtype, block, unsigned = "int8", torch.int8, BLOCK, "uint8"
    source = "the companding of FlashOptim 2025, with three codes for what is not finite"

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_int8(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = largest(values, self.block)
        return encode_int8(values, scale), scale


class UInt8(Codec):
    """q = round(253·√(x / a)), for states that are never negative."""

    name, dtype, block, signed = "uint8", torch.uint8, BLOCK, False
    source = "FlashOptim 2025, with two codes for what is not finite and none but 0 for zero"

    def decode(self, codes: Any, scale: Any) -> Any:
        return decode_uint8(codes, scale)

    def encode(self, values: Any, bits: Any) -> tuple[Any, Any]:
        scale = largest(values, self.block)
        return encode_uint8(values.sqrt(), scale), scale
